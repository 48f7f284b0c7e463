"""Members with samples of their own agree on how many there are and on one scale: that of all samples together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hivenode.data.dataset import Dataset, Held
from hivenode.data.info import DataInfo
from hivenode.data.normalisation import Normalisation
from hivenode.net.local import Peer
from hivenode.spec.values import Share
from hivenode.training.exchange.codecs import Codec
from hivenode.training.pooling import common, counts, scaled
from hivenode.training.strategies.collective import Mean
from hivenode.training.strategies.group import Group

NODES = tuple(f"{rank:032d}" for rank in range(3))
SIZES = (5, 300, 9000)


class Meeting:
    """Means over threads of this process, as the exchange makes them."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(len(NODES))
        self._given: dict[str, tuple[np.ndarray, float]] = {}

    def mean(self, node: str, vector: np.ndarray, weight: float) -> Mean:
        self._given[node] = vector.copy(), weight
        self._barrier.wait(10)
        total = sum(part for _, part in self._given.values())
        vector[:] = sum(given * np.float32(part / total) for given, part in self._given.values())
        self._barrier.wait(10)
        return Mean(total_weight=total)


class Seat:
    """A `Collective` of one of them."""

    port, certificate, members = 0, "", NODES

    def __init__(self, meeting: Meeting, node: str) -> None:
        self._meeting, self._node = meeting, node

    def connect(self, peers: tuple[Peer, ...]) -> None: ...

    def mean(self, vector: np.ndarray, weight: float, codec: Codec | None = None, *, judged: bool = False) -> Mean:
        return self._meeting.mean(self._node, vector, weight)

    def finish(self) -> None: ...

    def lost(self, node: str) -> None: ...

    def close(self) -> None: ...


def fitted(values: np.ndarray) -> tuple[np.ndarray, Normalisation]:
    """On the scale of its own, as a node reads its own data."""
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    own = ((values - mean) / scale).astype(np.float32)
    return own, Normalisation(tuple(mean.tolist()), tuple(scale.tolist()))


def test_all_scale_as_one_who_had_all_samples_would() -> None:
    generator, raw, data = np.random.default_rng(0), [], []
    for rank, size in enumerate(SIZES):
        inputs = generator.normal((10.0 * rank, -3.0, 7.0), (1.0 + rank, 0.5, 0.0), (size, 3))
        targets = generator.normal(100.0 * rank, 5.0, (size, 1))
        raw.append((inputs, targets))
        (own, by), (aims, towards) = fitted(inputs), fitted(targets)
        info = DataInfo("private:x", size, (3,), 1, (), "regression")
        data.append(Dataset(info, Held(own, aims), Held(own[:2], aims[:2]), by, towards, private=True))
    meeting = Meeting()

    def agree(rank: int) -> tuple[dict[str, int], int, int, Dataset]:
        shares = [Share(node, number, 1.0, 0.1, 1) for number, node in enumerate(NODES)]
        group = Group(NODES[rank], shares, Seat(meeting, NODES[rank]), lambda message: None, lambda: None)
        train, test = counts(data[rank], group, 0)
        agreed = common(data[rank], group, 64, train)
        return train, test, agreed.steps, scaled(data[rank], agreed, sum(train.values()) + test)

    with ThreadPoolExecutor(len(NODES)) as threads:
        found = list(threads.map(agree, range(len(NODES))))
    for train, test, steps, pooled in found:
        assert train == dict(zip(NODES, SIZES, strict=True))
        assert (test, steps) == (6, -(-sum(SIZES) // 64))
        assert pooled.info.samples == sum(SIZES) + 6
    for number in (0, 1):
        together = np.concatenate([part[number] for part in raw])
        whole, _ = fitted(together)
        parts = [each[3].train.take(np.arange(size))[number] for each, size in zip(found, SIZES, strict=True)]
        assert np.abs(np.concatenate(parts) - whole).max() < 1e-3
