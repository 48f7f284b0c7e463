"""Boosted trees as plain arrays, and a small evaluator: no library of the file's own is asked.

Every index is checked when the trees are made, so that a lying file cannot send the evaluator anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from hivenode.errors import Corrupted, InvalidInput

Numbers = npt.NDArray[Any]
TO_THE_LEFT, TO_THE_RIGHT, ZERO_IS_MISSING, NAN_IS_ZERO = 1, 2, 4, 8
"""What becomes of a missing value at a node; what counts as missing there."""
NEARLY_ZERO = float(np.float32(1e-35))


@dataclass(frozen=True)
class Tree:
    """One tree: arrays with an element per node, the root first.

    Attributes:
        feature, threshold: what is compared, at inner nodes.
        left, right: nodes; -1 at leaves.
        missing: flags, see above.
        value: at leaves.
        group: the output it adds to.
    """

    feature: Numbers
    threshold: Numbers
    left: Numbers
    right: Numbers
    missing: Numbers
    value: Numbers
    group: int


@dataclass(frozen=True)
class Trees:
    """An ensemble.

    Attributes:
        features: columns of the input.
        base: what the sum begins with, for each output.
        link: of the sums (rows, outputs) to the prediction.
        inclusive: whether `x <= threshold` goes left (LightGBM) or `x < threshold` (XGBoost).
        dtype: of inputs, thresholds and sums.
    """

    trees: tuple[Tree, ...]
    features: int
    base: Numbers
    link: Callable[[Numbers], Numbers]
    inclusive: bool
    dtype: Any
    average: bool = False

    def predict(self, rows: npt.ArrayLike) -> Numbers:
        """What the library's own `Booster.predict` answers: (rows,) or (rows, outputs).

        Raises:
            InvalidInput: the rows have another number of columns.
        """
        table = _table(rows, self.features, self.dtype)
        sums = np.tile(self.base.astype(self.dtype), (len(table), 1))
        for tree in self.trees:
            sums[:, tree.group] += tree.value[_leaves(tree, table, self.inclusive)]
        if self.average and self.trees:
            sums /= len(self.trees) // sums.shape[1]
        return self.link(sums)


@dataclass(frozen=True)
class Linear:
    """XGBoost's linear booster: `weights` (features, outputs), `bias` (outputs) with the base score in it."""

    weights: Numbers
    bias: Numbers
    link: Callable[[Numbers], Numbers]

    def predict(self, rows: npt.ArrayLike) -> Numbers:
        """See `Trees.predict`."""
        table = _table(rows, len(self.weights), np.float32)
        return self.link(table @ self.weights + self.bias)


@dataclass(frozen=True)
class Labels:
    """A classifier: trees, and what its classes are called."""

    trees: Trees | Linear
    classes: Numbers

    def predict_proba(self, rows: npt.ArrayLike) -> Numbers:
        """Shares of each class: (rows, classes)."""
        found = self.trees.predict(rows)
        return np.stack([1 - found, found], axis=1) if found.ndim == 1 else found

    def predict(self, rows: npt.ArrayLike) -> Numbers:
        """The label of each row."""
        labels: Numbers = self.classes[self.predict_proba(rows).argmax(axis=1)]
        return labels


def tree(
    name: str,
    features: int,
    *,
    feature: Sequence[int] | Numbers,
    threshold: Sequence[float] | Numbers,
    left: Sequence[int] | Numbers,
    right: Sequence[int] | Numbers,
    missing: Sequence[int] | Numbers,
    value: Sequence[float] | Numbers,
    group: int,
    dtype: Any,
) -> Tree:
    """One tree, every index checked.

    Args:
        name: of the file, for errors.

    Raises:
        Corrupted: arrays of different lengths, a node or feature that does not exist, a node with two parents.
    """
    made = Tree(
        np.asarray(feature, np.int64),
        np.asarray(threshold, dtype),
        np.asarray(left, np.int64),
        np.asarray(right, np.int64),
        np.asarray(missing, np.uint8),
        np.asarray(value, dtype),
        group,
    )
    size = len(made.left)
    arrays = (made.feature, made.threshold, made.left, made.right, made.missing, made.value)
    if not size or any(part.shape != (size,) for part in arrays):
        broken(name, "a tree whose arrays differ in length")
    inner = made.left >= 0
    below = np.concatenate([made.left[inner], made.right[inner]])
    if below.size and (below.min() < 1 or below.max() >= size or np.bincount(below).max() > 1):
        broken(name, "a tree whose nodes do not form one")
    if inner.any() and (made.feature[inner].min() < 0 or made.feature[inner].max() >= features):
        broken(name, f"a split on a feature that is none of its {features}")
    return made


def broken(name: str, what: str) -> NoReturn:
    raise Corrupted(f"{name} is no sound model: it has {what}.", fix="Fetch it again, or save it again.")


def _table(rows: npt.ArrayLike, features: int, dtype: Any) -> Numbers:
    table = np.asarray(rows, dtype)
    if table.ndim != 2 or table.shape[1] != features:
        shape = "x".join(map(str, table.shape))
        raise InvalidInput(
            f"The input is {shape}; the model takes rows of {features}.", fix=f"Give (rows, {features})."
        )
    return table


def _leaves(made: Tree, table: Numbers, inclusive: bool) -> Numbers:
    """The leaf of each row. A node has one parent at most and the root has none, so every walk ends."""
    at = np.zeros(len(table), np.int64)
    moving = np.arange(len(table)) if made.left[0] >= 0 else np.empty(0, np.int64)
    while moving.size:
        node = at[moving]
        x = table[moving, made.feature[node]]
        flags = made.missing[node]
        lost = np.isnan(x)
        zeroed = lost & (flags & NAN_IS_ZERO > 0)
        x = np.where(zeroed, 0, x)
        lost &= ~zeroed
        lost |= (flags & ZERO_IS_MISSING > 0) & (np.abs(x) <= NEARLY_ZERO)
        less = x <= made.threshold[node] if inclusive else x < made.threshold[node]
        less = np.where(
            lost & (flags & TO_THE_LEFT > 0), True, np.where(lost & (flags & TO_THE_RIGHT > 0), False, less)
        )
        at[moving] = np.where(less, made.left[node], made.right[node])
        moving = moving[made.left[at[moving]] >= 0]
    return at


# links: sums (rows, outputs) -> predictions


def identity(sums: Numbers) -> Numbers:
    return sums[:, 0] if sums.shape[1] == 1 else sums


def sigmoid(sums: Numbers) -> Numbers:
    return identity(1 / (1 + np.exp(-sums)))


def exponential(sums: Numbers) -> Numbers:
    return identity(np.exp(sums))


def softmax(sums: Numbers) -> Numbers:
    raised = np.exp(sums - sums.max(axis=1, keepdims=True))
    shares: Numbers = raised / raised.sum(axis=1, keepdims=True)
    return shares


def largest(sums: Numbers) -> Numbers:
    winners: Numbers = sums.argmax(axis=1).astype(sums.dtype)
    return winners


def above_zero(sums: Numbers) -> Numbers:
    return identity((sums > 0).astype(sums.dtype))


def signed_square(sums: Numbers) -> Numbers:
    return identity(np.sign(sums) * sums * sums)


def softplus(sums: Numbers) -> Numbers:
    return identity(np.log1p(np.exp(sums)))
