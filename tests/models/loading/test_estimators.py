"""Estimators rebuilt from symbolic state predict exactly what unpickled ones do, and lying ones are refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivenode.errors import Corrupted, Exhausted, Refused
from hivenode.models.loading import load

joblib = pytest.importorskip("joblib")
pytest.importorskip("sklearn")

SAMPLES = Path(__file__).parents[1] / "samples"
TABULAR = SAMPLES / "tabular"
RNG = np.random.default_rng(3)
X = np.abs(RNG.normal(size=(90, 4)))
Y = np.digitize(X[:, 0], [0.4, 1.0])
YR = X @ np.array([1.0, -2.0, 0.5, 3.0])
METHODS = ("predict", "predict_proba", "decision_function", "transform", "score_samples")
BOOSTERS = ("xgb", "lightgbm", "catboost")
PICKLED = sorted(
    path.name
    for path in TABULAR.iterdir()
    if path.suffix in {".joblib", ".pkl"} and not path.name.startswith((*BOOSTERS, "bundle"))
)


def rows_for(name: str) -> Any:
    if name.startswith("text"):
        return ["good film", "bad bad", "unheard of"]
    return np.c_[X[:, :2], Y] if name.startswith("columns") else X.astype(np.float32)


def answers(model: Any, rows: Any) -> dict[str, Any]:
    """What a model says by each of its methods."""
    found = {}
    for method in METHODS:
        if hasattr(model, method):
            made = getattr(model, method)(rows)
            found[method] = made.toarray() if hasattr(made, "toarray") else made
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(np.asarray(part), np.asarray(other[name])) for name, part in one.items())


@pytest.mark.parametrize("name", PICKLED)
def test_a_sample_predicts_the_same(name: str) -> None:
    theirs = joblib.load(TABULAR / name)
    rows = rows_for(name)
    ours = load(TABULAR / name).model
    assert type(ours) is type(theirs)
    said = answers(theirs, rows)
    assert said or name == "dbscan.joblib"
    assert same(answers(ours, rows), said)


@pytest.mark.parametrize("name", ["forest.skops", "pipeline.skops"])
def test_skops_predicts_what_was_fitted(name: str) -> None:
    """Against the parameters in the file itself: the library that reads it need not be here."""
    model = load(TABULAR / name).model
    shares = model.predict_proba(X)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert np.array_equal(model.predict(X), model.classes_[shares.argmax(axis=1)])
    try:
        from skops import io
    except ImportError:
        return
    theirs = io.load(TABULAR / name, trusted=io.get_untrusted_types(file=TABULAR / name))
    assert same(answers(model, X), answers(theirs, X))


def freshly_fitted() -> dict[str, Any]:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import (
        AdaBoostClassifier,
        BaggingClassifier,
        ExtraTreesRegressor,
        GradientBoostingClassifier,
        HistGradientBoostingRegressor,
        IsolationForest,
    )
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import SelectKBest
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OneHotEncoder, PolynomialFeatures
    from sklearn.svm import SVC, SVR, OneClassSVM

    few = {"n_estimators": 3, "random_state": 0}
    return {
        "adaboost": AdaBoostClassifier(**few).fit(X, Y),
        "bagging": BaggingClassifier(max_features=0.5, **few).fit(X, Y),
        "extra": ExtraTreesRegressor(max_depth=4, **few).fit(X, np.c_[YR, -YR]),
        "boosting": GradientBoostingClassifier(max_depth=2, **few).fit(X, Y),
        "hist": HistGradientBoostingRegressor(max_iter=4).fit(X, YR),
        "odd": IsolationForest(max_features=0.5, **few).fit(X),
        "sgd": SGDClassifier(random_state=0).fit(X, Y),
        "rest": OneVsRestClassifier(SVC()).fit(X, Y),
        "svr": SVR().fit(X, YR),
        "one": OneClassSVM(kernel="poly").fit(X),
        "ball": KNeighborsClassifier(algorithm="ball_tree", weights="distance").fit(X, Y),
        "brute": KNeighborsClassifier(algorithm="brute").fit(X, Y),
        "steps": make_pipeline(FunctionTransformer(np.log1p), PolynomialFeatures(), SelectKBest(k=4),
                               LogisticRegression()).fit(X, Y),
        "bins": make_pipeline(KBinsDiscretizer(3), LogisticRegression()).fit(X, Y),
        "hot": make_pipeline(
            ColumnTransformer([("a", OneHotEncoder(drop="first"), [0])], remainder="passthrough"), LogisticRegression()
        ).fit(np.c_[Y, X], Y),
        "words": make_pipeline(CountVectorizer(), MultinomialNB()).fit(["a bird", "the fish", "a fish"], [0, 1, 1]),
        "isotonic": IsotonicRegression(out_of_bounds="clip").fit(X[:, 0], YR),
    }  # fmt: skip


def test_estimators_freshly_fitted(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = freshly_fitted()
    for name, theirs in fitted.items():
        rows: Any = {"hot": np.c_[Y, X], "words": ["a bird", "fish fish"], "isotonic": X[:, 0]}.get(name, X)
        for path, save in ((tmp_path / f"{name}.joblib", joblib.dump), (tmp_path / f"{name}.pkl", dump)):
            save(theirs, path)
            assert same(answers(load(path).model, rows), answers(theirs, rows)), name


def dump(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def test_what_predicting_does_not_need_is_named() -> None:
    loaded = load(TABULAR / "mlp_classifier.joblib")
    assert set(loaded.left_out) == {"MLPClassifier._random_state", "MLPClassifier._optimizer"}


def test_a_bundle_comes_as_it_is() -> None:
    bundle = load(TABULAR / "bundle.pkl").model
    assert bundle["version"] == 3
    assert bundle["model"].predict(bundle["scaler"].transform(X)).shape == (90,)
    table = load(SAMPLES / "agents" / "q_table.pkl").model
    assert np.array_equal(table, pickle.loads((SAMPLES / "agents" / "q_table.pkl").read_bytes()))


def test_threads_are_not_the_files_to_choose(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    made = RandomForestClassifier(n_estimators=2).fit(X, Y)
    made.n_jobs = 10_000
    joblib.dump(made, tmp_path / "m.joblib")
    assert load(tmp_path / "m.joblib").model.n_jobs is None


@pytest.mark.parametrize("name", ["forest.joblib", "forest_xz.joblib", "forest.skops"])
def test_the_budget_holds(name: str) -> None:
    with pytest.raises(Exhausted, match="budget"):
        load(TABULAR / name, budget=1_000)


# what is not rebuilt


def test_a_foreign_class_is_named_with_what_to_do(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer

    dump({"model": FunctionTransformer(Path.exists)}, tmp_path / "m.pkl")
    with pytest.raises(Refused, match="pathlib") as refused:
        load(tmp_path / "m.pkl")
    assert "hivenode convert" in refused.value.fix


def test_a_known_class_that_is_not_rebuilt_is_named(tmp_path: Path) -> None:
    from sklearn.cluster import Birch

    dump(Birch().fit(X), tmp_path / "m.pkl")
    with pytest.raises(Refused, match="Birch"):
        load(tmp_path / "m.pkl")


# lies: each would have compiled code read or write where it must not, or call what it should not


def tampered_tree(change: Callable[[Any], None]) -> Any:
    from sklearn.tree import DecisionTreeRegressor
    from sklearn.tree._tree import Tree

    model = DecisionTreeRegressor(max_depth=3).fit(X, YR)
    state = model.tree_.__getstate__()
    state["nodes"] = state["nodes"].copy()
    change(state["nodes"])
    made = Tree(4, np.array([1], np.intp), 1)
    made.__setstate__(state)
    model.tree_ = made
    return model


def put(field: str, value: int, place: int = 0) -> Callable[[Any], None]:
    return lambda nodes: nodes[field].__setitem__(place, value)


@pytest.mark.parametrize(
    "change",
    [
        put("left_child", 10_000), put("right_child", 10_000), put("left_child", 0), put("right_child", -7),
        put("feature", 4), put("feature", -2), put("feature", 1 << 40), put("left_child", 0, 1),
    ],
)  # fmt: skip
def test_a_lying_tree(change: Callable[[Any], None], tmp_path: Path) -> None:
    dump(tampered_tree(change), tmp_path / "m.pkl")
    with pytest.raises(Corrupted, match="no sound model: a tree"):
        load(tmp_path / "m.pkl")


def altered(name: str, **attributes: Any) -> Any:
    """A fitted model with attributes that do not fit it."""
    from sklearn.cluster import KMeans
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestRegressor
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import SelectFromModel
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.svm import SVC

    few = {"n_estimators": 2, "max_depth": 2}
    made: Any = {
        "forest": lambda: RandomForestRegressor(**few).fit(X, YR),
        "boosting": lambda: GradientBoostingClassifier(**few).fit(X, Y),
        "hist": lambda: HistGradientBoostingRegressor(max_iter=2).fit(X, YR),
        "svc": lambda: SVC().fit(X, Y),
        "knn": lambda: KNeighborsClassifier().fit(X, Y),
        "kmeans": lambda: KMeans(2, n_init=1).fit(X),
        "hot": lambda: OneHotEncoder().fit(Y[:, None]),
        "words": lambda: CountVectorizer().fit(["a bird", "the fish"]),
        "ridge": lambda: Ridge().fit(X, YR),
        "chosen": lambda: SelectFromModel(LinearRegression()).fit(X, YR),
        "isotonic": lambda: IsotonicRegression().fit(X[:, 0], YR),
    }[name]()
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("forest", {"n_features_in_": 2}),
        ("boosting", {"n_features_in_": 2}),
        ("boosting", {"n_trees_per_iteration_": 1}),
        ("hist", {"n_features_in_": 1}),
        ("svc", {"_n_support": np.array([900, 1, 1], np.int32)}),
        ("svc", {"n_features_in_": 9}),
        ("svc", {"_intercept_": np.zeros(1)}),
        ("svc", {"_dual_coef_": np.zeros((2, 3))}),
        ("svc", {"support_": np.zeros(1, np.int32)}),
        ("svc", {"_probA": np.zeros(2)}),
        ("svc", {"kernel": "precomputed"}),
        ("svc", {"_impl": "one_class"}),
        ("knn", {"_y": np.full(90, 7)}),
        ("knn", {"n_features_in_": 40}),
        ("knn", {"_fit_X": np.full((90, 4), np.nan)}),
        ("knn", {"effective_metric_": "pyfunc"}),
        ("kmeans", {"cluster_centers_": np.zeros((2, 1))}),
        ("hot", {"_n_features_outs": [1]}),
        ("words", {"vocabulary_": {"bird": 0, "fish": 1 << 20}}),
        ("words", {"input": "filename"}),
        ("ridge", {"predict": 1}),
        ("ridge", {"__class__": 1}),
        ("chosen", {"importance_getter": "__class__.__init__"}),
        ("isotonic", {"y_thresholds_": np.zeros(1)}),
    ],
)
def test_a_lying_model(name: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    dump(altered(name, **attributes), tmp_path / "m.pkl")
    with pytest.raises(Corrupted, match="no sound model"):
        load(tmp_path / "m.pkl")


def test_a_lying_sparse_matrix(tmp_path: Path) -> None:
    from scipy.sparse import csr_matrix

    made = csr_matrix(np.eye(3))
    made.indices[0] = 1 << 20
    dump(altered("ridge", coef_=made), tmp_path / "m.pkl")
    with pytest.raises(Corrupted, match="sparse matrix"):
        load(tmp_path / "m.pkl")


def test_what_holds_itself_is_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    dump(altered("ridge", coef_=circle), tmp_path / "m.pkl")
    with pytest.raises(Corrupted, match="holds itself"):
        load(tmp_path / "m.pkl")


def test_one_array_many_times_is_counted_each_time(tmp_path: Path) -> None:
    """A small pickle whose arrays are views of the same bytes cannot grow without end."""
    array = np.zeros(1 << 20)
    raw = pickle.dumps(array, 4)
    # `raw` leaves the array on the stack; the same bytes are taken again from the memo by hand
    again = pickle.dumps([array] * 3, 4)
    (tmp_path / "m.pkl").write_bytes(again)
    made = load(tmp_path / "m.pkl", budget=64 << 20).model
    assert made[0] is made[1]
    (tmp_path / "n.pkl").write_bytes(raw)
    with pytest.raises(Exhausted):
        load(tmp_path / "n.pkl", budget=12 << 20)


MUTATE = """
import random, sys, warnings
from pathlib import Path
import numpy as np
from hivenode.errors import HiveError
from hivenode.models.loading import load

warnings.simplefilter("ignore")
folder, loaded = Path(sys.argv[1]), 0
random.seed(0)
rows = np.abs(np.random.default_rng(0).normal(size=(20, 4)))
originals = sorted(folder.glob("*.pkl"))
for turn in range(int(sys.argv[2])):
    raw = bytearray(originals[turn % len(originals)].read_bytes())
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(raw))
        raw[at : at + 1] = random.choice((bytes([random.randrange(256)]), b"\\xff" * 8, b"\\0" * 8, b"\\x7f"))
    path = folder / "mutant"
    path.write_bytes(raw)
    try:
        model = load(path, budget=256 << 20).model
    except HiveError:
        continue
    loaded += 1
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        try:
            getattr(model, method)(rows)
        except Exception:
            pass
print("loaded", loaded > 0)
"""


@pytest.mark.slow
def test_damaged_estimators_end_in_clean_errors_and_never_in_a_crash(tmp_path: Path) -> None:
    for name in ("forest", "boosting", "hist", "svc", "knn", "kmeans", "isotonic"):
        dump(altered(name), tmp_path / f"{name}.pkl")
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(tmp_path), "700"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "loaded True"), done.stderr[-2000:]
