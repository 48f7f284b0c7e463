"""Files saved by the frameworks themselves, against what the frameworks say of them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from hivenode.models.identify import identify
from hivenode.models.identify.report import Report
from tests.models.identify.graph_builders import gguf, gguf_tensor, gguf_text

SAMPLES = Path(__file__).parents[1] / "samples"
EXPECTED: dict[str, dict[str, object]] = json.loads((SAMPLES / "graphs.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_sample_is_what_its_maker_says(name: str) -> None:
    report = identify(SAMPLES / "graphs" / name)
    assert report.error is None
    for field, wanted in EXPECTED[name].items():
        if field != "findings":
            assert getattr(report, field) == wanted, field
    found = [finding.what for finding in report.findings]
    wanted_findings = EXPECTED[name].get("findings", [])
    assert isinstance(wanted_findings, list)
    assert bool(found) == bool(wanted_findings)
    assert all(any(part in what for what in found) for part in wanted_findings)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_field_says_how_it_is_known(name: str) -> None:
    report = identify(SAMPLES / "graphs" / name)
    for field in ("format", "framework", "task", "architecture", "model", "parameters", "layers", "quantization"):
        assert (getattr(report, field) is None) == (field not in report.confidence), field


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "graphs" / "mlp.onnx", tmp_path / "model.h5")
    shutil.copy(SAMPLES / "graphs" / "regressor.h5", tmp_path / "model.onnx")
    assert identify(tmp_path / "model.h5").format == "onnx"
    assert identify(tmp_path / "model.onnx").format == "keras_h5"


def test_offsets_of_the_listing_point_at_the_weights() -> None:
    report = identify(SAMPLES / "graphs" / "regressor.keras")
    raw = (SAMPLES / "graphs" / "regressor.keras").read_bytes()
    other = identify(SAMPLES / "graphs" / "regressor.h5")
    plain = (SAMPLES / "graphs" / "regressor.h5").read_bytes()

    def weights(report: Report, data: bytes) -> set[bytes]:
        assert all(tensor.offset is not None and tensor.nbytes is not None for tensor in report.listing)
        return {data[t.offset : t.offset + t.nbytes] for t in report.listing if t.offset and t.nbytes}

    assert len(weights(report, raw)) == 4  # two kernels, the zero biases of two sizes after a step of training
    assert weights(report, raw) == weights(other, plain)


def test_a_checkpoint_without_its_data_names_the_missing_file(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "graphs" / "checkpoint" / "ckpt-1.index", tmp_path / "ckpt-1.index")
    report = identify(tmp_path / "ckpt-1.index")
    assert report.safe is None
    assert report.error is not None
    assert "ckpt-1.data-00000-of-00001" in report.error.message


def test_a_cut_data_file_is_named(tmp_path: Path) -> None:
    for path in (SAMPLES / "graphs" / "checkpoint").iterdir():
        shutil.copy(path, tmp_path / path.name)
    data = tmp_path / "ckpt-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    report = identify(tmp_path)
    assert report.error is not None
    assert report.error.code == "corrupted"
    assert data.name in report.error.message


def test_external_weights_must_be_there_and_whole(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "graphs" / "external.onnx", tmp_path / "external.onnx")
    missing = identify(tmp_path / "external.onnx")
    assert missing.error is not None
    assert "external.bin" in missing.error.message
    assert missing.parameters == 2048
    assert missing.safe is None
    (tmp_path / "external.bin").write_bytes(b"\0" * 8191)
    short = identify(tmp_path / "external.onnx")
    assert short.error is not None
    assert "too short" in short.error.message


@pytest.mark.parametrize(
    "texts",
    [
        [f"token{number}" for number in range(3000)],
        ["", "a", "", "", "b"] * 500,
        ["x" * 300, "y", "z" * 70_000, "a\0\0\0\0\0\0\0\0b"] * 40,
        ["\0" * number for number in range(40)],
        ["\x05\0\0\0\0\0\0\0abc", "q"] * 100,
    ],
    ids=["short", "empty", "long", "zeros", "texts that look like lengths"],
)
def test_a_vocabulary_is_passed_exactly(tmp_path: Path, texts: list[str]) -> None:
    raw = b"".join(gguf_text(text) for text in texts)
    pairs = gguf_text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(texts)) + raw
    pairs += gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("llama")
    (tmp_path / "m.gguf").write_bytes(gguf(pairs, 2, gguf_tensor("t", (8,), 0, 0), 1, b"\0" * 32))
    report = identify(tmp_path / "m.gguf")
    assert report.error is None
    assert report.hyperparameters["vocabulary"] == len(texts)
    assert report.model == "llama"
    assert report.parameters == 8
