"""Estimators of scikit-learn that are fitted in one piece, and trees that are grown one by one: as arrays for
`frameworks.predictors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.errors import Exhausted, InvalidInput
from hivenode.models.estimators import arguments, estimator
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.predictors import MAX_NODES, Floats, Tensors
from hivenode.training.frameworks.sklearn_learners import Rows, Targets, build
from hivenode.training.frameworks.sklearn_threads import with_threads

UNIT = 10
"""Trees that are grown by the same member."""
_TREE_ARRAYS = ("feature", "threshold", "left", "right", "value")

Grown = dict[str, Floats]
"""Arrays by name; of trees in one line `roots` and those of `_TREE_ARRAYS`."""


def fit(model: ModelSpec, rows: Rows, labels: Targets, outputs: int, seed: int, threads: int) -> dict[str, Floats]:
    """Fit an estimator of kind `whole`, with `threads` threads of joblib where it can use them; its arrays."""
    fitted = build(model.source, arguments(model.source, model.params), seed)
    with with_threads(threads):
        fitted.fit(rows, labels)
    return arrays(model.source, fitted, outputs)


def arrays(source: str, fitted: Any, outputs: int) -> dict[str, Floats]:
    """Of a fitted estimator of any kind but `members`, as `predictors.predictor` takes them.

    Raises:
        InvalidInput: the samples that it was fitted to lack a class, and it is not made of trees.
    """
    name, entry = estimator(source)
    if name.startswith("DecisionTree"):
        grown = _line([fitted.tree_], _columns(fitted, outputs), outputs)
        return {**grown, "start": np.zeros(outputs, np.float32), "factor": np.ones(1, np.float32)}
    if entry.kind == "trees":
        return together(
            [_line([tree.tree_ for tree in fitted.estimators_], _columns(fitted, outputs), outputs)], outputs
        )
    if name in ("KMeans", "MiniBatchKMeans"):
        return {"centres": fitted.cluster_centers_.astype(np.float32)}
    if entry.task == "classification" and len(_columns(fitted, outputs)) < outputs:
        raise InvalidInput(
            f"{name} was given samples of {len(fitted.classes_)} of {outputs} classes.",
            fix="Raise max_samples, or use an ensemble of trees.",
        )
    if name.startswith("GradientBoosting"):
        return _boosted(fitted, entry.task, outputs)
    if name.startswith("MLP"):
        pairs = list(zip(fitted.coefs_, fitted.intercepts_, strict=True))
        weights = {f"weight{n}": np.asarray(weight, np.float32) for n, (weight, _) in enumerate(pairs)}
        return weights | {f"bias{n}": np.asarray(bias, np.float32) for n, (_, bias) in enumerate(pairs)}
    if name == "GaussianNB":
        named = {"mean": fitted.theta_, "variance": fitted.var_, "prior": fitted.class_prior_}
        return {key: np.asarray(array, np.float32) for key, array in named.items()}
    return linear(fitted)


def linear(fitted: Any) -> dict[str, Floats]:
    """Of a fitted linear model."""
    coefficients = np.atleast_2d(np.asarray(fitted.coef_, np.float32))
    intercepts = np.broadcast_to(np.asarray(fitted.intercept_, np.float32), (len(coefficients),)).copy()
    return {"coefficients": coefficients, "intercepts": intercepts}


class Growing(Protocol):
    """What members make by units, each of them by itself."""

    @property
    def units(self) -> int: ...

    def due(self, every: int) -> int:
        """After how many units a checkpoint is due that is wanted after `every` trees or members; where each member is
        of another kind, after one."""
        ...

    def grow(self, units: range) -> dict[int, Grown]:
        """These units' arrays: the same wherever and whenever they are grown."""
        ...

    def together(self, grown: Sequence[Grown]) -> dict[str, Floats]:
        """The whole, of all units in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """What is grown, and from what.

    Args:
        threads: for joblib.
        earlier: arrays of the forest that there is already; none where it begins.
    """

    model: ModelSpec
    rows: Rows
    labels: Targets
    outputs: int
    seed: int
    threads: int
    earlier: Tensors = field(default_factory=dict)


class Forest(Given):
    """`Growing` of trees: those that scikit-learn grows by itself from that seed; on top of an earlier forest, those
    that it grows there with `warm_start`."""

    __slots__ = ()

    @property
    def units(self) -> int:
        return -(-(self._trees - self._grown) // UNIT)

    def due(self, every: int) -> int:
        return -(-every // UNIT)

    @property
    def _trees(self) -> int:
        return int(arguments(self.model.source, self.model.params)["n_estimators"])

    @property
    def _grown(self) -> int:
        """Trees that there are already."""
        return len(self.earlier.get("roots", ()))

    def grow(self, units: range) -> dict[int, Grown]:
        values = arguments(self.model.source, self.model.params)
        first, stop = self._grown + units.start * UNIT, min(self._grown + units.stop * UNIT, self._trees)
        fitted = build(self.model.source, values, self.seed, n_estimators=stop - first)
        with with_threads(self.threads):
            fitted.set_params(random_state=stream(self.seed, first)).fit(self.rows, self.labels)
        columns, trees = _columns(fitted, self.outputs), [tree.tree_ for tree in fitted.estimators_]
        return {
            unit: _line(trees[at : at + UNIT], columns, self.outputs)
            for unit, at in zip(units, range(0, len(trees), UNIT), strict=True)
        }

    def together(self, grown: Sequence[Grown]) -> dict[str, Floats]:
        return together([dict(self.earlier), *grown] if self._grown else grown, self.outputs)


def stream(seed: int, drawn: int) -> np.random.RandomState:
    """The random numbers of scikit-learn's ensembles, who draw one for each member, after so many of them."""
    made = np.random.RandomState(seed % 2**32)
    made.randint(np.iinfo(np.int32).max, size=drawn)
    return made


