"""Estimators, boosters, agents, Q-tables and detectors are what the libraries that saved them say they are."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import FunctionTransformer

from hivenode.models.identify import identify
from hivenode.models.identify.report import Confidence

SAMPLES = Path(__file__).parents[1] / "samples"
CASES = [
    pytest.param(SAMPLES / group / name, fields, id=f"{group}/{name}")
    for group in ("tabular", "agents")
    for name, fields in json.loads((SAMPLES / f"{group}.json").read_text()).items()
]
ROWS = np.random.default_rng(1).normal(size=(60, 5))


@pytest.mark.parametrize(("path", "expected"), CASES)
def test_a_sample_is_known_for_what_it_is(path: Path, expected: dict[str, Any]) -> None:
    report = identify(path)
    assert report.error is None
    found = [finding.what for finding in report.findings]
    assert found == expected.get("findings", [])
    assert {name: getattr(report, name) for name in expected if name != "findings"} == {
        name: value for name, value in expected.items() if name != "findings"
    }


@pytest.mark.parametrize(("path", "expected"), CASES)
def test_each_field_says_how_it_is_known(path: Path, expected: dict[str, Any]) -> None:
    report = identify(path)
    for field in ("format", "framework", "task", "architecture", "model", "parameters", "layers"):
        assert (getattr(report, field) is None) == (field not in report.confidence), field
    if "q_" in path.name:
        assert report.confidence["task"].how is not Confidence.read
    json.dumps(report.to_dict())


@pytest.mark.parametrize(
    "name", ["xgb_classifier.ubj", "forest_xz.joblib", "lightgbm_binary.txt", "tabnet_regressor.zip"]
)
def test_content_decides_not_the_suffix(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(SAMPLES / "tabular" / name, path)
    assert identify(path).format == identify(SAMPLES / "tabular" / name).format


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_large_arrays_are_passed_over(protocol: int, tmp_path: Path) -> None:
    estimator = KNeighborsClassifier(algorithm="brute").fit(np.ones((200_000, 8)), np.arange(200_000) % 3)
    path = tmp_path / "knn.pkl"
    path.write_bytes(pickle.dumps(estimator, protocol))
    report = identify(path)
    assert (report.model, report.parameters, report.safe) == ("KNeighborsClassifier", 1_600_000, True)
    assert report.bytes_read is not None
    assert report.bytes_read < 1 << 20 < path.stat().st_size


def test_large_arrays_of_joblib_are_passed_over(tmp_path: Path) -> None:
    estimator = KNeighborsClassifier(algorithm="brute").fit(np.ones((200_000, 8)), np.arange(200_000) % 3)
    path = tmp_path / "knn.joblib"
    joblib.dump(estimator, path)
    report = identify(path)
    assert (report.format, report.parameters, report.safe) == ("joblib", 1_600_000, True)
    assert report.bytes_read is not None
    assert report.bytes_read < 64 << 10


@pytest.mark.parametrize("kind", ["joblib", "pickle4", "pickle5"])
def test_the_listing_points_at_the_numbers(kind: str, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(2000, 7))
    estimator = KNeighborsClassifier(algorithm="brute").fit(matrix, np.arange(2000) % 2)
    path = tmp_path / kind
    if kind == "joblib":
        joblib.dump(estimator, path)
    else:
        path.write_bytes(pickle.dumps(estimator, int(kind[-1])))
    (tensor,) = identify(path).listing
    assert tensor.offset is not None
    assert tensor.nbytes is not None
    raw = path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    assert np.array_equal(np.frombuffer(raw).reshape(tensor.shape), matrix)


def test_the_listing_of_npz_and_agents_points_at_the_numbers() -> None:
    path = SAMPLES / "agents" / "q_table.npz"
    table = next(tensor for tensor in identify(path).listing if tensor.name == "q_table")
    assert table.offset is not None
    raw = np.frombuffer(path.read_bytes(), "<f8", 192, table.offset)
    assert np.array_equal(raw.reshape(table.shape), np.load(path)["q_table"])
    torch = pytest.importorskip("torch")
    import zipfile

    path = SAMPLES / "agents" / "sb3_ppo.zip"
    state = torch.load(io.BytesIO(zipfile.ZipFile(path).read("policy.pth")), weights_only=True)
    for tensor in identify(path).listing:
        assert tensor.offset is not None
        values = np.frombuffer(path.read_bytes(), "<f4", int(np.prod(tensor.shape)), tensor.offset)
        assert np.array_equal(values.reshape(tensor.shape), state[tensor.name].numpy())


def test_several_pickles_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "two.pkl"
    path.write_bytes(pickle.dumps({"version": 1}) + pickle.dumps(LinearRegression().fit(ROWS, ROWS[:, 0])))
    report = identify(path)
    assert (report.model, report.safe) == ("LinearRegression", True)


def test_an_estimator_that_calls_a_function_of_its_owner_is_unsafe(tmp_path: Path) -> None:
    path = tmp_path / "f.joblib"
    joblib.dump(FunctionTransformer(shutil.rmtree), path)
    (finding,) = identify(path).findings
    assert finding.what == "shutil.rmtree"
    assert "byte" in finding.where
    joblib.dump(FunctionTransformer(np.log1p), path)
    assert identify(path).safe is True


def test_a_bare_matrix_is_a_guess_and_a_named_one_is_inferred(tmp_path: Path) -> None:
    table = np.zeros((500, 6))
    np.save(tmp_path / "values.npy", table)
    np.save(tmp_path / "taxi_q_table.npy", table)
    np.save(tmp_path / "wide.npy", np.zeros((500, 300)))
    assert identify(tmp_path / "values.npy").confidence["model"].how is Confidence.guessed
    assert identify(tmp_path / "taxi_q_table.npy").confidence["model"].how is Confidence.inferred
    assert identify(tmp_path / "wide.npy").model is None


def test_rows_of_a_structured_array_are_measured(tmp_path: Path) -> None:
    rows = np.zeros(7, [("left", "<i8"), ("value", "<f4", (2, 3)), ("name", "<U5")])
    np.save(tmp_path / "rows.npy", rows)
    report = identify(tmp_path / "rows.npy")
    assert report.error is None
    assert report.dtypes == {f"void{rows.dtype.itemsize}": 7}


def test_compressed_estimators_say_how(tmp_path: Path) -> None:
    forest = RandomForestClassifier(5, random_state=0).fit(ROWS, ROWS[:, 0] > 0)
    for kind in ("zlib", "gzip", "bz2", "xz", "lzma"):
        path = tmp_path / kind
        joblib.dump(forest, path, compress=(kind, 1))
        report = identify(path)
        assert report.hyperparameters["compression"] == kind
        assert report.parameters == sum(tree.tree_.node_count for tree in forest.estimators_)


@pytest.mark.slow
def test_every_estimator_of_sklearn_is_known_and_safe(tmp_path: Path) -> None:
    from sklearn.utils import all_estimators
    from sklearn.utils._test_common.instance_generator import _construct_instances

    features = np.abs(ROWS)
    targets = (features[:, 0] > 0.6).astype(int)
    unsafe: dict[str, list[str]] = {}
    for name, kind in all_estimators():
        if name == "FrozenEstimator":
            continue
        estimator = next(iter(_construct_instances(kind)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for target in (targets, features[:, 0], None, np.c_[targets, 1 - targets]):
                try:
                    estimator.fit(features, target) if target is not None else estimator.fit(features)
                    break
                except (ValueError, TypeError, AttributeError, IndexError):
                    continue
        for protocol in (2, 4, 5):
            path = tmp_path / f"{name}.pkl"
            path.write_bytes(pickle.dumps(estimator, protocol))
            report = identify(path)
            assert report.error is None, name
            assert report.hyperparameters.get("wrapped_by", name).startswith(name) or report.model == name
            if report.safe is not True:
                unsafe[name] = sorted(finding.what for finding in report.findings)
    # These keep functions, which a file may name at will.
    assert set(unsafe) <= {"TunedThresholdClassifierCV", "SplineTransformer"}
