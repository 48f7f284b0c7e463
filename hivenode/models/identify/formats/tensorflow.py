"""TensorFlow's own messages: SavedModel, GraphDef, and the index of a checkpoint. Weights are skipped.

Field numbers after tensorflow/core/protobuf/{saved_model,meta_graph,saved_object_graph,trackable_object_graph,
tensor_bundle}.proto and tensorflow/core/framework/{graph,function,node_def,tensor,types}.proto.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.leveldb import Table
from hivenode.models.identify.formats.protobuf import BYTES, VARINT, Wire, signed
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.report import FREE, Port
from hivenode.models.identify.source import Held

DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 4), 2: ("float64", 8), 3: ("int32", 4), 4: ("uint8", 1), 5: ("int16", 2), 6: ("int8", 1),
    7: ("string", 0), 8: ("complex64", 8), 9: ("int64", 8), 10: ("bool", 1), 11: ("qint8", 1), 12: ("quint8", 1),
    13: ("qint32", 4), 14: ("bfloat16", 2), 15: ("qint16", 2), 16: ("quint16", 2), 17: ("uint16", 2),
    18: ("complex128", 16), 19: ("float16", 2), 20: ("resource", 0), 21: ("variant", 0), 22: ("uint32", 4),
    23: ("uint64", 8), 24: ("float8_e5m2", 1), 25: ("float8_e4m3fn", 1), 29: ("int4", 1), 30: ("uint4", 1),
}  # fmt: skip
MOST_NODES = 2_000_000
MOST_AXES = 64
LARGEST_OBJECT_GRAPH = 16 << 20


@dataclass(slots=True)
class Constant:
    """A Const node that holds a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None
    nbytes: int | None


@dataclass(slots=True)
class Node:
    name: str = ""
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    place: int = 0


