"""Structures nobody would write: only clean errors, never a claim that a hostile file is safe because half was read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.models.identify import FILE_READERS, identify
from hivenode.models.identify.report import Report
from tests.models.identify.graph_builders import gguf, gguf_tensor, gguf_text
from tests.models.identify.zips import write_zip


def sound(report: Report) -> bool:
    """Whether a report is one a person can use: a verdict, or an error with a fix."""
    return report.safe is not None or (report.error is not None and bool(report.error.fix))


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.floats(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=6,
    ),
    st.sampled_from(["config.json", "adapter_config.json", "model_index.json", "model.safetensors.index.json"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_in_a_model_directory(tmp_path: Path, value: object, name: str) -> None:
    import msgspec

    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(msgspec.json.encode(value))
    assert sound(identify(folder))


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pickle_in_an_archive(tmp_path: Path, payload: bytes) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02" + payload, "m/version": b"3"})
    assert sound(identify(path))


OPCODES = b"(.0123456789FIJKLMNPQRSTUVXabcdeghijlopqrstu})]\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x93\x94"


@given(st.lists(st.sampled_from([bytes([code]) for code in OPCODES] + [b"K\x01", b"X\x01\0\0\0a", b"q\0", b"h\0",
       b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]), max_size=40))  # fmt: skip
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_opcodes(tmp_path: Path, codes: list[bytes]) -> None:
    path = write_zip(tmp_path / "m.pt", {"m/data.pkl": b"\x80\x02" + b"".join(codes) + b".", "m/version": b"3"})
    assert sound(identify(path))


STARTS = sorted(
    {start for reader in FILE_READERS for start in reader.starts} | {b"\x08\x09\x12\x01t\x3a", b"\0\0\0\0TFL3"}
)


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_behind_a_known_beginning(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(start + rest)
    assert sound(identify(path))


texts = st.text(max_size=6).map(gguf_text)
scalars = st.tuples(st.integers(0, 12), st.binary(max_size=12)).map(lambda pair: struct.pack("<I", pair[0]) + pair[1])
strings = texts.map(lambda text: struct.pack("<I", 8) + text)
arrays = st.tuples(st.integers(0, 12), st.integers(0, 1 << 64 - 1) | st.integers(0, 9), st.binary(max_size=80)).map(
    lambda parts: struct.pack("<IIQ", 9, parts[0], parts[1]) + parts[2]
)
infos = st.builds(
    lambda name, shape, kind, offset: gguf_tensor(name, tuple(shape), kind, offset),
    st.text(max_size=6), st.lists(st.integers(0, 1 << 64 - 1) | st.integers(0, 64), max_size=5), st.integers(0, 45),
    st.integers(0, 1 << 64 - 1) | st.integers(0, 4).map(lambda place: place * 32),
)  # fmt: skip


@given(
    st.lists(st.tuples(texts, scalars | strings | arrays), max_size=5),
    st.lists(infos, max_size=4),
    st.binary(max_size=200),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_keys_and_tensors_of_gguf(
    tmp_path: Path, pairs: list[tuple[bytes, bytes]], tensors: list[bytes], data: bytes
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        gguf(b"".join(key + value for key, value in pairs), len(pairs), b"".join(tensors), len(tensors), data)
    )
    assert sound(identify(path))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["learner", "gradient_booster", "model", "trees", "name", "tree_info", "objective",
                             "learner_model_param", "num_class", "oblivious_trees", "features_info", "model_info",
                             "weight_map", "version", "tree_param", "num_nodes"]), inner, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_of_boosters(tmp_path: Path, value: object) -> None:
    for table in ({"learner": value, "version": [3, 0, 0]}, {"oblivious_trees": value, "model_info": value}):
        path = tmp_path / "model.json"
        path.write_text(json.dumps(table))
        assert sound(identify(path))
