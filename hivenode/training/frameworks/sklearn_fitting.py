"""Estimators of scikit-learn that are fitted in one piece, and trees that are grown one by one: as arrays for
`frameworks.predictors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from hivenode.errors import Exhausted
from hivenode.models.estimators import arguments, estimator
from hivenode.spec.section import Scalar
from hivenode.training.frameworks.predictors import MAX_NODES, Floats
from hivenode.training.frameworks.sklearn_learners import Rows, Targets, build

UNIT = 10
"""Trees that are grown by the same member."""
_TREE_ARRAYS = ("feature", "threshold", "left", "right", "value")

Grown = dict[str, Floats]
"""Trees in one line: `roots` and the arrays of `_TREE_ARRAYS`."""


def fit(
    source: str, params: Mapping[str, Scalar], rows: Rows, labels: Targets, outputs: int, seed: int, threads: int
) -> dict[str, Floats]:
    """Fit an estimator of kind `whole`, with `threads` threads of joblib where it can use them; its arrays."""
    values = arguments(source, params)
    fitted = build(source, values, seed)
    with joblib.parallel_backend("threading", n_jobs=threads):
        fitted.fit(rows, labels)
    name, entry = estimator(source)
    if name.startswith("DecisionTree"):
        grown = _line([fitted.tree_], _columns(fitted, outputs), outputs)
        return {**grown, "start": np.zeros(outputs, np.float32), "factor": np.ones(1, np.float32)}
    if name.startswith("GradientBoosting"):
        return _boosted(fitted, entry.task, outputs)
    if name == "KMeans":
        return {"centres": fitted.cluster_centers_.astype(np.float32)}
    width = rows.shape[1]
    coefficients = np.asarray(fitted.coef_, np.float32).reshape(-1, width)
    intercepts = np.broadcast_to(np.asarray(fitted.intercept_, np.float32), (len(coefficients),)).copy()
    return {"coefficients": coefficients, "intercepts": intercepts}


def units_of(params: Mapping[str, Scalar], source: str) -> int:
    """Into how many units a forest is divided."""
    return -(-int(arguments(source, params)["n_estimators"]) // UNIT)


def grow(
    source: str,
    params: Mapping[str, Scalar],
    units: range,
    rows: Rows,
    labels: Targets,
    outputs: int,
    seed: int,
    threads: int,
) -> dict[int, Grown]:
    """The trees of these units of a forest: the same wherever and whenever they are grown, and those that scikit-learn
    grows by itself from that seed."""
    values = arguments(source, params)
    first, stop = units.start * UNIT, min(units.stop * UNIT, int(values["n_estimators"]))
    fitted = build(source, values, seed, n_estimators=stop - first, n_jobs=threads)
    stream = np.random.RandomState(fitted.random_state)
    stream.randint(np.iinfo(np.int32).max, size=first)  # one number for each tree before
    fitted.set_params(random_state=stream).fit(rows, labels)
    columns, trees = _columns(fitted, outputs), [tree.tree_ for tree in fitted.estimators_]
    return {
        unit: _line(trees[at : at + UNIT], columns, outputs)
        for unit, at in zip(units, range(0, len(trees), UNIT), strict=True)
    }


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
    """Units by number, as one vector: how many, then for each its number and its counts of trees, nodes and outputs and
    its arrays."""
    pieces: list[Floats] = [np.array([len(units)], np.float32)]
    for number, unit in sorted(units.items()):
        head = [number, len(unit["roots"]), *unit["value"].shape]
        pieces.append(np.array(head, np.float32))
        pieces += [unit[name].ravel() for name in ("roots", *_TREE_ARRAYS)]
    return np.concatenate(pieces)


def unpack(vector: Floats) -> dict[int, Grown]:
    """What lies behind the last unit does not count. Raises ValueError: it is not what `pack` gives."""
    units: dict[int, Grown] = {}
    at = 0

    def take(count: int) -> Floats:
        nonlocal at
        if at + count > len(vector):
            raise ValueError("trees that end before their end")
        at += count
        return vector[at - count : at]

    def whole(count: int) -> list[int]:
        found = take(count)
        if not ((found >= 0) & (found < MAX_NODES)).all():
            raise ValueError("trees without a number")
        return [int(value) for value in found]

    for _ in range(whole(1)[0]):
        number, trees, nodes, outputs = whole(4)
        unit = {"roots": take(trees)}
        unit |= {name: take(nodes) for name in _TREE_ARRAYS[:-1]}
        unit["value"] = take(nodes * outputs).reshape(nodes, outputs)
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
