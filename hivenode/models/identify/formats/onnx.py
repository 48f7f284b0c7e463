"""ONNX models as a graph of operators and constants, weights skipped. Field numbers after onnx/onnx.proto3 (IR 13)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.protobuf import BYTES, VARINT, Wire, signed
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import FREE, Port

DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32),
    13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8), 20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1", 4), 24: ("float8_e8m0", 8),
    25: ("uint2", 2), 26: ("int2", 2),
}  # fmt: skip
"""Data type number -> name and bits."""
DEEPEST = 24
"""Subgraphs within subgraphs; a decoder loop within a branch is 2."""
MOST_AXES = 64
MOST_NODES = 500_000
MOST_LISTED = 64
LONGEST_WORD = 64
"""Attributes longer than these are data or prose, and not kept."""
_ELEMENT_LIMIT = 1 << 62
_LEARNT_LISTS = frozenset({"coefficients", "intercepts", "support_vectors", "rho", "nodes_values"})
"""Attributes in which the operators of ai.onnx.ml keep what they learnt; of trees, a number a node."""


@dataclass(slots=True)
class Constant:
    """A tensor that stands in the model: an initializer or the attribute of a node.

    Attributes:
        offset, nbytes: its raw bytes in the model's own file; None if they are elsewhere or in typed fields.
        external: keys of `external_data` (location, offset, length) if the bytes are in another file.
        initializer: False for one inside a node.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    offset: int | None = None
    nbytes: int | None = None
    external: dict[str, str] | None = None
    initializer: bool = True
    sparse: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Node:
    """An operator at work. `constants`: tensors in its attributes; `numbers`, `lists`, `texts`: attributes that are an
    integer, a few integers, a short text; `place`: byte offset."""

    op: str = ""
    domain: str = ""
    name: str = ""
    place: int = 0
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    subgraphs: list[Graph] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    name: str = ""
    nodes: list[Node] = field(default_factory=list)
    initializers: list[Constant] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)

    def walk(self) -> Iterator[Graph]:
        """This graph and all inside it."""
        stack = [self]
        while stack:
            graph = stack.pop()
            yield graph
            for node in graph.nodes:
                stack.extend(node.subgraphs)


@dataclass(slots=True)
class Model:
    """An ONNX model. `functions`: (domain, name) -> its body; `opsets`: domain -> version."""

    ir_version: int = 0
    producer: str = ""
    graph: Graph = field(default_factory=Graph)
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    functions: dict[tuple[str, str], Graph] = field(default_factory=dict)
    training: int = 0


def parse(window: Window) -> Model:
    """The model in a file.

    Raises:
        Corrupted: numbers that do not fit together: shapes against bytes, fields past their end.
        Exhausted: deeper, or of more nodes, than models are.
    """
    return _Parser(window).model()


