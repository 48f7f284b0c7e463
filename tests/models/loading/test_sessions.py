"""Graphs are run by their own library, and only once nothing in them is code or leads elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivenode.errors import HiveError, Refused
from hivenode.models.loading import load

GRAPHS = Path(__file__).parents[1] / "samples" / "graphs"


@pytest.mark.parametrize("name", ["mlp.onnx", "external.onnx", "yolo.onnx", "int8.onnx"])
def test_onnxruntime_answers_the_same(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    theirs = onnxruntime.InferenceSession(str(GRAPHS / name), providers=["CPUExecutionProvider"])
    ours = load(GRAPHS / name).model
    feeds = {
        port.name: np.ones([size if isinstance(size, int) else 1 for size in port.shape], np.float32)
        for port in theirs.get_inputs()
    }
    for one, other in zip(ours.run(None, feeds), theirs.run(None, feeds), strict=True):
        assert np.array_equal(one, other)


def test_weights_of_onnx_are_those_onnx_reads() -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("mlp.onnx", "cnn.onnx", "external.onnx", "encoder.onnx"):
        weights = load(GRAPHS / name, model=False).weights
        for tensor in onnx.load(str(GRAPHS / name)).graph.initializer:
            assert np.array_equal(weights[tensor.name].numpy(), onnx.numpy_helper.to_array(tensor))


def test_custom_operators_are_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"com\.evil::Attack"):
        load(GRAPHS / "custom.onnx")


def test_external_data_outside_the_directory_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    shutil.copy(GRAPHS / "external.onnx", tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.bin"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Refused, match="secret"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_code_in_keras_is_refused_by_name(name: str) -> None:
    with pytest.raises(Refused, match="Lambda") as refused:
        load(GRAPHS / name)
    assert "hivenode convert" in refused.value.fix


@pytest.mark.slow
def test_keras_predicts_the_same() -> None:
    keras = pytest.importorskip("keras")
    for name in ("regressor.keras", "picture.h5"):
        theirs = keras.saving.load_model(GRAPHS / name, compile=False)
        loaded = load(GRAPHS / name)
        (port,) = theirs.inputs
        rows = np.ones([2 if size is None else size for size in port.shape], np.float32)
        assert np.array_equal(loaded.model.predict(rows, verbose=0), theirs.predict(rows, verbose=0))
        values = [np.asarray(variable) for variable in theirs.variables]
        for weight in loaded.weights.values():
            assert any(np.array_equal(weight.numpy(), value) for value in values)


def test_links_to_other_files_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")

    def link(file: Any) -> None:
        file["there"] = h5py.ExternalLink("/etc/passwd", "/")

    def outside(file: Any) -> None:
        file.create_dataset("there", (4,), "u1", external=[(str(tmp_path / "secret"), 0, 4)])

    (tmp_path / "secret").write_bytes(b"1234")
    for place, change in enumerate((link, outside)):
        path = tmp_path / f"{place}.h5"
        shutil.copy(GRAPHS / "regressor.h5", path)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(HiveError):
            load(path)
