"""Tensor files: readable by the safetensors library, equal for equal contents, and safe to read from anyone."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hivenode.errors import Corrupted, Exhausted
from hivenode.training import tensorfiles

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1.5], np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
METADATA = {"z": "1", "a": "two", "quote": 'ä "\n'}


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensorfiles.save(path, TENSORS, METADATA)
    theirs = load_file(path)
    assert {name: tensor.tolist() for name, tensor in theirs.items()} == {n: t.tolist() for n, t in TENSORS.items()}
    with safe_open(path, "numpy") as file:
        assert file.metadata() == METADATA


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, METADATA)
    tensors, metadata = tensorfiles.load(path, 10_000)
    assert metadata == METADATA
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {n: t.tolist() for n, t in TENSORS.items()}


def test_equal_contents_are_equal_bytes_in_whatever_order_they_were_given(tmp_path: Path) -> None:
    digests = set()
    for number, turn in enumerate((1, -1)):
        path = tmp_path / f"{number}"
        tensorfiles.save(path, dict(list(TENSORS.items())[::turn]), dict(list(METADATA.items())[::turn]))
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        tensorfiles.save(tmp_path / "missing" / "x", TENSORS, METADATA)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        tensorfiles.save(tmp_path / "taken", TENSORS, METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_damaged_files_are_refused_or_hold_what_they_say(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.safetensors"
    tensorfiles.save(path, TENSORS, METADATA)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(Corrupted):  # anything else is a failure
        tensors, _ = tensorfiles.load(path, 10_000)
        assert sum(tensor.nbytes for tensor in tensors.values()) == sum(t.nbytes for t in TENSORS.values())


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"a":{"dtype":"F32","shape":[99999999999999],"data_offsets":[0,399999999999996]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,-8]}}',
        b'{"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[]",
        b'{"a":\xff}',
    ],
)
def test_a_header_that_does_not_fit_its_data_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(Corrupted):
        tensorfiles.load(path, 10_000)


def test_a_header_length_beyond_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(Corrupted):
        tensorfiles.load(path, 10_000)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensorfiles.save(path, TENSORS, METADATA)
    with pytest.raises(Exhausted):
        tensorfiles.load(path, 100)
