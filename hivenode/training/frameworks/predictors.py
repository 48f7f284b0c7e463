"""What fitted estimators put out, from their arrays alone: plain numpy, so that a model file is but numbers.

Arrays are float32. Those of trees hold whole numbers, too (features, nodes), which float32 does exactly below 2**24;
thresholds are rounded down, which for float32 inputs decides every comparison as the exact one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.models.estimators import arguments, estimator
from hivenode.spec.section import Scalar

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tensors = Mapping[str, Floats]

MAX_NODES = 2**24
_PORTION = 1 << 22
"""Places in trees followed at once."""


class Predictor(Protocol):
    """Of a fitted estimator."""

    def outputs(self, rows: Floats) -> Doubles:
        """(samples, outputs) for (samples, features): probabilities of classes, values, or 1 for the nearest
        cluster."""
        ...


def predictor(source: str, params: Mapping[str, Scalar], tensors: Tensors, features: int, outputs: int) -> Predictor:
    """The one for an estimator's arrays.

    Raises:
        ValueError, KeyError: the arrays are not such an estimator's.
        InvalidInput: there is no such estimator.
    """
    name, entry = estimator(source)
    values = arguments(source, params)
    if any(not np.isfinite(array).all() for array in tensors.values()):
        raise ValueError("it holds values that are not finite")
    if "roots" in tensors:
        return _trees(name, entry.task, tensors, features, outputs)
    if "centres" in tensors:
        _fits(tensors, {"centres": (len(tensors["centres"]), features)})
        return Centres(tensors["centres"])
    if "variance" in tensors:
        _fits(tensors, {"mean": (outputs, features), "variance": (outputs, features), "prior": (outputs,)})
        return Gaussian(tensors["mean"], tensors["variance"], tensors["prior"])
    columns = 1 if entry.task == "classification" and outputs == 2 else outputs
    if name.startswith("MLP"):
        return _network(entry.task, values, tensors, features, columns)
    _fits(tensors, {"coefficients": (columns, features), "intercepts": (columns,)})
    link = "value" if entry.task == "regression" else str(values.get("loss", "softmax"))
    return Linear(tensors["coefficients"], tensors["intercepts"], link)


def nearest(rows: Floats, centres: Floats) -> tuple[npt.NDArray[np.int64], Doubles]:
    """Of each row the closest centre, and the squared distance to it."""
    wide, points = rows.astype(np.float64), centres.astype(np.float64)
    squares = (points * points).sum(axis=1)[None, :] - 2.0 * wide @ points.T
    closest = squares.argmin(axis=1)
    return closest, ((wide - points[closest]) ** 2).sum(axis=1)


@dataclass(frozen=True, slots=True)
class Linear:
    """Attributes:
    link: from scores to outputs; `log_loss`, `modified_huber` and `hinge` as SGDClassifier (one against the rest),
        `softmax` as LogisticRegression, `value` for none.
    """

    coefficients: Floats
    intercepts: Floats
    link: str

    def outputs(self, rows: Floats) -> Doubles:
        scores = rows.astype(np.float64) @ self.coefficients.T.astype(np.float64) + self.intercepts
        if self.link == "value":
            return np.asarray(scores, np.float64)
        if scores.shape[1] == 1:
            scores = np.hstack([-scores, scores])
            if self.link == "softmax":  # of one score and none
                scores /= 2.0
        if self.link == "softmax":
            return softmax(scores)
        if self.link == "hinge":
            return np.asarray(np.eye(scores.shape[1])[scores.argmax(axis=1)], np.float64)
        found = _logistic(scores) if self.link == "log_loss" else (np.clip(scores, -1.0, 1.0) + 1.0) / 2.0
        total = found.sum(axis=1, keepdims=True)
        even = 1.0 / found.shape[1]
        return np.asarray(np.where(total > 0, found / np.where(total > 0, total, 1.0), even), np.float64)


@dataclass(frozen=True, slots=True)
class Network:
    """A multi-layer perceptron; its last layer gives class scores (one of them for two classes) or values."""

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    activation: str
    classifies: bool

    def outputs(self, rows: Floats) -> Doubles:
        values = rows.astype(np.float64)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weight + bias
            if number < len(self.weights) - 1:
                values = _ACTIVATIONS[self.activation](values)
        if not self.classifies:
            return values
        if values.shape[1] == 1:
            one = _logistic(values)
            return np.hstack([1.0 - one, one])
        return softmax(values)


@dataclass(frozen=True, slots=True)
class Centres:
    centres: Floats

    def outputs(self, rows: Floats) -> Doubles:
        return np.eye(len(self.centres))[nearest(rows, self.centres)[0]]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Naive Bayes of normal distributions."""

    mean: Floats
    variance: Floats
    prior: Floats

    def outputs(self, rows: Floats) -> Doubles:
        wide = rows.astype(np.float64)
        with np.errstate(divide="ignore"):
            joint = np.tile(np.log(self.prior.astype(np.float64)), (len(rows), 1))
        for label, (mean, variance) in enumerate(zip(self.mean, self.variance, strict=True)):
            scale = variance.astype(np.float64)
            joint[:, label] -= 0.5 * (np.log(2.0 * np.pi * scale).sum() + ((wide - mean) ** 2 / scale).sum(axis=1))
        return softmax(joint)


