"""Pipelines and ensembles: what numpy makes of their arrays is what scikit-learn does, however they were divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import ensemble, pipeline

from hivenode.data.sources import information
from hivenode.errors import InvalidInput
from hivenode.models import compositions
from hivenode.models.compositions import parts
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import sklearn_composing as composing
from hivenode.training.frameworks import sklearn_fitting as fitting
from hivenode.training.frameworks.composed_predictors import predictor
from tests.training.test_estimators import data, expected

Table = dict[str, Any]
LOGISTIC: Table = {"estimator": "LogisticRegression", "max_iter": 300}
TREE: Table = {"estimator": "DecisionTreeClassifier", "max_depth": 4}
BAYES: Table = {"estimator": "GaussianNB"}
RIDGE: Table = {"estimator": "Ridge"}
LEARNT: Table = {"estimator": "MLPClassifier", "hidden": 8}
FOREST: Table = {"estimator": "RandomForestClassifier", "n_estimators": 7}


def model(name: str, *estimators: Table, **params: Any) -> ModelSpec:
    return ModelSpec(source=f"sklearn:{name}", params=params, estimators=estimators)


def sample(name: str) -> tuple[np.ndarray, np.ndarray, int]:
    rows, labels = data(name)
    return rows, labels, 1 if name == "diabetes" else int(labels.max()) + 1


PIPELINES = {
    "standard": ({"estimator": "StandardScaler"}, LOGISTIC),
    "range": ({"estimator": "MinMaxScaler"}, {"estimator": "MaxAbsScaler"}, BAYES),
    "robust": ({"estimator": "RobustScaler"}, {"estimator": "Normalizer", "norm": "l1"}, LOGISTIC),
    "components": ({"estimator": "PCA", "n_components": 4, "whiten": True}, LEARNT),
    "powers": ({"estimator": "PCA", "n_components": 3}, {"estimator": "PolynomialFeatures", "degree": 2}, LOGISTIC),
    "learnt by steps": ({"estimator": "StandardScaler", "with_mean": False}, {"estimator": "SGDClassifier"}),
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("source", ["wine", "breast_cancer"])
def test_a_pipeline_predicts_as_scikit_learn(name: str, source: str) -> None:
    rows, labels, outputs = sample(source)
    rows = rows * 3 + 5
    made = model("Pipeline", *PIPELINES[name])
    tensors = composing.fit(made, rows, labels, outputs, 3, 1)
    own = pipeline.make_pipeline(*(composing._built(part, 3) for part in parts(made))).fit(rows, labels)
    found = predictor(made, tensors, rows.shape[1], outputs).outputs(rows)
    assert np.allclose(found, expected(own, rows, "classification"), atol=2e-3, rtol=1e-3)


ENSEMBLES = {
    "soft": ("wine", model("VotingClassifier", LOGISTIC, TREE, BAYES, FOREST, voting="soft")),
    "hard": ("breast_cancer", model("VotingClassifier", LOGISTIC, TREE, LEARNT)),
    "mean": ("diabetes", model("VotingRegressor", RIDGE, {"estimator": "DecisionTreeRegressor", "max_depth": 3})),
    "bagged trees": ("wine", model("BaggingClassifier", TREE, n_estimators=25, max_samples=0.6)),
    "bagged lines": ("diabetes", model("BaggingRegressor", RIDGE, n_estimators=12)),
    "stacked": ("wine", model("StackingClassifier", LOGISTIC, TREE, BAYES)),
    "stacked, two classes": ("breast_cancer", model("StackingClassifier", LOGISTIC, TREE)),
    "stacked values": ("diabetes", model("StackingRegressor", RIDGE, {"estimator": "LinearRegression"})),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_of_several_nodes_is_that_of_scikit_learn(name: str) -> None:
    source, made = ENSEMBLES[name]
    rows, labels, outputs = sample(source)
    grower = composing.growing(made, rows, labels, outputs, 5, 1)
    units = grower.units
    assert units == compositions.members_of(made) >= 2
    grown = grower.grow(range(1, units)) | grower.grow(range(1))
    again = fitting.unpack(np.concatenate([fitting.pack(grown), np.zeros(100, np.float32)]))
    tensors = grower.together([again[unit] for unit in range(units)])
    found = predictor(made, tensors, rows.shape[1], outputs).outputs(rows)

    built = [(str(number), composing._built(part, 5)) for number, part in enumerate(parts(made))]
    kind, given = getattr(ensemble, made.name), dict(made.params)
    own = kind(built[0][1], random_state=5, **given) if "Bagging" in made.name else kind(built, **given)
    own.fit(rows, labels)
    if made.name.endswith("Regressor"):
        assert np.allclose(found[:, 0], own.predict(rows), rtol=1e-3, atol=0.05)
    elif name == "hard":
        assert np.array_equal(found.argmax(axis=1), own.predict(rows))
        assert set(np.round(found * 3).ravel()) <= {0.0, 1.0, 2.0, 3.0}
    else:
        assert np.allclose(found, own.predict_proba(rows), atol=2e-3)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (model("Pipeline"), "model.estimators"),
        (model("Pipeline", {"estimator": "StandardScaler"}), "model.estimators\\[0\\] is 'StandardScaler'"),
        (model("Pipeline", {"estimator": "PCB"}, LOGISTIC), "model.estimators\\[0\\] is 'PCB'"),
        (model("Pipeline", LOGISTIC, LOGISTIC), "no such part there"),
        (model("Pipeline", {"estimator": "PCA", "components": 3}, LOGISTIC), "no parameter 'components'"),
        (model("VotingClassifier", LOGISTIC, {"max_depth": 3}), "model.estimators\\[1\\] lacks `estimator`"),
        (model("VotingClassifier", LOGISTIC, RIDGE), "Ridge, which is for regression"),
        (model("VotingClassifier", LOGISTIC, TREE, voting="loud"), "voting"),
        (model("BaggingClassifier", LOGISTIC, TREE), "lists 2"),
        (model("Ridge", LOGISTIC), "not made of other estimators"),
    ],
    ids=str,
)
def test_a_wrong_declaration_is_named(made: ModelSpec, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        compositions.describe(made, information(DataSpec()))


@pytest.mark.parametrize("change", ["missing", "more", "shape", "nan"])
def test_hostile_arrays_are_refused(change: str) -> None:
    rows, labels, outputs = sample("wine")
    made = model("Pipeline", *PIPELINES["standard"])
    tensors = composing.fit(made, rows, labels, outputs, 3, 1)
    match change:
        case "missing":
            del tensors["0.factor"]
        case "more":
            tensors["7.shift"] = tensors["0.shift"]
        case "shape":
            tensors["0.shift"] = tensors["0.shift"][:-1]
        case "nan":
            tensors["0.shift"][0] = np.nan
    with pytest.raises((ValueError, KeyError)):
        predictor(made, tensors, rows.shape[1], outputs)
