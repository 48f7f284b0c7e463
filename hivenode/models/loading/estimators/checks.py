"""What compiled code trusts, looked through before it gets it.

scikit-learn's Cython and C code indexes without bounds checks; it relies on `fit` having written the arrays. A file may
say anything. Each check is of the arrays one class hands to such code; `lies` is called with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from hivenode.errors import Corrupted

Lies = Callable[[str], NoReturn]
_TREE_LEAF = -1
_MOST_SIZE = 1 << 31
_METHODS = frozenset({"predict", "predict_proba", "decision_function", "transform", "predict_log_proba"})
_METRICS = frozenset({
    "euclidean", "l2", "minkowski", "p", "manhattan", "cityblock", "l1", "chebyshev", "infinity", "hamming",
    "canberra", "braycurtis",
})  # fmt: skip


def rebuilt_tree(name: str, arguments: list[Any], state: dict[Any, Any]) -> Any:
    """A `sklearn.tree._tree.Tree` given its arrays by its own `__setstate__`, after a look through all of them.

    Children come after their parents, so every walk ends; features and children exist; values have the shape they are
    read with.

    Raises:
        Corrupted: one of these does not hold.
    """

    def lies(what: str) -> NoReturn:
        raise Corrupted(f"{name} is no sound model: {what}.", fix="Fetch it again from where it was made.")

    from sklearn.tree._tree import NODE_DTYPE, Tree

    if len(arguments) != 3 or not isinstance(arguments[1], np.ndarray):
        lies("a tree made of other things than its sizes")
    features, classes, outputs = int(arguments[0]), arguments[1], int(arguments[2])
    nodes, values = state.get("nodes"), state.get("values")
    if not isinstance(nodes, np.ndarray) or not isinstance(values, np.ndarray):
        lies("a tree without nodes")
    if (
        not 0 < features < _MOST_SIZE
        or classes.dtype.kind not in "iu"
        or classes.shape != (outputs,)
        or not outputs
        or classes.min() < 1
        or classes.max() >= _MOST_SIZE
        or nodes.ndim != 1
        or not len(nodes)
        or values.shape != (len(nodes), outputs, int(classes.max()))
        or values.dtype != np.float64
    ):
        lies("a tree whose sizes do not fit its arrays")
    if nodes.dtype != NODE_DTYPE:
        lies("a tree of another version of scikit-learn, whose nodes have other fields; convert it there")
    left, right = nodes["left_child"], nodes["right_child"]
    check_nodes(nodes["feature"], left, right, left != _TREE_LEAF, features, lies)
    made = Tree(features, classes.astype(np.intp), outputs)
    depth = state.get("max_depth")
    made.__setstate__(
        {
            "max_depth": depth if type(depth) is int and 0 <= depth <= len(nodes) else len(nodes),
            "node_count": len(nodes),
            "nodes": np.ascontiguousarray(nodes),
            "values": np.ascontiguousarray(values),
        }
    )
    return made


def check_nodes(feature: Any, left: Any, right: Any, inner: Any, features: int, lies: Lies) -> None:
    """That inner nodes have two children that come later and exist, and split on a feature that exists."""
    place = np.flatnonzero(inner)
    if not len(place):
        return
    for child in (left[place].astype(np.int64), right[place].astype(np.int64)):
        if (child <= place).any() or (child >= len(inner)).any():
            lies("a tree with a child that does not come after its parent")
    if (feature[place] < 0).any() or (feature[place] >= features).any():
        lies("a tree that splits on a feature that does not exist")


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value < _MOST_SIZE)


def _matrix(value: Any, rows: int | None, columns: int | None) -> bool:
    return (
        isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f"
        and rows in (None, value.shape[0]) and columns in (None, value.shape[1])
    )  # fmt: skip


def _features(made: Any, lies: Lies) -> int:
    given: Any = getattr(made, "n_features_in_", None)
    if not _whole(given):
        lies("a fitted model that does not say how many features it takes")
    return int(given)


def _decision_tree(made: Any, lies: Lies) -> None:
    from sklearn.tree._tree import Tree

    tree = made.__dict__.get("tree_")
    if tree is None:
        return
    if not isinstance(tree, Tree) or tree.n_features != _features(made, lies):
        lies("a tree for another number of features than its model")


def _trees_within(made: Any, lies: Lies) -> list[Any]:
    """The fitted trees of an ensemble, one after the other."""
    held = made.__dict__.get("estimators_", [])
    trees = list(held.ravel()) if isinstance(held, np.ndarray) else held
    if not isinstance(trees, list):
        lies("an ensemble whose members are no list")
    return trees


def _forest(made: Any, lies: Lies) -> None:
    from sklearn.tree import BaseDecisionTree

    for part in _trees_within(made, lies):
        if not isinstance(part, BaseDecisionTree) or part.tree_.n_features != _features(made, lies):
            lies("a forest with a tree for another number of features")


def _bagging(made: Any, lies: Lies) -> None:
    members = _trees_within(made, lies)
    columns = made.__dict__.get("estimators_features_", [])
    if not isinstance(columns, list) or len(columns) != len(members):
        lies("an ensemble whose members have no list of features")
    for part, chosen in zip(members, columns, strict=True):
        wide = _features(part, lies)
        if not isinstance(chosen, np.ndarray) or chosen.shape != (wide,) or wide > _features(made, lies):
            lies("an ensemble with a member for another number of features")


def _gradient_boosting(made: Any, lies: Lies) -> None:
    """`predict_stages` adds the values of tree (i, k) to column k of an array with as many columns as `init_` gives."""
    from sklearn._loss.loss import HalfMultinomialLoss
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.tree import DecisionTreeRegressor

    if "estimators_" not in made.__dict__:
        return
    trees, outputs = made.estimators_, made.__dict__.get("n_trees_per_iteration_")
    if not _whole(outputs) or not isinstance(trees, np.ndarray) or trees.ndim != 2 or trees.shape[1] != outputs:
        lies("boosted trees for another number of outputs")
    for part in trees.ravel():
        if (
            not isinstance(part, DecisionTreeRegressor)
            or part.tree_.n_features != _features(made, lies)
            or part.tree_.value.shape[1:] != (1, 1)
        ):
            lies("boosted trees of other sizes than their model")
    first = made.__dict__.get("init_")
    several = isinstance(made.__dict__.get("_loss"), HalfMultinomialLoss)
    if several != (outputs > 1) or (several and made._loss.n_classes != outputs):
        lies("boosted trees for another number of classes than their loss")
    if isinstance(first, DummyClassifier):
        prior = first.__dict__.get("class_prior_")
        if not isinstance(prior, np.ndarray) or prior.shape != (max(2, outputs),) or first.strategy != "prior":
            lies("boosted trees that begin with another number of classes")
    elif not (isinstance(first, DummyRegressor) or (isinstance(first, str) and first == "zero")) or several:
        lies("boosted trees that begin with another model, which is not rebuilt here")


def _predictor(made: Any, lies: Lies) -> None:
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    nodes = made.__dict__.get("nodes")
    if not isinstance(nodes, np.ndarray) or nodes.dtype != PREDICTOR_RECORD_DTYPE or nodes.ndim != 1 or not len(nodes):
        lies("a tree of another version of scikit-learn, whose nodes have other fields; convert it there")
    if nodes["is_categorical"].any():
        lies("splits on categories, which are not rebuilt here")
    for key in ("binned_left_cat_bitsets", "raw_left_cat_bitsets"):
        sets = made.__dict__.get(key)
        if not isinstance(sets, np.ndarray) or sets.dtype != np.uint32 or sets.ndim != 2:
            lies("a tree whose sets of categories are none")
    check_nodes(nodes["feature_idx"], nodes["left"], nodes["right"], nodes["is_leaf"] == 0, _MOST_SIZE, lies)


def _hist_boosting(made: Any, lies: Lies) -> None:
    from sklearn.ensemble._hist_gradient_boosting.binning import _BinMapper
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

    if "_predictors" not in made.__dict__:
        return
    features, mapper = _features(made, lies), made.__dict__.get("_bin_mapper")
    known = mapper.__dict__.get("is_categorical_") if isinstance(mapper, _BinMapper) else None
    if not isinstance(known, np.ndarray) or known.shape != (features,) or known.any():
        lies("categorical features, which are not rebuilt here")
    if made.__dict__.get("_preprocessor") is not None:
        lies("a transformer of categories, which is not rebuilt here")
    for stage in made._predictors:
        for part in stage:
            if not isinstance(part, TreePredictor):
                lies("an ensemble of something else than trees")
            nodes = part.nodes[part.nodes["is_leaf"] == 0]
            if len(nodes) and nodes["feature_idx"].max() >= features:
                lies("a tree that splits on a feature that does not exist")


def _support_vectors(made: Any, lies: Lies) -> None:
    """libsvm's model as `libsvm_helper.c` fills it in."""
    own = made.__dict__
    if "support_vectors_" not in own:
        return
    features = _features(made, lies)
    vectors, counts, dual = own["support_vectors_"], own.get("_n_support"), own.get("_dual_coef_")
    if own.get("_sparse") is not False or own.get("kernel") not in ("linear", "poly", "rbf", "sigmoid"):
        lies("a support vector machine with sparse data or a kernel of its own, which is not rebuilt here")
    if (
        not isinstance(counts, np.ndarray)
        or counts.dtype != np.int32
        or counts.ndim != 1
        or not 2 <= len(counts) < 4096
    ):
        lies("a support vector machine without the numbers of its vectors")
    classifier = type(made)._impl in ("c_svc", "nu_svc")
    groups = len(counts)
    total = int(counts.astype(np.int64).sum()) if classifier else int(counts[0])
    pairs = groups * (groups - 1) // 2
    support, intercept = own.get("support_"), own.get("_intercept_")
    if (
        counts.min() < 0
        or not _matrix(vectors, total, features)
        or vectors.dtype != np.float64
        or not _matrix(dual, groups - 1, total)
        or dual.dtype != np.float64
        or not isinstance(support, np.ndarray)
        or support.shape != (total,)
        or not isinstance(intercept, np.ndarray)
        or intercept.shape != (pairs,)
        or intercept.dtype != np.float64
        or (len(own.get("classes_", ())) if classifier else 2) != groups
    ):
        lies("a support vector machine whose arrays do not fit each other")
    for key in ("_probA", "_probB"):
        scale = own.get(key)
        if not isinstance(scale, np.ndarray) or scale.dtype != np.float64 or scale.shape not in ((0,), (pairs,)):
            lies("a support vector machine whose probabilities do not fit it")
    for key in ("support_vectors_", "_dual_coef_", "_intercept_", "support_"):
        own[key] = np.ascontiguousarray(own[key])


