"""XGBoost's JSON and UBJSON as plain arrays.

https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hivenode.errors import InvalidInput
from hivenode.models.identify.formats import jsons, ubjson
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.readers.xgboost import UBJ
from hivenode.models.identify.source import LARGEST_READ, Source
from hivenode.models.loading import trees
from hivenode.models.loading.trees import Linear, Numbers, Trees, broken

_Link = Callable[[Numbers], Numbers]
LINKS: dict[str, _Link] = {
    "binary:logistic": trees.sigmoid, "reg:logistic": trees.sigmoid, "binary:logitraw": trees.identity,
    "binary:hinge": trees.above_zero, "multi:softprob": trees.softmax, "multi:softmax": trees.largest,
    "count:poisson": trees.exponential, "reg:gamma": trees.exponential, "reg:tweedie": trees.exponential,
    "survival:cox": trees.exponential, "survival:aft": trees.exponential, "reg:squarederror": trees.identity,
    "reg:squaredlogerror": trees.identity, "reg:pseudohubererror": trees.identity,
    "reg:absoluteerror": trees.identity, "reg:quantileerror": trees.identity, "rank:pairwise": trees.identity,
    "rank:ndcg": trees.identity, "rank:map": trees.identity,
}  # fmt: skip
"""Of an objective's sums to predictions."""
_NO_CHILD = -1
MOST_OUTPUTS = 1 << 16


def read(source: Source, *, best: bool = False) -> Trees | Linear:
    """The model in a file, or in the buffer of a pickled Booster.

    Args:
        best: use the rounds up to the best one, where training stopped early, as scikit-learn's interface does.

    Raises:
        Corrupted: it is damaged, or its trees refer to what is not there.
        InvalidInput: it uses something the evaluator does not know; the sentence names it.
    """
    raw = b"".join(source.read(at, min(LARGEST_READ, source.size - at)) for at in range(0, source.size, LARGEST_READ))
    name = source.name
    if UBJ.match(raw[:64]):
        document = ubjson.parse(Window(source, source.size, name), name)
    elif raw[:4] == b"binf":
        raise _unknown(name, "XGBoost's old binary format", "Save it as .ubj with the version that wrote it.")
    else:
        document = jsons.table(raw, name)
    learner = jsons.inner(document.get("Model", document), "learner")
    booster = jsons.inner(learner, "gradient_booster")
    stated = jsons.inner(learner, "learner_model_param")
    features = _whole(stated.get("num_feature"), name)
    outputs = max(1, _whole(stated.get("num_class"), name), _whole(stated.get("num_target", "1"), name))
    objective = jsons.text(jsons.inner(learner, "objective"), "name") or ""
    link = LINKS.get(objective)
    if link is None:
        raise _unknown(
            name, f"the objective {objective[:60]!r}", "Predict with xgboost itself, in its own environment."
        )
    if outputs > MOST_OUTPUTS:
        broken(name, f"{outputs} outputs")
    base = _base(stated.get("base_score"), objective, outputs, name)
    if booster.get("name") == "gblinear":
        return _linear(raw, jsons.inner(booster, "model"), features, base, link, name)
    inner = jsons.inner(booster, "model") or jsons.inner(jsons.inner(booster, "gbtree"), "model")
    given, groups = inner.get("trees"), _array(raw, inner.get("tree_info"), name).astype(np.int64)
    if not isinstance(given, list) or groups.shape != (len(given),) or ((groups < 0) | (groups >= outputs)).any():
        broken(name, "trees that belong to no output")
    weights = np.ones(len(given), np.float32)
    if booster.get("name") == "dart":
        weights = _array(raw, booster.get("weight_drop"), name).astype(np.float32)
        if weights.shape != (len(given),):
            broken(name, "another number of weights than of trees")
    made = tuple(
        _tree(raw, part, int(group), weight, features, name)
        for part, group, weight in zip(given, groups, weights, strict=True)
    )
    if best:
        made = made[: _best(raw, learner, inner, len(made), name)]
    return Trees(made, features, base, link, inclusive=False, dtype=np.float32)


