"""Data sets in memory: parts that give samples by number, and how raw values become inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.data.info import DataInfo
from hivenode.data.normalisation import AS_THEY_ARE, Normalisation
from hivenode.data.partition import train_test
from hivenode.spec.data import DataSpec
from hivenode.spec.shapes import spelled

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Samples(Protocol):
    """A part of a data set, in a fixed order."""

    def __len__(self) -> int: ...

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs (samples, *input_shape) and labels of those at `places`, ready for a model."""
        ...

    def stored(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """The same as they are kept: images as uint8, tokens and classes as int32."""
        ...

    def bring(self, places: range) -> None:
        """Have these on this machine, if they are not. May be called from a thread of its own. Raises HiveError."""
        ...


def ready(values: Array) -> Array:
    """What was kept small as a model takes it: images as float32 in [0, 1], whole numbers as int64."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255.0)
    return values.astype(np.int64) if values.dtype == np.int32 else values


@dataclass(frozen=True, slots=True)
class Held:
    """Samples in memory."""

    inputs: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        return ready(self.inputs[places]), ready(self.labels[places])

    def stored(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        inputs, labels = self.inputs[places], self.labels[places]
        return (
            inputs.astype(np.int32) if inputs.dtype == np.int64 else inputs,
            labels.astype(np.int32) if labels.dtype == np.int64 else labels,
        )

    def bring(self, places: range) -> None:
        """They are."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both parts of a data set.

    Attributes:
        normalisation: of the inputs; `targets`: of the values to predict.
        tokenizer: as `text.load` takes it; "" where there is no text.
        ranges: each member trains on a range of its own of the training part, and has no more of it.
        private: each member has samples of its own, and nobody else's.
        summary: sizes and balance, in sentences.
    """

    info: DataInfo
    train: Samples
    test: Samples
    normalisation: Normalisation = AS_THEY_ARE
    targets: Normalisation = AS_THEY_ARE
    tokenizer: str = ""
    ranges: bool = False
    private: bool = False
    summary: tuple[str, ...] = ()


def divide(info: DataInfo, rows: Array, labels: Array, spec: DataSpec, tokenizer: str, *, standardise: bool) -> Dataset:
    """Both parts of what is in memory, scaled by the statistics of the first.

    Args:
        rows: (samples, features) float64, or uint8 images, or tokens.
        labels: as the task has them: classes, values, next tokens.
        standardise: bring inputs to mean 0 and deviation 1.
    """
    train, test = train_test(len(rows), spec.test_fraction, spec.seed)
    normalisation = targets = AS_THEY_ARE
    if not info.vocabulary and rows.dtype != np.uint8:
        if standardise:
            normalisation = statistics(rows[train])
        rows = normalisation.apply(rows)
    if info.task == "regression":
        targets = statistics(labels[train])
        labels = targets.apply(labels)
    elif info.task == "reconstruction":
        labels = rows
    rows = np.ascontiguousarray(rows).reshape(len(rows), *info.input_shape)
    told = summary(info, len(train), labels, targets)
    return Dataset(
        info, Held(rows[train], labels[train]), Held(rows[test], labels[test]), normalisation, targets, tokenizer,
        summary=told,
    )  # fmt: skip


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


LISTED_CLASSES = 24


def summary(info: DataInfo, train: int, labels: Array, targets: Normalisation) -> tuple[str, ...]:
    """What a data set is, in sentences: sizes, kind, balance."""
    kind = f"{info.features} tokens of {info.vocabulary}" if info.vocabulary else f"{spelled(info.input_shape)} numbers"
    told = [f"{info.samples} samples of {kind}, for {info.task}: {train} to train on, {info.samples - train} held out."]
    if info.task == "classification":
        counted = np.bincount(labels, minlength=info.outputs)
        order = np.argsort(-counted, kind="stable")[:LISTED_CLASSES]
        each = ", ".join(f"{info.labels[n]} {counted[n]}" for n in order)
        more = f", and {info.outputs - len(order)} more" if info.outputs > len(order) else ""
        told.append(f"{info.outputs} classes: {each}{more}.")
        if counted.min() * 10 < counted.max():
            rare = info.labels[int(counted.argmin())]
            least = "1 sample" if counted.min() == 1 else f"{counted.min()} samples"
            told.append(f"They are unbalanced: {rare} has {least}, the largest {counted.max()}.")
        if {"-1", "0", "1"} <= set(info.labels):
            told.append("One class is called -1: if that marks samples without a class, leave them out.")
    elif info.task == "regression":
        pairs = zip(info.labels, targets.mean, targets.scale, strict=True)
        each = ", ".join(f"{name} {mean:.4g} +- {scale:.4g}" for name, mean, scale in pairs)
        told.append(f"To predict (mean +- deviation): {each}.")
    return tuple(told)