class _Parser:
    def __init__(self, window: Window) -> None:
        self.window = window
        self.wire = Wire(window)
        self._nodes = 0

    def model(self) -> Model:
        model = Model()
        text = self.wire.text
        for number, kind, at, size in self.wire.fields(0, self.window.size):
            if kind == VARINT and number == 1:
                model.ir_version = at
            if kind != BYTES:
                continue
            if number == 2:
                model.producer = text(at, size)
            elif number == 7:
                self._graph(model.graph, at, size, 0)
            elif number == 8:
                domain, version = self._opset(at, size)
                model.opsets[domain] = version
            elif number == 14:
                key, value = self._pair(at, size)
                model.metadata[key] = value
            elif number == 20:
                model.training += 1
            elif number == 25:
                self._function(model, at, size)
        return model

    def _graph(self, graph: Graph, start: int, length: int, depth: int) -> None:
        if depth > DEEPEST:
            raise Exhausted(
                f"{self.window.name} nests more than {DEEPEST} graphs.", fix="It is made to waste time; refuse it."
            )
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                graph.nodes.append(self._node(at, size, depth))
            elif number == 2:
                graph.name = self.wire.text(at, size)
            elif number == 5:
                graph.initializers.append(self._tensor(at, size))
            elif number == 15:
                graph.initializers.append(self._sparse(at, size))
            elif number == 11:
                graph.inputs.append(self._port(at, size))
            elif number == 12:
                graph.outputs.append(self._port(at, size))

    def _node(self, start: int, length: int, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise Exhausted(f"{self.window.name} has more than {MOST_NODES} nodes.", fix="Refuse it; no model has.")
        node = Node(place=start)
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                node.inputs.append(self.wire.text(at, size))
            elif number == 2:
                node.outputs.append(self.wire.text(at, size))
            elif number == 3:
                node.name = self.wire.text(at, size)
            elif number == 4:
                node.op = self.wire.text(at, size)
            elif number == 5:
                self._attribute(node, at, size, depth)
            elif number == 7:
                node.domain = self.wire.text(at, size)
        return node

    def _attribute(self, node: Node, start: int, length: int, depth: int) -> None:
        name, held, many, value = "", [], 0, None
        many_kind = "float32"
        listed: list[int] = []
        text: str | None = None
        for found in self.wire.fields(start, length):
            number, kind, at, size = found
            if number == 8 and len(listed) < MOST_LISTED and size <= MOST_LISTED * 10:
                listed.extend(signed(value) for value in self.wire.numbers(found))
            if number == 3 and kind == VARINT:
                value = signed(at)
            elif number in (7, 8):
                many_kind = "float32" if number == 7 else "int64"
                many += size // 4 if number == 7 and kind == BYTES else 1 if kind != BYTES else size
            elif kind != BYTES:
                continue
            elif number == 1:
                name = self.wire.text(at, size)
            elif number == 4 and size <= LONGEST_WORD:
                text = self.wire.text(at, size)
            elif number in (5, 10):
                held.append(self._tensor(at, size))
            elif number in (22, 23):
                held.append(self._sparse(at, size))
            elif number in (6, 11):
                graph = Graph()
                self._graph(graph, at, size, depth + 1)
                node.subgraphs.append(graph)
        for tensor in held:
            tensor.initializer = False
            tensor.name = tensor.name or (node.outputs[0] if node.outputs else node.name)
        node.constants.extend(held)
        if value is not None:
            node.numbers[name] = value
        if listed:
            node.lists[name] = listed
        if text is not None:
            node.texts[name] = text
        if node.op == "Constant" and name == "value_floats" and many:
            node.constants.append(Constant(node.name, many_kind, (many,), 32, initializer=False))
        elif name in _LEARNT_LISTS and many:
            node.constants.append(Constant(f"{node.name}.{name}", many_kind, (many,), 32, initializer=False))

    def _tensor(self, start: int, length: int) -> Constant:
        shape: list[int] = []
        dtype_number, name, typed, raw, external, elsewhere = 0, "", 0, None, {}, False
        for found in self.wire.fields(start, length):
            number, kind, at, size = found
            if number == 1:
                shape.extend(self.wire.numbers(found))
            elif number == 2 and kind == VARINT:
                dtype_number = at
            elif number in (4, 5, 6, 7, 10, 11):
                typed += size if kind == BYTES and number != 6 else 8
            elif number == 14 and kind == VARINT:
                elsewhere = at == 1
            elif kind != BYTES:
                continue
            elif number == 8:
                name = self.wire.text(at, size)
            elif number == 9:
                raw = (at, size)
            elif number == 13:
                key, value = self._pair(at, size)
                external[key] = value
        dtype, bits = self._dtype(dtype_number, name)
        tensor = Constant(name, dtype, self._shape(shape, name), bits)
        wanted = -(-tensor.elements * bits // 8)
        if elsewhere or external:
            tensor.external, tensor.nbytes = external, wanted
        elif raw is not None:
            tensor.offset, tensor.nbytes = raw
            if raw[1] != wanted and dtype != "string":
                raise self.window.broken(f"tensor {name!r} of shape {shape} takes {wanted} bytes, it has {raw[1]}")
        elif tensor.elements > 2 * typed:
            raise self.window.broken(f"tensor {name!r} of shape {shape} has the bytes of {typed} elements at most")
        return tensor

    def _sparse(self, start: int, length: int) -> Constant:
        """A sparse tensor as what it stores: the values."""
        values, dims = None, []
        for found in self.wire.fields(start, length):
            number, kind, at, size = found
            if number == 1 and kind == BYTES:
                values = self._tensor(at, size)
            elif number == 3:
                dims.extend(self.wire.numbers(found))
        if values is None:
            raise self.window.broken(f"a sparse tensor at byte {start} has no values")
        self._shape(dims, values.name)
        values.sparse = True
        return values

    def _dtype(self, number: int, name: str) -> tuple[str, int]:
        known = DTYPES.get(number)
        if known is None:
            raise self.window.broken(f"tensor {name!r} has the unknown data type {number}")
        return known

    def _shape(self, shape: list[int], name: str) -> tuple[int, ...]:
        total = 1
        for size in shape:
            total *= max(size, 1)
            if size < 0 or total > _ELEMENT_LIMIT:
                raise self.window.broken(f"the shape of tensor {name!r} makes no sense")
        if len(shape) > MOST_AXES:
            raise self.window.broken(f"tensor {name!r} has {len(shape)} axes")
        return tuple(shape)

    def _port(self, start: int, length: int) -> Port:
        name, dtype, shape = "", None, None
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                name = self.wire.text(at, size)
            elif number == 2 and kind == BYTES:
                dtype, shape = self._type(at, size)
        return Port(name, dtype, shape)

    def _type(self, start: int, length: int) -> tuple[str | None, tuple[int, ...] | None]:
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number in (1, 8):
                return self._tensor_type(at, size)
            if number in (4, 5, 9):
                return {4: "sequence", 5: "map", 9: "optional"}[number], None
        return None, None

    def _tensor_type(self, start: int, length: int) -> tuple[str | None, tuple[int, ...] | None]:
        dtype: str | None = None
        shape: list[int] | None = None
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == VARINT:
                dtype = DTYPES.get(at, (None, 0))[0]
            elif number == 2 and kind == BYTES:
                shape = []
                for dimension, dimension_kind, inner, inner_size in self.wire.fields(at, size):
                    if dimension == 1 and dimension_kind == BYTES and len(shape) < MOST_AXES:
                        shape.append(self._dimension(inner, inner_size))
        return dtype, None if shape is None else tuple(shape)

    def _dimension(self, start: int, length: int) -> int:
        for number, kind, at, _ in self.wire.fields(start, length):
            if number == 1 and kind == VARINT:
                return signed(at) if signed(at) >= 0 else FREE
        return FREE

    def _opset(self, start: int, length: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                domain = self.wire.text(at, size)
            elif number == 2 and kind == VARINT:
                version = signed(at)
        return domain, version

    def _pair(self, start: int, length: int) -> tuple[str, str]:
        key = value = ""
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                key = self.wire.text(at, size)
            elif number == 2 and kind == BYTES:
                value = self.wire.text(at, min(size, 1 << 15))
        return key, value

    def _function(self, model: Model, start: int, length: int) -> None:
        name = domain = ""
        body = Graph()
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                name = self.wire.text(at, size)
            elif number == 7:
                body.nodes.append(self._node(at, size, 1))
            elif number == 10:
                domain = self.wire.text(at, size)
        body.name = name
        model.functions[domain, name] = body
