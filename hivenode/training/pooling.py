"""Members that each train on samples of their own, which nobody else ever has: what they tell each other before the
first step. Numbers of samples, and the means and variances by which all scale their values alike; no sample, and
nothing of any one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from hivenode.data.dataset import Array, Dataset, Samples
from hivenode.data.normalisation import Normalisation
from hivenode.errors import InvalidInput
from hivenode.training.strategies.group import Group

_DIGITS = 4096
"""Numbers of samples are told in two digits of this base, so that float32 says them exactly."""


COMMON = "common"
"""Scalar of a checkpoint."""


class Common(msgspec.Struct, frozen=True):
    """What all go by from the first step to the last, whoever is lost or comes back.

    Attributes:
        inputs, targets: how all scale their values.
        steps: in an epoch.
    """

    inputs: Normalisation
    targets: Normalisation
    steps: Annotated[int, msgspec.Meta(ge=1, le=2**40)]

    def dump(self) -> str:
        return msgspec.json.encode(self).decode()


def load(text: str) -> Common:
    """Raises ValueError: it is none."""
    return msgspec.json.decode(text, type=Common)


class Counts(NamedTuple):
    """Samples to train on, by node, and held out, of all."""

    train: dict[str, int]
    test: int


def counts(data: Dataset, group: Group, step: int) -> Counts:
    """Tell each other how many samples each has. Raises as `Group.agree`."""
    train = _told(len(data.train), group, step)
    return Counts(train, sum(_told(len(data.test), group, step).values()))


def common(data: Dataset, group: Group, batch_size: int, train: Mapping[str, int]) -> Common:
    """Agree on what all go by. Raises as `Group.agree`."""
    inputs, targets = (_common(own, len(data.train), group) for own in (data.normalisation, data.targets))
    return Common(inputs, targets, max(1, -(-sum(train.values()) // batch_size)))


def scaled(data: Dataset, common: Common, samples: int) -> Dataset:
    """This member's own data on the scale of all; its `info` counts the samples of all. Raises InvalidInput: they have
    another number of columns."""
    inputs, targets = data.normalisation, data.targets
    if (len(inputs.mean), len(targets.mean)) != (len(common.inputs.mean), len(common.targets.mean)):
        raise InvalidInput(
            f"{data.info.source} has another number of columns than the job began with.",
            fix="Give it those it had, or submit the job again.",
        )
    info = msgspec.structs.replace(data.info, samples=samples)
    values = _Change(inputs, common.inputs)
    labels = values if info.task == "reconstruction" else _Change(targets, common.targets)
    train, test = _Rescaled(data.train, values, labels), _Rescaled(data.test, values, labels)
    return replace(data, info=info, normalisation=common.inputs, targets=common.targets, train=train, test=test)


def _told(count: int, group: Group, step: int) -> dict[str, int]:
    """What each member tells, by node: each has places of its own in a vector that is zero elsewhere."""
    places = len(group.planned)
    vector = np.zeros(2 * places, np.float32)

    def tell() -> float:
        vector.fill(0.0)
        own = group.planned.index(group.me)
        vector[own], vector[places + own] = divmod(count, _DIGITS)
        return 1.0

    mean = group.agree(vector, tell, step)
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

    def bring(self, places: range) -> None:
        self.own.bring(places)