def _best(raw: bytes, learner: dict[str, Any], inner: dict[str, Any], trees_: int, name: str) -> int:
    """How many trees the rounds up to the best one have."""
    stated = jsons.inner(learner, "attributes").get("best_iteration")
    if stated is None:
        return trees_
    ends, last = _array(raw, inner.get("iteration_indptr"), name), _whole(stated, name) + 1
    return int(ends[last]) if last < len(ends) else trees_


def _tree(raw: bytes, part: Any, group: int, weight: np.float32, features: int, name: str) -> trees.Tree:
    if not isinstance(part, dict):
        broken(name, "a tree that is none")
    if _whole(jsons.inner(part, "tree_param").get("size_leaf_vector", "1"), name) > 1:
        raise _unknown(name, "trees with a vector at each leaf", "Train with multi_strategy=one_output_per_tree.")
    kinds = _array(raw, part.get("split_type", []), name)
    if kinds.size and kinds.any():
        raise _unknown(name, "splits on categories", "Predict with xgboost itself, in its own environment.")
    left = _array(raw, part.get("left_children"), name).astype(np.int64)
    right = _array(raw, part.get("right_children"), name).astype(np.int64)
    if left.shape != right.shape or ((left < 0) != (right < 0)).any() or (left < _NO_CHILD).any():
        broken(name, "nodes with one child")
    conditions = _array(raw, part.get("split_conditions"), name).astype(np.float32)
    defaults = _array(raw, part.get("default_left"), name).astype(bool)
    return trees.tree(
        name,
        features,
        feature=_array(raw, part.get("split_indices"), name).astype(np.int64),
        threshold=conditions,
        left=left,
        right=right,
        missing=np.where(defaults, trees.TO_THE_LEFT, trees.TO_THE_RIGHT),
        value=conditions * weight,
        group=group,
        dtype=np.float32,
    )


def _linear(raw: bytes, model: dict[str, Any], features: int, base: Numbers, link: _Link, name: str) -> Linear:
    flat = _array(raw, model.get("weights"), name).astype(np.float32)
    if flat.size != (features + 1) * len(base):
        broken(name, f"{flat.size} weights for {features} features")
    table = flat.reshape(features + 1, len(base))
    return Linear(table[:-1], table[-1] + base, link)


def _base(given: Any, objective: str, outputs: int, name: str) -> Numbers:
    """The base score, one a model or one an output, in the space of the sums."""
    text = str(given if given is not None else "0.5").strip("[] ")
    try:
        base = np.array([float(part) for part in text.split(",") if part.strip()], np.float32)
    except ValueError:
        broken(name, "a base score that is no number")
    if base.size not in (1, outputs):
        broken(name, "another number of base scores than of outputs")
    base = np.broadcast_to(base, outputs).copy()
    if objective in {"binary:logistic", "reg:logistic", "binary:logitraw"}:
        if not ((base > 0) & (base < 1)).all():
            broken(name, "a base score that is no probability")
        base = -np.log(1 / base - 1)
    elif LINKS[objective] is trees.exponential:
        if not (base > 0).all():
            broken(name, "a base score that is not positive")
        base = np.log(base)
    return base.astype(np.float32)


def _array(raw: bytes, given: Any, name: str) -> Numbers:
    if isinstance(given, ubjson.Typed):
        return np.frombuffer(raw, np.dtype(given.dtype).newbyteorder(">"), given.count, given.offset)
    if isinstance(given, list):
        try:
            made = np.array(given, np.float64)
        except (TypeError, ValueError):
            broken(name, "an array of something else than numbers")
        if made.ndim == 1:
            return made
    return broken(name, "an array that is none")


def _whole(text: Any, name: str) -> int:
    given = str(text if text is not None else 0)
    if not given.isdecimal() or len(given) > 9:
        broken(name, f"a size of {given[:20]!r}")
    return int(given)


def _unknown(name: str, what: str, fix: str) -> InvalidInput:
    return InvalidInput(f"{name} uses {what}, which is not evaluated here.", fix=fix)