def _neighbours(made: Any, lies: Lies) -> None:
    """Trees of neighbours are built anew from the points; labels index an array of votes."""
    from sklearn.neighbors import BallTree, KDTree

    own = made.__dict__
    if "_fit_X" not in own:
        return
    points, number = own["_fit_X"], own.get("n_samples_fit_")
    if not _whole(number) or not _matrix(points, number, _features(made, lies)) or not np.isfinite(points).all():
        lies("neighbours that are no finite points")
    metric, settings, leaf = own.get("effective_metric_"), own.get("effective_metric_params_"), own.get("leaf_size")
    if (
        not isinstance(metric, str)
        or metric not in _METRICS
        or not isinstance(settings, dict)
        or not set(settings) <= {"p"}
        or not all(isinstance(part, int | float) for part in settings.values())
        or not _whole(leaf)
    ):
        lies("neighbours by a metric that is not rebuilt here")
    own["_fit_X"] = points = np.ascontiguousarray(points)
    method = own.get("_fit_method")
    if method not in ("brute", "kd_tree", "ball_tree"):
        lies("neighbours found in an unknown way")
    own["_tree"] = None
    if method != "brute":
        own["_tree"] = {"kd_tree": KDTree, "ball_tree": BallTree}[method](points, int(leaf), metric=metric, **settings)
    if not _whole(own.get("n_neighbors")):
        lies("neighbours without their number")
    if "classes_" in own:
        labels = own.get("_y")
        sets = own["classes_"] if isinstance(own["classes_"], list) else [own["classes_"]]
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape[0] != number:
            lies("neighbours without their labels")
        columns = labels.reshape(int(number), -1)
        if columns.shape[1] != len(sets) or any(
            columns[:, place].min() < 0 or columns[:, place].max() >= len(names) for place, names in enumerate(sets)
        ):
            lies("neighbours with labels that do not exist")


