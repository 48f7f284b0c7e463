"""Estimators as arrays: what numpy makes of them is what scikit-learn does, and what is no estimator is refused."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.base
from sklearn import datasets

from hivenode.errors import InvalidInput
from hivenode.models.estimators import ESTIMATORS, arguments, estimator
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import sklearn_fitting as fitting
from hivenode.training.frameworks.predictors import predictor
from hivenode.training.frameworks.sklearn_learners import build, learner


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    loaded = getattr(datasets, f"load_{name}")()
    rows = loaded.data - loaded.data.mean(axis=0)
    return (rows / (rows.std(axis=0) + 1e-9)).astype(np.float32), loaded.target


def expected(fitted: sklearn.base.BaseEstimator, rows: np.ndarray, task: str) -> np.ndarray:
    if task == "regression":
        return fitted.predict(rows).reshape(len(rows), -1)
    if task == "clustering":
        return np.eye(fitted.n_clusters)[fitted.predict(rows)]
    return fitted.predict_proba(rows)


PARAMS = {
    "GradientBoostingClassifier": {"n_estimators": 15},
    "GradientBoostingRegressor": {"n_estimators": 15, "max_depth": 2},
    "DecisionTreeClassifier": {"max_depth": 5},
    "LogisticRegression": {"max_iter": 200},
}
WHOLE = [name for name, entry in ESTIMATORS.items() if entry.kind == "whole"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_fitted_in_one_piece_predicts_as_scikit_learn(name: str, classes: int) -> None:
    task, source = ESTIMATORS[name].task, f"sklearn:{name}"
    rows, labels = data("diabetes" if task == "regression" else "breast_cancer" if classes == 2 else "wine")
    outputs = 1 if task == "regression" else classes
    params = PARAMS.get(name, {})
    tensors = fitting.fit(ModelSpec(source=source, params=params), rows, labels, outputs, 3, 1)
    fitted = build(source, arguments(source, params), 3).fit(rows, labels)
    found = predictor(source, params, tensors, rows.shape[1], outputs).outputs(rows)
    assert np.allclose(found, expected(fitted, rows, task), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if entry.kind == "trees"])
def test_a_forest_is_that_of_scikit_learn_however_it_was_grown(name: str) -> None:
    task, source, params = ESTIMATORS[name].task, f"sklearn:{name}", {"n_estimators": 25, "max_depth": 6}
    rows, labels = data("diabetes" if task == "regression" else "wine")
    outputs = 1 if task == "regression" else 3
    forest = fitting.Forest(ModelSpec(source=source, params=params), rows, labels, outputs, 5, 1)
    units = forest.grow(range(1, 3)) | forest.grow(range(1))
    assert forest.units == 3
    tensors = forest.together([units[unit] for unit in range(3)])
    assert len(tensors["roots"]) == 25
    found = predictor(source, params, tensors, rows.shape[1], outputs).outputs(rows)
    own = build(source, arguments(source, params), 5).fit(rows, labels)
    assert np.allclose(found, expected(own, rows, task), rtol=1e-5, atol=1e-6)
    again = fitting.unpack(np.concatenate([fitting.pack(units), np.zeros(100, np.float32)]))
    assert again.keys() == units.keys()
    for number, unit in units.items():
        assert all(np.array_equal(unit[key], again[number][key]) for key in unit)


def test_values_at_a_threshold_go_the_same_way_in_float32() -> None:
    rows, labels = data("diabetes")
    source = "sklearn:DecisionTreeRegressor"
    tensors = fitting.fit(ModelSpec(source=source), rows, labels, 1, 0, 1)
    fitted = build(source, {}, 0).fit(rows, labels)
    assert np.array_equal(
        predictor(source, {}, tensors, 10, 1).outputs(rows)[:, 0], fitted.predict(rows).astype(np.float32)
    )


def learnt(source: str, params: dict[str, object], rows: np.ndarray, labels: np.ndarray, outputs: int) -> object:
    made = learner(source, params, rows, outputs, 1)
    for epoch in range(20):
        order = np.random.default_rng(epoch).permutation(len(rows))
        for start in range(0, len(rows), 32):
            mine = order[start : start + 32]
            made.learn(rows[mine], labels[mine], 0.1, 0)
    return made


@pytest.mark.parametrize("source", ["sklearn:SGDClassifier", "sklearn:MLPClassifier"])
@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_what_learns_by_batches_predicts_as_scikit_learn(source: str, name: str) -> None:
    rows, labels = data(name)
    outputs = len(np.unique(labels))
    made = learnt(source, {}, rows, labels, outputs)
    found = made.predictor.outputs(rows)
    assert np.allclose(found, made._estimator.predict_proba(rows), atol=1e-4)
    assert (found.argmax(axis=1) == labels).mean() > 0.95


def test_sums_of_members_are_the_sums_of_all() -> None:
    rows, labels = data("wine")
    source = "sklearn:GaussianNB"
    parts = [learner(source, {}, rows, 3, 0) for _ in range(2)]
    parts[0].learn(rows[:50], labels[:50], 0.1, 0)
    parts[1].learn(rows[50:], labels[50:], 0.1, 0)
    parts[0].adopt((parts[0].weights + parts[1].weights) / 2)
    from sklearn.naive_bayes import GaussianNB

    fitted = GaussianNB().fit(rows, labels)
    assert np.allclose(parts[0].predictor.outputs(rows), fitted.predict_proba(rows), atol=1e-3)


def test_clusters_are_found_from_batches() -> None:
    rows, labels = data("wine")
    made = learnt("sklearn:MiniBatchKMeans", {"n_clusters": 3}, rows, labels, 3)
    from sklearn.cluster import KMeans

    best = KMeans(3, n_init=5, random_state=0).fit(rows).inertia_
    assert made.evaluate(rows, labels)[1] < 1.1 * best


@pytest.mark.parametrize(
    ("source", "params", "words"),
    [
        ("sklearn:RandomForestClassifer", {}, "Did you mean 'sklearn:RandomForestClassifier'"),
        ("sklearn:SGDClassifier", {"alhpa": 1.0}, "Did you mean 'alpha'"),
        ("sklearn:SGDClassifier", {"loss": "squared"}, "Choose one of log_loss"),
        ("sklearn:RandomForestClassifier", {"n_estimators": 0}, "a whole number from 1 to 100000"),
        ("sklearn:RandomForestClassifier", {"bootstrap": 1}, "true or false"),
        ("sklearn:RandomForestClassifier", {"max_features": "all"}, "Choose one of sqrt, log2"),
    ],
)
def test_a_wrong_declaration_is_named(source: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        arguments(source, params)


def hostile(change: str) -> dict[str, np.ndarray]:
    rows, labels = data("wine")
    tensors = fitting.fit(ModelSpec(source="sklearn:DecisionTreeClassifier"), rows, labels, 3, 0, 1)
    inner = int(np.flatnonzero(tensors["left"] != np.arange(len(tensors["left"])))[-1])
    match change:
        case "circle":
            tensors["left"][inner] = 0
        case "outside":
            tensors["right"][inner] = 10**6
        case "feature":
            tensors["feature"][0] = 13
        case "half":
            tensors["feature"][0] = 0.5
        case "nan":
            tensors["threshold"][0] = np.nan
        case "root":
            tensors["roots"][0] = -1
        case "shape":
            tensors["value"] = tensors["value"][:, :2]
    return tensors


@pytest.mark.parametrize("change", ["circle", "outside", "feature", "half", "nan", "root", "shape"])
def test_hostile_trees_are_refused(change: str) -> None:
    with pytest.raises(ValueError):
        predictor("sklearn:DecisionTreeClassifier", {}, hostile(change), 13, 3)


def test_every_argument_is_one_of_scikit_learn() -> None:
    for name in ESTIMATORS:
        source = f"sklearn:{name}"
        _, entry = estimator(source)
        known = build(source, arguments(source, {}), 0).get_params()
        assert set(entry.arguments) - {"hidden", "depth"} <= set(known)
