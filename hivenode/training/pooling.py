"""Members that each train on samples of their own, which nobody else ever has: what they tell each other before the
first step. Numbers of samples, and the means and variances by which all scale their values alike; no sample, and
nothing of any one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from hivenode.data.dataset import Array, Dataset, Samples
from hivenode.data.normalisation import Normalisation
from hivenode.training.strategies.group import Group

_DIGITS = 4096
"""Numbers of samples are told in two digits of this base, so that float32 says them exactly."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Attributes:
    data: this member's own, scaled as everybody's; its `info` counts the samples of all.
    train: samples to train on, by node.
    test: held out, of all.
    """

    data: Dataset
    train: dict[str, int]
    test: int


def pooled(data: Dataset, group: Group) -> Pool:
    """Agree with the others. Raises as `Group.agree`."""
    train = _told(len(data.train), group)
    test = sum(_told(len(data.test), group).values())
    inputs, targets = data.normalisation, data.targets
    data = replace(
        data,
        info=msgspec.structs.replace(data.info, samples=sum(train.values()) + test),
        normalisation=_common(inputs, len(data.train), group),
        targets=_common(targets, len(data.train), group),
    )
    values = _Change(inputs, data.normalisation)
    labels = values if data.info.task == "reconstruction" else _Change(targets, data.targets)
    own = replace(data, train=_Rescaled(data.train, values, labels), test=_Rescaled(data.test, values, labels))
    return Pool(own, train, test)


def _told(count: int, group: Group) -> dict[str, int]:
    """What each member tells, by node: each has places of its own in a vector that is zero elsewhere."""
    places = len(group.planned)
    vector = np.zeros(2 * places, np.float32)

    def tell() -> float:
        vector.fill(0.0)
        own = group.planned.index(group.me)
        vector[own], vector[places + own] = divmod(count, _DIGITS)
        return 1.0

    mean = group.agree(vector, tell, 0)
    digits = np.rint(vector * np.float32(mean.total_weight)).astype(np.int64).reshape(2, places)
    return {node: int(digits[0, place]) * _DIGITS + int(digits[1, place]) for place, node in enumerate(group.planned)}


def _common(own: Normalisation, count: int, group: Group) -> Normalisation:
    """Mean and deviation over the samples of all."""
    if not own.mean:
        return own
    mean = _mean(np.array(own.mean), count, group)
    spread = _mean(np.array(own.scale) ** 2 + (np.array(own.mean) - mean) ** 2, count, group)
    scale = np.sqrt(spread)
    return Normalisation(tuple(mean.tolist()), tuple(np.where(scale > 0, scale, 1.0).tolist()))


def _mean(values: npt.NDArray[np.float64], count: int, group: Group) -> npt.NDArray[np.float64]:
    vector = np.zeros(len(values), np.float32)

    def tell() -> float:
        vector[:] = values
        return float(count)

    group.agree(vector, tell, 0)
    return vector.astype(np.float64)


class _Change:
    """From one scale to another."""

    def __init__(self, old: Normalisation, new: Normalisation) -> None:
        self._factor = np.array(old.scale) / np.array(new.scale)
        self._shift = (np.array(old.mean) - np.array(new.mean)) / np.array(new.scale)

    def __call__(self, values: Array) -> Array:
        if not len(self._shift):
            return values
        flat = values.reshape(len(values), -1) * self._factor + self._shift
        return np.asarray(flat.reshape(values.shape), np.float32)


@dataclass(frozen=True, slots=True)
class _Rescaled:
    """`Samples` on another scale."""

    own: Samples
    inputs: _Change
    labels: _Change

    def __len__(self) -> int:
        return len(self.own)

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        inputs, labels = self.own.take(places)
        return self.inputs(inputs), self.labels(labels)

    def stored(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        inputs, labels = self.own.stored(places)
        return self.inputs(inputs), self.labels(labels)