def _kmeans(made: Any, lies: Lies) -> None:
    own = made.__dict__
    if "cluster_centers_" in own:
        if not _matrix(own["cluster_centers_"], None, _features(made, lies)):
            lies("centres of another number of features")
        own["cluster_centers_"] = np.ascontiguousarray(own["cluster_centers_"])


def _one_hot(made: Any, lies: Lies) -> None:
    """The columns of the matrix it makes follow from its categories."""
    own = made.__dict__
    if "categories_" not in own:
        return
    kept = own["categories_"]
    if not isinstance(kept, list) or not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in kept):
        lies("categories that are no arrays")
    if own.get("_infrequent_enabled"):
        lies("categories taken together as infrequent, which are not rebuilt here")
    if "_n_features_outs" not in own:
        return
    dropped = own.get("drop_idx_")
    drops = [None] * len(kept) if dropped is None else list(dropped)
    if len(drops) != len(kept) or any(
        drop is not None and not (_whole(drop, 0) and drop < len(part)) for drop, part in zip(drops, kept, strict=True)
    ):
        lies("a category to drop that does not exist")
    again = own.get("_drop_idx_after_grouping")
    if (again is None) != (dropped is None) or (again is not None and list(again) != drops):
        lies("categories to drop that do not fit each other")
    wide = [len(part) - (drop is not None) for drop, part in zip(drops, kept, strict=True)]
    if list(own["_n_features_outs"]) != wide:
        lies("another number of columns than its categories make")


