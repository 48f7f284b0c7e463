"""Random structures of graphs and their primitives: only clean answers come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivenode.errors import HiveError
from hivenode.models.identify.formats.protobuf import Wire
from hivenode.models.identify.formats.windows import Paged, Window
from hivenode.models.identify.readers import onnx
from hivenode.models.identify.source import Held, Source
from tests.models.identify.graph_builders import message, onnx_model, onnx_node, onnx_tensor


def outcome(reader: object, path: Path) -> str:
    """What a reader answers; anything but a report or a HiveError is a failure of the test."""
    try:
        with Source(path) as source:
            reader.detects(source.head(), source)  # type: ignore[attr-defined]
            report = reader.read(source)  # type: ignore[attr-defined]
    except HiveError as error:
        return error.code
    return f"safe={report.safe}"


def place(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / Path(name).name
    path.write_bytes(data)
    return path


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_fields_or_a_clean_error(data: bytes) -> None:
    wire = Wire(Window(Held(data), len(data), "bytes"))
    at = 0
    try:
        for _, kind, value, length in wire.fields(0, len(data)):
            if kind == 2:
                assert at <= value <= value + length <= len(data)
                at = value
    except HiveError:
        pass


@given(
    st.binary(min_size=1, max_size=20_000),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9000)), max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_windows_give_the_bytes_of_the_file(data: bytes, reads: list[tuple[int, int]]) -> None:
    for view in (Window(Held(data), len(data), "w"), Paged(Held(data), len(data), "w")):
        for offset, length in reads:
            if offset + length <= len(data):
                assert view.read(offset, length) == data[offset : offset + length]
            else:
                with pytest.raises(HiveError):
                    view.read(offset, length)


names = st.text(alphabet="abcwxy_/.", max_size=5)
tensors = st.builds(
    lambda name, dims, raw, dtype: onnx_tensor(name, dims, raw, dtype=dtype),
    names,
    st.lists(st.integers(0, 1 << 64 - 1), max_size=4),
    st.none() | st.binary(max_size=32),
    st.integers(0, 30),
)
wires = st.lists(names, max_size=3)


def branching(op: str, wires: list[str], graph: bytes, tensor: bytes) -> bytes:
    """A node with a tensor and a graph in its attributes."""
    inner = message((1, "b"), (6, message((1, graph), (5, tensor))))
    return onnx_node(op, wires, wires, attributes=[message((1, "a"), (5, tensor)), inner])


nodes = st.recursive(
    st.builds(onnx_node, st.sampled_from(["Conv", "If", "Identity", "MatMul", "Evil"]), wires, wires),
    lambda inner: st.builds(branching, st.sampled_from(["If", "Loop", "Constant"]), wires, inner, tensors),
    max_leaves=6,
)


@given(st.lists(nodes, max_size=4), st.lists(tensors, max_size=3))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_random_models_end_cleanly(tmp_path: Path, graph: list[bytes], held: list[bytes]) -> None:
    data = onnx_model(*((1, node) for node in graph), *((5, tensor) for tensor in held))
    result = outcome(onnx, place(tmp_path, "random.onnx", data))
    assert result in ("safe=True", "safe=False", "corrupted", "exhausted")
    if b"Evil" in data:
        assert result != "safe=True"