@dataclass(frozen=True, slots=True)
class Trees:
    """Nodes of all trees in one line; a leaf is its own child.

    Attributes:
        start: what every sample begins with, (outputs,).
        factor: by which the sum of what the trees say is multiplied.
        link: `value`, `logistic` (two classes by one score) or `softmax`.
    """

    roots: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: Floats
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: Floats
    start: Doubles
    factor: float
    link: str

    def outputs(self, rows: Floats) -> Doubles:
        portion = max(1, _PORTION // max(len(self.roots), 1))
        return np.concatenate([self._some(rows[at : at + portion]) for at in range(0, len(rows), portion)])

    def _some(self, rows: Floats) -> Doubles:
        at = np.repeat(self.roots[None, :], len(rows), axis=0)
        lines = np.arange(len(rows))[:, None]
        while True:
            following = np.where(rows[lines, self.feature[at]] <= self.threshold[at], self.left[at], self.right[at])
            if (following == at).all():
                break
            at = following
        found = np.repeat(self.start[None, :], len(rows), axis=0)
        for tree in range(at.shape[1]):  # in their order: the same sum on every machine
            found += self.factor * self.value[at[:, tree]].astype(np.float64)
        if self.link == "logistic":
            one = _logistic(found)
            return np.hstack([1.0 - one, one])
        return softmax(found) if self.link == "softmax" else found


def softmax(scores: Doubles) -> Doubles:
    """By row."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float64)


def _logistic(scores: Doubles) -> Doubles:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(scores, -700.0, 700.0))), np.float64)


_ACTIVATIONS: Mapping[str, Any] = {
    "relu": lambda values: np.maximum(values, 0.0),
    "tanh": np.tanh,
    "logistic": _logistic,
    "identity": lambda values: values,
}


def _network(task: str, values: Mapping[str, Scalar], tensors: Tensors, features: int, columns: int) -> Network:
    hidden, depth = int(values["hidden"]), int(values["depth"])
    widths = [features, *[hidden] * depth, columns]
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(depth + 1):
        shapes[f"weight{number}"] = (widths[number], widths[number + 1])
        shapes[f"bias{number}"] = (widths[number + 1],)
    _fits(tensors, shapes)
    return Network(
        tuple(tensors[f"weight{number}"] for number in range(depth + 1)),
        tuple(tensors[f"bias{number}"] for number in range(depth + 1)),
        str(values["activation"]),
        task == "classification",
    )


def _trees(name: str, task: str, tensors: Tensors, features: int, outputs: int) -> Trees:
    """Checked so that following them ends, and never leaves the arrays."""
    count, boosted = len(tensors["feature"]), name.startswith("GradientBoosting")
    columns = 1 if boosted and task == "classification" and outputs == 2 else outputs
    _fits(
        tensors,
        {
            "roots": (len(tensors["roots"]),),
            "feature": (count,),
            "threshold": (count,),
            "left": (count,),
            "right": (count,),
            "value": (count, columns),
            "start": (columns,),
            "factor": (1,),
        },
    )
    whole = {}
    for key, limit in (("roots", count), ("feature", features), ("left", count), ("right", count)):
        array = tensors[key]
        if not ((array >= 0) & (array < limit) & (array == np.floor(array))).all():
            raise ValueError(f"its {key} are not places that there are")
        whole[key] = array.astype(np.int64)
    own = np.arange(count)
    leaf = (whole["left"] == own) & (whole["right"] == own)
    if not (leaf | ((whole["left"] > own) & (whole["right"] > own))).all():
        raise ValueError("its trees run in circles")
    link = "value"
    if boosted and task == "classification":
        link = "logistic" if columns == 1 else "softmax"
    return Trees(
        whole["roots"],
        whole["feature"],
        tensors["threshold"],
        whole["left"],
        whole["right"],
        tensors["value"],
        tensors["start"].astype(np.float64),
        float(tensors["factor"][0]),
        link,
    )


def _fits(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if {key: array.shape for key, array in tensors.items()} != dict(shapes):
        raise ValueError("its arrays are not those of its estimator")