def _words(made: Any, lies: Lies) -> None:
    own = made.__dict__
    if own.get("input", "content") != "content":
        lies("texts that would be read from files named in the data")
    known = own.get("vocabulary_")
    if known is not None and (
        not isinstance(known, dict)
        or not all(isinstance(word, str) and _whole(place, 0) for word, place in known.items())
        or sorted(known.values()) != list(range(len(known)))
    ):
        lies("a vocabulary that does not number its words")


def _stacking(made: Any, lies: Lies) -> None:
    named = made.__dict__.get("stack_method_", [])
    if not isinstance(named, list) or not all(isinstance(method, str) and method in _METHODS for method in named):
        lies("a method to call that is none of predicting")


def _columns(made: Any, lies: Lies) -> None:
    if not isinstance(made.__dict__.get("verbose_feature_names_out", True), bool):
        lies("a pattern for names, which is not rebuilt here")


def _selection(made: Any, lies: Lies) -> None:
    getter = made.__dict__.get("importance_getter", "auto")
    if not isinstance(getter, str) or not getter.removesuffix("_").isidentifier() or getter.startswith("_"):
        lies("a way to importances that leads elsewhere")


def _isotonic(made: Any, lies: Lies) -> None:
    """What interpolates is made anew from the thresholds."""
    own = made.__dict__
    if "X_thresholds_" not in own:
        return
    given, taken = own["X_thresholds_"], own.get("y_thresholds_")
    if not all(isinstance(part, np.ndarray) and part.ndim == 1 and part.dtype.kind == "f" for part in (given, taken)):
        lies("thresholds that are no numbers")
    if len(given) != len(taken) or not len(given) or (np.diff(given) < 0).any():
        lies("thresholds out of order")
    made._build_f(given, taken)


CHECKS: dict[str, Callable[[Any, Lies], None]] = {
    "BaseDecisionTree": _decision_tree, "BaseForest": _forest, "BaseBagging": _bagging,
    "BaseGradientBoosting": _gradient_boosting, "TreePredictor": _predictor,
    "BaseHistGradientBoosting": _hist_boosting, "BaseLibSVM": _support_vectors, "NeighborsBase": _neighbours,
    "_BaseKMeans": _kmeans, "OneHotEncoder": _one_hot, "OrdinalEncoder": _one_hot, "_VectorizerMixin": _words,
    "_BaseStacking": _stacking, "ColumnTransformer": _columns, "SelectFromModel": _selection, "RFE": _selection,
    "IsotonicRegression": _isotonic,
}  # fmt: skip
"""By the name of the class, or of one it derives from."""
