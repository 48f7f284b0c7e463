"""Names made to take hours or all memory: each of these files is small, and would not be through by itself."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from hivenode.models.identify import identify
from hivenode.models.identify.naming.state_dicts import Names
from hivenode.models.identify.report import LONGEST_NAME, Report

MANY = 100_000


def refused(path: Path) -> Report:
    report = identify(path)
    assert report.error is not None
    assert report.safe is not True
    return report


def safetensors(path: Path, names: list[str]) -> Path:
    entry = {"dtype": "F32", "shape": [0, 1], "data_offsets": [0, 0]}
    header = json.dumps(dict.fromkeys(names, entry)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize("part", ["module.", "attentionqueryq_proj", "down1.", "adv_", "layers.0.", "a"])
def test_a_name_of_millions_of_characters_is_refused(tmp_path: Path, part: str) -> None:
    report = refused(safetensors(tmp_path / "m.safetensors", [part * (2_000_000 // len(part)) + "weight"]))
    assert "characters long" in report.error.message


@pytest.mark.parametrize("part", ["module.", "attentionqueryq_proj", "attn", "qf1.adv_", "down1.", "layer1.0."])
def test_many_names_of_the_longest_are_through(tmp_path: Path, part: str) -> None:
    """Patterns that try every way to match would take a day for these."""
    names = [(part * LONGEST_NAME)[: LONGEST_NAME - 8] + f"{number}" for number in range(5_000)]
    assert identify(safetensors(tmp_path / "m.safetensors", names)).error is None


def test_a_prefix_that_stands_once_in_a_file_is_not_multiplied(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    long, tensor = "A" * 60_000, torch.zeros(1)
    many = {long: {str(number): tensor for number in range(MANY)}}
    torch.save(many, tmp_path / "m.pt")
    torch.save(many, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    array = b"\xc7\x0f\x01\x93\x91\x00\xa7float32\xc4\x00"
    (tmp_path / "m.msgpack").write_bytes(
        b"\x81\xa6params\x81\xda" + struct.pack(">H", 60_000) + long.encode()
        + b"\xdf" + struct.pack(">I", MANY) + b"".join(b"\xa6%06d" % n + array for n in range(MANY))
    )  # fmt: skip
    for name in ("m.pt", "old.pt", "m.msgpack"):
        assert "characters long" in refused(tmp_path / name).error.message, name


@pytest.mark.parametrize(
    "forward",
    [
        "  def forward(self: a, " + ") -> x" * 300_000 + "\n",
        "  def forward(self: a, x: Tensor" + ", a: b[" * 300_000 + ") -> Tensor:\n    return x\n",
        "  def forward(self: a, x: Tensor," + "a" * 1_000_000 + ") -> Tensor:\n    return x\n",
        "  def forward(self: a, x\n" * 60_000,
    ],
)
def test_a_signature_made_to_take_time_is_passed_over(tmp_path: Path, forward: str) -> None:
    torch = pytest.importorskip("torch")

    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        for entry in whole.infolist():
            data = whole.read(entry)
            if b"  def forward" in data:
                data = data[: data.index(b"  def forward")] + forward.encode()
            made.writestr(entry.filename, data)
    report = identify(tmp_path / "m.pt")
    assert report.format == "torchscript"
    assert not report.inputs


def test_wrappers_around_names_are_taken_off() -> None:
    wrapped = Names({"module._orig_mod.fc.weight": (1,), "module._orig_mod.fc.bias": (1,)})
    assert list(wrapped.shapes) == ["fc.weight", "fc.bias"]
    assert len(Names({})) == 0


def test_a_pickle_of_long_keys(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(1)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"A" * 60_000: {str(number): array for number in range(2_000)}}))
    report = identify(tmp_path / "m.pkl")
    assert max(len(tensor.name) for tensor in report.listing) <= LONGEST_NAME
