"""Damaged samples: cut at every offset, bits flipped, random structures. Only clean answers come out."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.errors import HiveError
from hivenode.models.identify import identify
from hivenode.models.identify.formats import npy, ubjson
from hivenode.models.identify.formats.numpy_pickles import array, dtype
from hivenode.models.identify.formats.pickles import interpret, walk
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Held

SAMPLES = Path(__file__).parents[1] / "samples"
CUT = [
    "tabular/xgb_regressor.json", "tabular/xgb_dart.ubj", "tabular/xgb_legacy.bin", "tabular/xgb_legacy_linear.bin",
    "tabular/lightgbm_regression.txt", "tabular/catboost_regressor.cbm", "tabular/linear_regression.joblib",
    "tabular/forest_p4.pkl", "tabular/forest_xz.joblib", "tabular/forest_lz4.joblib", "tabular/forest_zlib.joblib",
    "tabular/forest_object_labels.joblib", "tabular/mlp_regressor.pkl", "tabular/xgb_booster.pkl",
    "tabular/tabnet_regressor.zip", "tabular/pipeline.skops", "agents/sb3_dqn.zip", "agents/q_table.npz",
    "agents/q_table.npy", "agents/q_dict_arrays.pkl", "agents/q_pairs.pkl", "agents/yolov8n_short.pt",
]  # fmt: skip
MOST_MEMORY = 48 << 20


def answer(path: Path) -> Report:
    """What is said of a file; anything but a report is a failure of the test."""
    report = identify(path)
    assert (report.error is None) or report.safe is not True
    return report


@pytest.mark.parametrize("name", CUT)
def test_cut_anywhere(name: str, tmp_path: Path) -> None:
    data = (SAMPLES / name).read_bytes()
    path = tmp_path / Path(name).name
    steps = range(len(data)) if len(data) < 700 else sorted(random.Random(2).sample(range(len(data)), 90))
    tracemalloc.start()
    for length in steps:
        path.write_bytes(data[:length])
        report = answer(path)
        assert report.error is not None or report.safe is False or name.endswith(".json"), length
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()


@pytest.mark.parametrize("name", CUT)
def test_bits_flipped(name: str, tmp_path: Path) -> None:
    data = bytearray((SAMPLES / name).read_bytes())
    path = tmp_path / Path(name).name
    choose = random.Random(3)
    tracemalloc.start()
    for _ in range(90):
        changed = bytearray(data)
        for _ in range(choose.choice((1, 1, 4))):
            changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
        path.write_bytes(changed)
        answer(path)
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT)
def test_cut_at_every_offset(name: str, tmp_path: Path) -> None:
    data = (SAMPLES / name).read_bytes()
    path = tmp_path / Path(name).name
    for length in range(0, len(data), max(1, len(data) // 4000)):
        path.write_bytes(data[:length])
        report = answer(path)
        assert report.error is not None or report.safe is False or name.endswith(".json"), length


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_of_samples_put_together(data: st.DataObject, tmp_path: Path) -> None:
    whole = (SAMPLES / data.draw(st.sampled_from(CUT))).read_bytes()
    other = (SAMPLES / data.draw(st.sampled_from(CUT))).read_bytes()
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    at = data.draw(st.integers(0, len(other)))
    path = tmp_path / "mixed"
    path.write_bytes(whole[:start] + other[at : at + data.draw(st.integers(0, 500))] + whole[end:])
    answer(path)


# UBJSON: what is written is read, and noise is refused


def number(value: int) -> bytes:
    return b"L" + struct.pack(">q", value)


def encode(value: Any) -> bytes:
    if value is None:
        return b"Z"
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        return number(value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"S" + number(len(raw)) + raw
    if isinstance(value, list):
        return b"[#" + number(len(value)) + b"".join(map(encode, value))
    inside = b"".join(number(len(key.encode())) + key.encode() + encode(held) for key, held in value.items())
    return b"{" + inside + b"}"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_ubjson_is_read_as_it_was_written(value: Any) -> None:
    raw = encode(value)
    assert ubjson.parse(Window(Held(raw), len(raw), "a value"), "a value") == value


@given(st.binary(max_size=200), VALUES)
def test_noise_is_no_ubjson(noise: bytes, value: Any) -> None:
    raw = encode(value)
    raw = raw[: len(raw) // 2] + noise
    with suppress(HiveError):
        ubjson.parse(Window(Held(raw), len(raw), "noise"), "noise")


# arrays


@given(
    st.sampled_from(["<f8", ">f4", "|b1", "<i2", "<U7", "|S3", "<c16", "<M8[ns]", "|u1"]),
    st.lists(st.integers(0, 5), max_size=4),
    st.booleans(),
)
def test_a_header_of_numpy_is_read_as_numpy_reads_it(spelt: str, shape: list[int], fortran: bool) -> None:
    made = np.zeros(shape, spelt, order="F" if fortran else "C")
    raw = io.BytesIO()
    np.save(raw, made)
    found = npy.header(Held(raw.getvalue()), "an array")
    assert (found.shape, found.itemsize) == (made.shape, made.dtype.itemsize)
    assert found.offset == len(raw.getvalue()) - made.nbytes
    if spelt[1] != "M":
        assert np.dtype(found.dtype if spelt[1] not in "US" else spelt).itemsize == made.dtype.itemsize


@given(
    st.sampled_from(["<f8", ">f4", "|b1", "<U7", "|S3", "O", "<M8[ns]", [("a", "<f8"), ("b", "<i4", (2,))]]),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([2, 4, 5]),
)
def test_an_array_in_a_pickle_is_what_it_was(spelt: Any, shape: list[int], protocol: int) -> None:
    import pickle

    made = np.zeros(shape, spelt)
    found = array(interpret(pickle.dumps(made, protocol)).value)
    assert found is not None
    assert (found.shape, found.itemsize) == (made.shape, made.dtype.itemsize)
    assert (found.dtype == "object") == made.dtype.hasobject
    if not made.dtype.hasobject:
        assert found.held == made.tobytes()


@given(st.binary(max_size=120))
def test_noise_in_a_dtype_is_refused_or_read(noise: bytes) -> None:
    import pickle

    raw = bytearray(pickle.dumps(np.dtype([("a", "<f8"), ("b", "O")]), 4))
    for place, change in enumerate(noise):
        raw[(place * 37) % len(raw)] ^= change & (1 << place % 8)
    with suppress(HiveError):
        for node in walk(interpret(bytes(raw)).value):
            dtype(node)
            array(node)