def together(units: Sequence[Grown], outputs: int) -> dict[str, Floats]:
    """A forest of the trees of all its units, in their order.

    Raises:
        Exhausted: it has more nodes than its file can name.
    """
    counts = [len(unit["feature"]) for unit in units]
    if sum(counts) >= MAX_NODES:
        raise Exhausted(
            f"The forest has {sum(counts)} nodes; at most {MAX_NODES} are kept.",
            fix="Set max_depth, max_leaf_nodes or min_samples_leaf, or fewer n_estimators.",
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.float32)
    joined = {name: np.concatenate([unit[name] for unit in units]) for name in ("feature", "threshold", "value")}
    for name in ("roots", "left", "right"):
        joined[name] = np.concatenate([unit[name] + start for unit, start in zip(units, starts, strict=True)])
    trees = len(joined["roots"])
    return {**joined, "start": np.zeros(outputs, np.float32), "factor": np.full(1, 1.0 / trees, np.float32)}


def pack(units: Mapping[int, Grown]) -> Floats:
    """Units by number, as one vector: how many, then for each its number and its count of arrays, and for each array
    its name, its shape and itself."""
    pieces: list[Floats] = [np.array([len(units)], np.float32)]
    for number, unit in sorted(units.items()):
        pieces.append(np.array([number, len(unit)], np.float32))
        for name, array in sorted(unit.items()):
            said = name.encode()
            pieces.append(np.array([len(said), *said, array.ndim, *array.shape], np.float32))
            pieces.append(np.asarray(array, np.float32).ravel())
    return np.concatenate(pieces)


def unpack(vector: Floats) -> dict[int, Grown]:
    """What lies behind the last unit does not count. Raises ValueError: it is not what `pack` gives."""
    at = 0

    def take(count: int) -> Floats:
        nonlocal at
        if at + count > len(vector):
            raise ValueError("arrays that end before their end")
        at += count
        return vector[at - count : at]

    def whole(count: int) -> list[int]:
        found = take(count)
        if not ((found >= 0) & (found < MAX_NODES)).all():
            raise ValueError("arrays without a number")
        return [int(value) for value in found]

    units: dict[int, Grown] = {}
    for _ in range(whole(1)[0]):
        number, count = whole(2)
        unit: Grown = {}
        for _ in range(count):
            name = bytes(whole(whole(1)[0])).decode()
            shape = whole(whole(1)[0])
            unit[name] = take(prod(shape)).reshape(shape)
        units[number] = unit
    return units


def _columns(fitted: Any, outputs: int) -> npt.NDArray[np.int64]:
    """Which outputs the values of a tree belong to: classes that no sample had are not among them."""
    classes = getattr(fitted, "classes_", None)
    return np.arange(outputs) if classes is None else np.asarray(classes, np.int64)


def _line(trees: Sequence[Any], columns: npt.NDArray[np.int64], outputs: int) -> Grown:
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _TREE_ARRAYS}
    roots, start = [], 0
    for tree in trees:
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        parts["feature"].append(np.where(leaf, 0, tree.feature))
        parts["threshold"].append(_rounded_down(np.where(leaf, 0.0, tree.threshold)))
        parts["left"].append(np.where(leaf, own, tree.children_left) + start)
        parts["right"].append(np.where(leaf, own, tree.children_right) + start)
        said = tree.value[:, 0, :] if tree.n_outputs == 1 else tree.value[:, :, 0]
        value = np.zeros((tree.node_count, outputs))
        value[:, columns[: said.shape[1]]] = said
        parts["value"].append(value)
        roots.append(start)
        start += tree.node_count
    made = {name: np.concatenate(arrays).astype(np.float32) for name, arrays in parts.items()}
    return {"roots": np.array(roots, np.float32), **made}


def _rounded_down(thresholds: npt.NDArray[np.float64]) -> Floats:
    single = thresholds.astype(np.float32)
    return np.where(single > thresholds, np.nextafter(single, np.float32(-np.inf)), single)


def _boosted(fitted: Any, task: str, outputs: int) -> dict[str, Floats]:
    stages = fitted.estimators_  # (stages, columns)
    columns = stages.shape[1]
    lines = []
    for column in range(columns):
        line = _line([tree.tree_ for tree in stages[:, column]], np.array([column]), columns)
        lines.append(line)
    joined = together(lines, columns)
    blank = np.zeros((1, fitted.n_features_in_), np.float32)
    start = np.asarray(fitted._raw_predict_init(blank), np.float32).ravel()
    return {**joined, "start": start, "factor": np.full(1, fitted.learning_rate, np.float32)}
