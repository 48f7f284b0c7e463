"""Boosted trees predict what XGBoost and LightGBM predict, and lying ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivenode.errors import Corrupted, InvalidInput
from hivenode.models.loading import load
from hivenode.models.loading.trees import Trees

SAMPLES = Path(__file__).parents[1] / "samples"
KNOWN: dict[str, Any] = json.loads((SAMPLES / "predictions.json").read_text())
ROWS = np.array(KNOWN["rows"], np.float64)  # null is a missing value


@pytest.mark.parametrize("name", sorted(KNOWN["predictions"]))
def test_predictions_are_those_of_the_library(name: str) -> None:
    rows = np.nan_to_num(ROWS) if "linear" in name else ROWS
    found = load(SAMPLES / "tabular" / name).model.predict(rows)
    assert found.dtype == (np.float64 if name.startswith("lightgbm") else np.float32)
    np.testing.assert_allclose(found, np.array(KNOWN["predictions"][name]), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["xgb_classifier.pkl", "lightgbm_classifier.pkl", "lightgbm_classifier.joblib.z"])
def test_a_pickled_classifier_gives_labels_and_shares(name: str) -> None:
    model = load(SAMPLES / "tabular" / name).model
    shares = model.predict_proba(ROWS)
    assert shares.shape == (len(ROWS), 2)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert np.array_equal(model.predict(ROWS), shares.argmax(axis=1))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(InvalidInput, match="rows of 4"):
        load(SAMPLES / "tabular" / "xgb_classifier.json").model.predict(ROWS[:, :3])


def changed(tmp_path: Path, change: Any) -> Path:
    document = json.loads((SAMPLES / "tabular" / "xgb_classifier.json").read_text())
    change(document["learner"], document["learner"]["gradient_booster"]["model"]["trees"][0])
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _, tree: tree["left_children"].__setitem__(0, 99), "nodes"),
        (lambda _, tree: tree["left_children"].__setitem__(1, 0), "nodes"),
        (lambda _, tree: tree["left_children"].__setitem__(1, 2), "nodes"),
        (lambda _, tree: tree["right_children"].__setitem__(0, -1), "one child"),
        (lambda _, tree: tree["split_indices"].__setitem__(0, 4), "none of its 4"),
        (lambda _, tree: tree["split_conditions"].pop(), "differ in length"),
        (lambda _, tree: tree["split_conditions"].__setitem__(0, "x"), "numbers"),
        (lambda learner, _: learner["gradient_booster"]["model"]["tree_info"].__setitem__(0, 7), "no output"),
        (lambda learner, _: learner["learner_model_param"].update(base_score="-3"), "probability"),
    ],
)
def test_trees_that_lead_elsewhere_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(Corrupted, match=words):
        load(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda learner, _: learner["objective"].update(name="reg:own"), "reg:own"),
        (lambda _, tree: tree["split_type"].__setitem__(0, 1), "categories"),
    ],
)
def test_what_the_evaluator_does_not_know_is_named(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=words):
        load(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("left_child=", "left_child=77 "), ("split_feature=", "split_feature=9 "), ("leaf_value=", "leaf_value=x "),
        ("num_leaves=", "num_leaves=9"), ("max_feature_idx=", "max_feature_idx=-"),
    ],
)  # fmt: skip
def test_lightgbm_that_lies_is_refused(line: str, instead: str, tmp_path: Path) -> None:
    text = (SAMPLES / "tabular" / "lightgbm_binary.txt").read_text()
    path = tmp_path / "m.txt"
    path.write_text(text.replace(line, instead, 1))
    with pytest.raises(Corrupted):
        load(path)


def test_a_model_freshly_trained_with_missing_values(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    labels = (np.nan_to_num(rows)[:, 0] > 0).astype(int)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, labels), 20)
    booster.save_model(tmp_path / "m.ubj")
    model = load(tmp_path / "m.ubj").model
    assert isinstance(model, Trees)
    np.testing.assert_allclose(model.predict(rows), booster.predict(xgboost.DMatrix(rows)), rtol=1e-5)