@dataclass(slots=True)
class Variable:
    """A variable of an object graph. `trainable` as the model was saved."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    trainable: bool


@dataclass(slots=True)
class Signature:
    name: str
    method: str = ""
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """One MetaGraphDef, or a bare GraphDef.

    Attributes:
        nodes: of the outer graph; functions: name -> nodes.
        savers: tensors by which the model saves and restores itself.
        concrete: functions that the object graph offers by name.
        classes: class names of Keras objects that were saved (identifier, metadata).
    """

    tags: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    functions: dict[str, list[Node]] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    savers: list[str] = field(default_factory=list)
    concrete: list[str] = field(default_factory=list)
    objects: list[tuple[str, str]] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)

    def operators(self) -> Counter[str]:
        """How often each operator occurs, functions included."""
        found = Counter(node.op for node in self.nodes)
        for nodes in self.functions.values():
            found.update(node.op for node in nodes)
        return found


def saved_model(window: Window) -> list[Graph]:
    """The graphs of a saved_model.pb."""
    parser = _Parser(window)
    return [parser.meta_graph(at, size) for number, kind, at, size in parser.wire.fields(0, window.size)
            if number == 2 and kind == BYTES]  # fmt: skip


def graph_def(window: Window) -> Graph:
    """A bare graph, as it was frozen into one file."""
    graph = Graph()
    _Parser(window).graph(graph, 0, window.size)
    return graph


def keras_metadata(window: Window) -> list[tuple[str, str]]:
    """Identifier and JSON of each object in a keras_metadata.pb."""
    wire = Wire(window)
    found: list[tuple[str, str]] = []
    for number, kind, at, size in wire.fields(0, window.size):
        if number == 1 and kind == BYTES:
            identifier = metadata = ""
            for inner, inner_kind, place, length in wire.fields(at, size):
                if inner_kind == BYTES and inner == 4:
                    identifier = wire.text(place, length)
                elif inner_kind == BYTES and inner == 5:
                    metadata = wire.text(place, length, longest=LARGEST_OBJECT_GRAPH)
            found.append((identifier, metadata))
    return found


class _Parser:
    def __init__(self, window: Window) -> None:
        self.window = window
        self.wire = Wire(window)
        self._nodes = 0

    def meta_graph(self, start: int, length: int) -> Graph:
        graph = Graph()
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                graph.tags.extend(self.wire.text(place, extent) for inner, inner_kind, place, extent
                                  in self.wire.fields(at, size) if inner == 4 and inner_kind == BYTES)  # fmt: skip
            elif number == 2:
                self.graph(graph, at, size)
            elif number == 3:
                graph.savers.extend(self.wire.text(place, extent) for inner, inner_kind, place, extent
                                    in self.wire.fields(at, size)
                                    if inner in (1, 2, 3) and inner_kind == BYTES)  # fmt: skip
            elif number == 5:
                graph.signatures.append(self._signature(at, size))
            elif number == 6:
                graph.assets.extend(self.wire.text(place, extent) for inner, inner_kind, place, extent
                                    in self.wire.fields(at, size) if inner == 2 and inner_kind == BYTES)  # fmt: skip
            elif number == 7:
                self._objects(graph, at, size)
        return graph

    def graph(self, graph: Graph, start: int, length: int) -> None:
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                graph.nodes.append(self._node(graph, at, size))
            elif number == 2 and kind == BYTES:
                for inner, inner_kind, place, extent in self.wire.fields(at, size):
                    if inner == 1 and inner_kind == BYTES:
                        self._function(graph, place, extent)

    def _function(self, graph: Graph, start: int, length: int) -> None:
        name = ""
        nodes: list[Node] = []
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                for inner, inner_kind, place, extent in self.wire.fields(at, size):
                    if inner == 1 and inner_kind == BYTES:
                        name = self.wire.text(place, extent)
            elif number == 3 and kind == BYTES:
                nodes.append(self._node(graph, at, size))
        if name in graph.functions:
            raise self.window.broken(f"it holds the function {name[:80]} twice")
        graph.functions[name] = nodes

    def _node(self, graph: Graph, start: int, length: int) -> Node:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise Exhausted(f"{self.window.name} has more than {MOST_NODES} nodes.", fix="Refuse it; no model has.")
        node = Node(place=start)
        tensor: Constant | None = None
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                node.name = self.wire.text(at, size)
            elif number == 2:
                node.op = self.wire.text(at, size)
            elif number == 3:
                node.inputs.append(self.wire.text(at, size))
            elif number == 5:
                tensor = self._attribute(node, at, size) or tensor
        if tensor is not None and node.op == "Const":
            tensor.name = node.name
            graph.constants.append(tensor)
        return node

    def _attribute(self, node: Node, start: int, length: int) -> Constant | None:
        tensor: Constant | None = None
        for number, kind, at, size in self.wire.fields(start, length):
            if number != 2 or kind != BYTES:
                continue
            for inner, inner_kind, place, extent in self.wire.fields(at, size):
                if inner_kind != BYTES:
                    continue
                if inner == 8:
                    tensor = self._tensor(place, extent)
                elif inner == 10:
                    self._called(node, place, extent)
                elif inner == 1:
                    for item, item_kind, item_at, item_size in self.wire.fields(place, extent):
                        if item == 9 and item_kind == BYTES:
                            self._called(node, item_at, item_size)
        return tensor

    def _called(self, node: Node, start: int, length: int) -> None:
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                node.functions.append(self.wire.text(at, size))

    def _tensor(self, start: int, length: int) -> Constant:
        dtype, shape, content = "unknown", None, None
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == VARINT:
                dtype = DTYPES.get(at, ("unknown", 0))[0]
            elif number == 2 and kind == BYTES:
                shape = self._shape(at, size)
            elif number == 4 and kind == BYTES:
                content = (at, size)
        width = dict(DTYPES.values()).get(dtype, 0)
        if content is not None and width and content[1] != math.prod(shape or ()) * width:
            raise self.window.broken(f"a constant at byte {start} has {content[1]} bytes, its shape is {shape}")
        return Constant("", dtype, shape or (), *(content or (None, None)))

    def _shape(self, start: int, length: int) -> tuple[int, ...] | None:
        """Axes, free ones as -1; None where even their number is free."""
        shape: list[int] = []
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 3 and kind == VARINT and at:
                return None
            if number == 2 and kind == BYTES:
                axis = 0
                for inner, inner_kind, value, _ in self.wire.fields(at, size):
                    if inner == 1 and inner_kind == VARINT:
                        axis = signed(value)
                shape.append(axis if axis >= 0 else FREE)
        total = math.prod(max(size, 1) for size in shape)
        if len(shape) > MOST_AXES or total >= 1 << 62:
            raise self.window.broken(f"the shape at byte {start} makes no sense")
        return tuple(shape)

    def _signature(self, start: int, length: int) -> Signature:
        signature = Signature("")
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 1:
                signature.name = self.wire.text(at, size)
            elif number == 2:
                for inner, inner_kind, place, extent in self.wire.fields(at, size):
                    if inner_kind != BYTES:
                        continue
                    if inner == 3:
                        signature.method = self.wire.text(place, extent)
                    elif inner in (1, 2):
                        ports = signature.inputs if inner == 1 else signature.outputs
                        ports.append(self._port(signature, place, extent))
        signature.inputs.sort(key=lambda port: port.name)
        signature.outputs.sort(key=lambda port: port.name)
        return signature

    def _port(self, signature: Signature, start: int, length: int) -> Port:
        name, dtype, shape = "", None, None
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                name = self.wire.text(at, size)
            elif number == 2 and kind == BYTES:
                for inner, inner_kind, place, extent in self.wire.fields(at, size):
                    if inner == 1 and inner_kind == BYTES:
                        signature.tensors.append(self.wire.text(place, extent))
                    elif inner == 2 and inner_kind == VARINT:
                        dtype = DTYPES.get(place, (None, 0))[0]
                    elif inner == 3 and inner_kind == BYTES:
                        shape = self._shape(place, extent)
        return Port(name, dtype, shape)

    def _objects(self, graph: Graph, start: int, length: int) -> None:
        for number, kind, at, size in self.wire.fields(start, length):
            if kind != BYTES:
                continue
            if number == 2:
                graph.concrete.extend(self.wire.text(place, extent) for inner, inner_kind, place, extent
                                      in self.wire.fields(at, size) if inner == 1 and inner_kind == BYTES)  # fmt: skip
            elif number == 1:
                for inner, inner_kind, place, extent in self.wire.fields(at, size):
                    if inner == 7 and inner_kind == BYTES:
                        graph.variables.append(self._variable(place, extent))
                    elif inner == 4 and inner_kind == BYTES:
                        self._user_object(graph, place, extent)

    def _user_object(self, graph: Graph, start: int, length: int) -> None:
        identifier = metadata = ""
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == BYTES:
                identifier = self.wire.text(at, size)
            elif number == 3 and kind == BYTES:
                metadata = self.wire.text(at, size, longest=LARGEST_OBJECT_GRAPH)
        graph.objects.append((identifier, metadata))

    def _variable(self, start: int, length: int) -> Variable:
        variable = Variable("", "unknown", None, False)
        for number, kind, at, size in self.wire.fields(start, length):
            if number == 1 and kind == VARINT:
                variable.dtype = DTYPES.get(at, ("unknown", 0))[0]
            elif number == 2 and kind == BYTES:
                variable.shape = self._shape(at, size)
            elif number == 3 and kind == VARINT:
                variable.trainable = bool(at)
            elif number == 6 and kind == BYTES:
                variable.name = self.wire.text(at, size)
        return variable


@dataclass(slots=True)
class Stored:
    """One tensor of a checkpoint: in which of its data files, and where."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


