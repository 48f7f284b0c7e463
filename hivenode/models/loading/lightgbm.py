"""LightGBM's text format as plain arrays. After `Tree::ToString` and `Tree::NumericalDecision` of LightGBM 4."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hivenode.errors import InvalidInput
from hivenode.models.identify.source import LARGEST_READ, Source
from hivenode.models.loading import trees
from hivenode.models.loading.trees import Numbers, Trees, broken

_Link = Callable[[Numbers], Numbers]
LINKS: dict[str, _Link] = {
    "binary": trees.sigmoid, "cross_entropy": trees.sigmoid, "cross_entropy_lambda": trees.softplus,
    "multiclass": trees.softmax, "multiclassova": trees.sigmoid, "poisson": trees.exponential,
    "gamma": trees.exponential, "tweedie": trees.exponential, "regression": trees.identity,
    "regression_l1": trees.identity, "huber": trees.identity, "fair": trees.identity, "quantile": trees.identity,
    "mape": trees.identity, "lambdarank": trees.identity, "rank_xendcg": trees.identity, "custom": trees.identity,
}  # fmt: skip
"""Of an objective's sums to predictions."""
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
MOST_OUTPUTS = 1 << 16


def read(source: Source, *, rounds: int | None = None) -> Trees:
    """The model in a file, or in the text of a pickled Booster.

    Args:
        rounds: how many are used, where training stopped early; None: all.

    Raises:
        Corrupted: it is damaged, or its trees refer to what is not there.
        InvalidInput: it uses something the evaluator does not know; the sentence names it.
    """
    name = source.name
    raw = b"".join(source.read(at, min(LARGEST_READ, source.size - at)) for at in range(0, source.size, LARGEST_READ))
    head, *blocks = raw.decode("utf-8", "replace").split("\n\nTree=")
    header = _lines(head)
    features = _whole(header.get("max_feature_idx", ""), name) + 1
    outputs = _whole(header.get("num_tree_per_iteration", "1"), name)
    if not 0 < outputs <= MOST_OUTPUTS:
        broken(name, f"{outputs} outputs")
    made = tuple(
        _tree(_lines(block.split("\nend of trees")[0]), number % outputs, features, name)
        for number, block in enumerate(blocks)
    )
    if len(made) != len(header.get("tree_sizes", "").split()) or len(made) % outputs:
        broken(name, f"{len(made)} trees where others are stated")
    return Trees(
        made[: rounds * outputs] if rounds is not None else made,
        features,
        np.zeros(outputs),
        _link(header.get("objective", "custom"), name),
        inclusive=True,
        dtype=np.float64,
        average="\naverage_output\n" in head + "\n",
    )


def _link(stated: str, name: str) -> _Link:
    objective, *settings = stated.split()
    link = LINKS.get(objective)
    if link is None or (objective == "regression" and settings not in ([], ["sqrt"])):
        raise _unknown(name, f"the objective {stated[:60]!r}")
    if settings == ["sqrt"]:
        return trees.signed_square
    steepness = next((part.partition(":")[2] for part in settings if part.startswith("sigmoid:")), "1")
    try:
        factor = float(steepness)
    except ValueError:
        broken(name, f"a sigmoid of {steepness[:20]!r}")
    return link if factor == 1 else lambda sums: link(factor * sums)


def _tree(lines: dict[str, str], group: int, features: int, name: str) -> trees.Tree:
    """LightGBM numbers splits and leaves apart, `~leaf` for a child that is one; here leaves follow the splits."""
    leaves = _whole(lines.get("num_leaves", ""), name)
    if leaves < 1 or lines.get("is_linear", "0") != "0":
        raise _unknown(name, "trees with linear models at their leaves")
    splits = leaves - 1
    values = _numbers(lines, "leaf_value", leaves, name)
    if not splits:
        return trees.tree(
            name, features, feature=[0], threshold=[0.0], left=[-1], right=[-1], missing=[0], value=values,
            group=group, dtype=np.float64,
        )  # fmt: skip
    kinds = _numbers(lines, "decision_type", splits, name).astype(np.int64)
    if (kinds & _CATEGORICAL).any():
        raise _unknown(name, "splits on categories")
    children = [_numbers(lines, side, splits, name).astype(np.int64) for side in ("left_child", "right_child")]
    if any((child < -leaves).any() or (child >= splits).any() or (child == 0).any() for child in children):
        broken(name, "a node that does not exist")
    left, right = (np.where(child >= 0, child, splits + ~child) for child in children)
    absent = kinds >> 2 & 3
    missing = np.where(kinds & _DEFAULT_LEFT, trees.TO_THE_LEFT, trees.TO_THE_RIGHT)
    missing = missing | np.where(absent == _MISSING_ZERO, trees.ZERO_IS_MISSING, 0)
    missing = missing | np.where(absent != _MISSING_NAN, trees.NAN_IS_ZERO, 0)
    none = np.full(leaves, -1)
    return trees.tree(
        name,
        features,
        feature=np.r_[_numbers(lines, "split_feature", splits, name), np.zeros(leaves)].astype(np.int64),
        threshold=np.r_[_numbers(lines, "threshold", splits, name), np.zeros(leaves)],
        left=np.r_[left, none],
        right=np.r_[right, none],
        missing=np.r_[missing, np.zeros(leaves, np.int64)],
        value=np.r_[np.zeros(splits), values],
        group=group,
        dtype=np.float64,
    )


def _lines(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.split("\n") if "=" in line)


def _numbers(lines: dict[str, str], key: str, count: int, name: str) -> Numbers:
    try:
        found = np.array([float(part) for part in lines.get(key, "").split()])
    except ValueError:
        broken(name, f"{key} of something else than numbers")
    if found.shape != (count,):
        broken(name, f"{len(found)} of {key} where {count} belong")
    return found


def _whole(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        broken(name, f"a size of {text[:20]!r}")
    return int(text)


def _unknown(name: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"{name} uses {what}, which is not evaluated here.", fix="Predict with lightgbm itself, in its own environment."
    )
