"""Who trains on what in a round of local steps, also when members are lost within it; and how shares follow speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hivenode.data.dataset import Dataset, Held
from hivenode.data.info import DataInfo
from hivenode.net.local import Peer
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.exchange.codecs import Codec
from hivenode.training.optimizers import Outer
from hivenode.training.strategies.collective import Mean, MembersChanged
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.local_steps import LocalSteps
from hivenode.training.strategies.way import Course
from hivenode.training.strategies.wire import Wire

SAMPLES = 100
NODES = tuple(f"{rank:032d}" for rank in range(4))
DATA = Dataset(
    DataInfo("test", SAMPLES, (1,), 2, ("a", "b"), "classification"),
    Held(np.arange(SAMPLES, dtype=np.float32)[:, None], np.zeros(SAMPLES, np.int64)),
    Held(np.zeros((0, 1), np.float32), np.zeros(0, np.int64)),
)


class Losing:
    """A collective from which members are lost, one list of them at a time, before the next mean comes about."""

    port, certificate = 0, ""

    def __init__(self, lost: list[tuple[str, ...]]) -> None:
        self.members = NODES
        self._lost = list(lost)
        self.means = 0

    def connect(self, peers: tuple[Peer, ...]) -> None: ...

    def mean(self, vector: np.ndarray, weight: float, codec: Codec | None = None, *, judged: bool = False) -> Mean:
        if self._lost:
            gone = self._lost.pop(0)
            self.members = tuple(node for node in self.members if node not in gone)
            raise MembersChanged
        self.means += 1
        return Mean(total_weight=weight)

    def finish(self) -> None: ...

    def lost(self, node: str) -> None: ...

    def close(self) -> None: ...


class Counting:
    """A learner that remembers what it has learnt from, and moves a step for each sample."""

    loss_scale = None

    def __init__(self) -> None:
        self.weights = np.zeros(1, np.float32)
        self.seen: Counter[int] = Counter()
        self.batches: list[int] = []

    def learn(self, inputs: np.ndarray, labels: np.ndarray, learning_rate: float, draw: int) -> float:
        self.seen.update(int(value) for value in inputs[:, 0])
        self.batches.append(len(inputs))
        self.weights += len(inputs)
        return 1.0

    def adopt(self, weights: np.ndarray) -> None:
        self.weights[:] = weights

    def slots(self) -> Mapping[str, np.ndarray]:
        return {}

    def scalars(self) -> dict[str, str]:
        return {}

    def restore(self, slots: Mapping[str, np.ndarray], scalars: Mapping[str, str]) -> None: ...


def member(
    node: str, lost: list[tuple[str, ...]], weights: tuple[float, ...], data: Dataset = DATA
) -> tuple[LocalSteps, Counting, Group]:
    spec = TrainingSpec(sync="local", sync_every=5, batch_size=20)
    shares = [Share(name, rank, weights[rank], 0.1, 1) for rank, name in enumerate(NODES)]
    group = Group(node, shares, Losing(lost), lambda message: None, lambda: None)
    learner = Counting()
    wire = Wire(group, "fp32", (1,), (), lambda message: None)
    whole = ((slice(0, 1),),)
    steps = LocalSteps(spec, group, wire, Course(data, spec, group), learner, Outer(1.0, 0.0, 1), whole)
    return steps, learner, group


@pytest.mark.parametrize("lost", [[], [(NODES[1],)], [(NODES[0],)], [(NODES[1], NODES[3])], [(NODES[1],), (NODES[3],)]])
@pytest.mark.parametrize("ranges", [False, True], ids=["all data everywhere", "ranges"])
def test_every_sample_of_a_round_is_trained_on_by_one_of_those_who_are_left(
    lost: list[tuple[str, ...]], ranges: bool
) -> None:
    gone = {node for some in lost for node in some}
    seen: Counter[int] = Counter()
    for node in NODES:
        if node in gone:
            continue
        steps, learner, _ = member(node, lost, (0.4, 0.1, 0.3, 0.2), replace(DATA, ranges=ranges))
        advance = steps.advance(0, 100)
        assert (advance.step, advance.samples) == (5, 100)
        seen += learner.seen
        # The fake mean is this member's own way: the outer step has brought all of it, once.
        assert steps.weights[0] == sum(learner.batches)
    assert seen == Counter(range(SAMPLES))


def test_whoever_has_more_makes_more_steps_of_the_same_size() -> None:
    made = [member(node, [], (0.5, 0.25, 0.125, 0.125)) for node in NODES]
    for steps, _, _ in made:
        steps.advance(0, 100)
    assert [len(learner.batches) for _, learner, _ in made] == [10, 5, 3, 2]
    assert {max(learner.batches) for _, learner, _ in made} <= {5, 6, 7}


def test_shares_follow_speed_half_and_half() -> None:
    class Told(Losing):
        def mean(self, vector: np.ndarray, weight: float, codec: Codec | None = None, *, judged: bool = False) -> Mean:
            vector[:] = np.array([30.0, 5.0, 0.0, 20.0, 1.0, 0.5, 0.0, 2.0], np.float32) / 4  # samples, seconds
            return Mean(total_weight=4.0)

    shares = [Share(name, rank, 0.25, 0.1, 1) for rank, name in enumerate(NODES)]
    group = Group(NODES[0], shares, Told([]), lambda message: None, lambda: None)
    group.share_speeds(30, 1.0, 0)
    # The third has told nothing and keeps its share; the others divide theirs 3 : 1 : 1.
    assert list(group.weights.values()) == pytest.approx([0.35, 0.2, 0.25, 0.2])
