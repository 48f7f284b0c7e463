"""Data sets as workers use them: parts that give samples by number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from hivenode.data import bundled, sources
from hivenode.data.info import DataInfo
from hivenode.data.partition import train_test
from hivenode.data.text import PRINTABLE, Characters
from hivenode.spec.data import DataSpec

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Normalisation(msgspec.Struct, frozen=True):
    """`(value - mean) / scale` by feature; both empty when values are used as they are."""

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def apply(self, rows: npt.NDArray[np.float64]) -> Floats:
        """Rows of flattened samples to model inputs."""
        if not self.mean:
            return rows.astype(np.float32)
        scaled: npt.NDArray[np.float64] = (rows - np.array(self.mean)) / np.array(self.scale)
        return scaled.astype(np.float32)

    def undo(self, rows: Floats) -> Floats:
        """Back to what was asked for, for values that were predicted."""
        if not self.mean:
            return rows
        raw: npt.NDArray[np.float64] = rows * np.array(self.scale) + np.array(self.mean)
        return raw.astype(np.float32)


AS_THEY_ARE = Normalisation()


class Samples(Protocol):
    """A part of a data set, in a fixed order."""

    def __len__(self) -> int: ...

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs (samples, *input_shape) and labels of those at `places`, ready for a model."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """Samples in memory."""

    inputs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        return self.inputs[places], self.labels[places]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both parts of a data set.

    Attributes:
        normalisation: of the inputs; `targets`: of the values to predict.
        tokenizer: as `text.load` takes it; "" where there is no text.
        ranges: each member trains on a range of its own of the training part, and has no more of it.
    """

    info: DataInfo
    train: Samples
    test: Samples
    normalisation: Normalisation = AS_THEY_ARE
    targets: Normalisation = AS_THEY_ARE
    tokenizer: str = ""
    ranges: bool = False


def load(spec: DataSpec) -> Dataset:
    """Load, divide and scale a bundled set; the same on every machine, to the bit.

    Raises:
        InvalidInput: there is no such source.
        Unavailable: scikit-learn is not installed here.
        Corrupted: the installed set is not the one that is known.
    """
    known = sources.lookup(spec)
    rows, labels = bundled.values(spec)
    info = sources.with_task(known.info, spec.task)
    tokenizer = Characters(PRINTABLE).dump() if info.vocabulary else ""
    if known.scaling == "unit":
        rows = rows / known.raw_maximum
    return divide(info, rows, labels, spec, tokenizer, standardise=known.scaling == "standard")


def divide(info: DataInfo, rows: Array, labels: Array, spec: DataSpec, tokenizer: str, *, standardise: bool) -> Dataset:
    """Both parts of what is in memory, scaled by the statistics of the first.

    Args:
        rows: (samples, features) float64, or tokens.
        labels: as the task has them: classes, values, next tokens.
        standardise: bring inputs to mean 0 and deviation 1.
    """
    train, test = train_test(len(rows), spec.test_fraction, spec.seed)
    normalisation = targets = AS_THEY_ARE
    if not info.vocabulary:
        if standardise:
            normalisation = statistics(rows[train])
        rows = normalisation.apply(rows)
    if info.task == "regression":
        targets = statistics(labels[train])
        labels = targets.apply(labels)
    elif info.task == "reconstruction":
        labels = rows
    rows = np.ascontiguousarray(rows).reshape(len(rows), *info.input_shape)
    return Dataset(
        info, Held(rows[train], labels[train]), Held(rows[test], labels[test]), normalisation, targets, tokenizer
    )


def statistics(rows: npt.NDArray[np.float64]) -> Normalisation:
    """Mean and standard deviation by column (1 where a column is constant), of exactly rounded sums: the order of
    summation differs between machines, and these numbers become part of the model."""
    count = len(rows)
    means, scales = [], []
    for column in rows.T.tolist():
        mean = math.fsum(column) / count
        variance = math.fsum((value - mean) * (value - mean) for value in column) / count
        means.append(mean)
        scales.append(math.sqrt(variance) or 1.0)
    return Normalisation(tuple(means), tuple(scales))


def balance(labels: Sequence[int] | npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, int]:
    """How many samples each class has."""
    counted = np.bincount(np.asarray(labels, np.int64), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counted, strict=True)}