def checkpoint(window: Window) -> tuple[int, list[Stored]]:
    """How many data files a checkpoint has, and its tensors, from the index.

    Raises:
        Corrupted: shapes, dtypes and sizes that do not fit together; a file number beyond the last.
    """
    shards = 1
    found: list[Stored] = []
    for key, value in Table(window).entries():
        inner = _Parser(Window(Held(value), len(value), window.name))
        if not key:
            for number, kind, at, _ in inner.wire.fields(0, len(value)):
                if number == 1 and kind == VARINT:
                    shards = at
            continue
        shape: tuple[int, ...] = ()
        dtype, shard, offset, size, sliced = 0, 0, 0, 0, False
        for number, kind, at, extent in inner.wire.fields(0, len(value)):
            if number == 1 and kind == VARINT:
                dtype = at
            elif number == 2 and kind == BYTES:
                shape = inner._shape(at, extent) or ()
            elif number == 3 and kind == VARINT:
                shard = at
            elif number == 4 and kind == VARINT:
                offset = at
            elif number == 5 and kind == VARINT:
                size = at
            elif number == 7:
                sliced = True
        name = key.decode("utf-8", "backslashreplace")
        named, width = DTYPES.get(dtype, ("unknown", 0))
        if any(axis < 0 for axis in shape) or not 0 <= shard < max(shards, 1):
            raise window.broken(f"the entry {name[:80]} makes no sense")
        if width and not sliced and size != math.prod(shape) * width:
            wanted = math.prod(shape) * width
            raise window.broken(f"{name[:80]} of shape {list(shape)} takes {wanted} bytes, not {size}")
        if not sliced and size + offset < 1 << 62:
            found.append(Stored(name, named, shape, shard, offset, size))
        elif sliced:
            found.append(Stored(name, named, shape, shard, 0, 0))
    return shards, found


def object_names(raw: bytes, name: str) -> tuple[dict[str, str], set[str]]:
    """Out of the object graph of a checkpoint: checkpoint key -> the variable's own name, and the keys of slots."""
    wire = Wire(Window(Held(raw), len(raw), name))
    nodes: list[tuple[list[tuple[str, str]], list[int]]] = []
    for number, kind, at, size in wire.fields(0, len(raw)):
        if number != 1 or kind != BYTES:
            continue
        attributes: list[tuple[str, str]] = []
        slots: list[int] = []
        for inner, inner_kind, place, extent in wire.fields(at, size):
            if inner_kind != BYTES:
                continue
            texts = {}
            for item, item_kind, value, length in wire.fields(place, extent):
                if inner == 2 and item_kind == BYTES:
                    texts[item] = wire.text(value, length)
                elif inner == 3 and item_kind == VARINT and item == 3:
                    slots.append(value)
            if 3 in texts:
                attributes.append((texts[3], texts.get(2, "")))
        nodes.append((attributes, slots))
    names = {key: full for attributes, _ in nodes for key, full in attributes}
    slot_keys = {key for _, slots in nodes for number in slots if number < len(nodes) for key, _ in nodes[number][0]}
    return names, slot_keys
