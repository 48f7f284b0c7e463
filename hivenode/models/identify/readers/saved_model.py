"""SavedModel directories, their saved_model.pb alone, and graphs frozen into one file."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

import msgspec

from hivenode.errors import HiveError
from hivenode.models.identify.formats import tensorflow
from hivenode.models.identify.formats.protobuf import BYTES, Wire
from hivenode.models.identify.formats.tensorflow import Graph, Node
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.naming import keras_layers
from hivenode.models.identify.naming.graphs import OF_WEIGHTS, of_weights, recognise
from hivenode.models.identify.naming.tensorflow_operators import HARMLESS, KINDS, SAVERS, TABLES
from hivenode.models.identify.readers import tf_checkpoint
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble, count
from hivenode.models.identify.source import Held, Source

FILE = "saved_model.pb"
_METHODS = {
    "tensorflow/serving/classify": "classification",
    "tensorflow/serving/regress": "regression",
}
_SMALLEST_WEIGHT = 2


def detects(head: bytes, source: Source) -> bool:
    """A SavedModel begins with its version and a graph, a bare graph with a node: a name, then an operator."""
    window = Window(Held(head), len(head), source.name)
    wire = Wire(window, most_fields=32)
    try:
        if head.startswith(b"\x08\x01\x12"):
            fields = wire.fields(2, len(head) - 2)
            number, kind, at, size = next(fields)
            return number == 2 and kind == BYTES and head[at] in (0x0A, 0x12) and size > 0
        if head.startswith(b"\x0a"):
            number, kind, at, size = next(wire.fields(0, len(head)))
            fields = wire.fields(at, size)
            parts = [(field, form, head[place : place + extent]) for field, form, place, extent in fields]
            named = len(parts) >= 2 and parts[0][:2] == (1, BYTES) and parts[1][:2] == (2, BYTES)
            return named and parts[1][2].isalnum()
    except (HiveError, IndexError, StopIteration):
        return head.startswith(b"\x08\x01\x12") and _starts_graph(head)
    return False


def _starts_graph(head: bytes) -> bool:
    """Version, graph of a length beyond the head, and in it first the information about the graph."""
    at = 3
    while at < len(head) and head[at] > 0x7F and at < 13:
        at += 1
    return head[at + 1 : at + 2] in (b"\x0a", b"\x12")


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return FILE in names


def read(source: Source) -> Report:
    """The graphs of one file, without variables."""
    window = Window(source.part(0, source.size), source.size, source.name)
    head = source.head(2)
    report = Report(safe=True)
    if head[:1] == b"\x08":
        report.know(Confidence.read, FILE, format="tf_saved_model", framework="tensorflow")
        graphs = tensorflow.saved_model(window)
        _judge(report, graphs)
        variables = {(v.name, v.shape): v for graph in graphs for v in graph.variables}.values()
        if variables:
            listing = [
                Tensor(v.name, v.dtype, v.shape, trainable=False if _is_statistic(v.name) else v.trainable or None)
                for v in variables
                if v.shape is not None and v.dtype not in ("resource", "string")
            ]
            report.hold(listing, "variables of the object graph")
    else:
        report.know(Confidence.read, "nodes of a graph", format="tf_graph", framework="tensorflow")
        graphs = [tensorflow.graph_def(window)]
        _judge(report, graphs)
        _hold_constants(report, graphs)
    _describe(report, graphs)
    return report


def read_directory(path: Path) -> Report:
    """Graphs, signatures and variables of a SavedModel."""
    report = Report(safe=True)
    report.know(Confidence.read, FILE, format="tf_saved_model", framework="tensorflow")
    with Source(path / FILE) as source:
        graphs = tensorflow.saved_model(Window(source.part(0, source.size), source.size, source.name))
        report.size_bytes, report.bytes_read = source.size, source.bytes_read
    _judge(report, graphs)
    _judge_keras(report, graphs, path)
    _variables(report, graphs, path)
    _describe(report, graphs)
    return report


def _variables(report: Report, graphs: list[Graph], path: Path) -> None:
    index = path / "variables" / "variables.index"
    trainable = {v.name: v.trainable for graph in graphs for v in graph.variables if v.name}
    if not index.is_file():
        if any(node.op in ("VarHandleOp", "VariableV2") for graph in graphs for node in graph.nodes):
            _trouble(report, "not_found", f"{path} has no variables/variables.index.", "Fetch the whole directory.")
        _hold_constants(report, graphs)
        return
    try:
        with Source(index) as source:
            tensors, size = tf_checkpoint.variables(source, trainable)
            tensors = [msgspec.structs.replace(tensor, file=f"variables/{tensor.file}") for tensor in tensors]
            report.size_bytes = (report.size_bytes or 0) + size
            report.bytes_read = (report.bytes_read or 0) + source.bytes_read
    except HiveError as error:
        _trouble(report, error.code, error.sentence, error.fix)
        return
    report.hold(tensors, "variables.index")
    if report.parameters == 0:
        _hold_constants(report, graphs)
    elif trainable:
        moving = sum(count(tensor.shape) for tensor in tensors if tensor.trainable and not tensor.shared_with)
        report.know(Confidence.guessed, "variables marked as trainable when made", trainable_parameters=moving or None)


def _hold_constants(report: Report, graphs: list[Graph]) -> None:
    """A frozen graph: its weights are constants."""
    held = [
        Tensor(constant.name, constant.dtype, constant.shape, "", constant.offset, constant.nbytes,
               trainable=None if constant.dtype.startswith(("float", "bfloat", "qint")) and
               count(constant.shape) >= _SMALLEST_WEIGHT else False)
        for graph in graphs for constant in graph.constants
    ]  # fmt: skip
    report.hold(held, "constants of the graph")
    report.know(Confidence.inferred, "floating-point constants of more than one element", parameters=report.parameters)


def _trouble(report: Report, code: str, message: str, fix: str) -> None:
    report.error = Trouble(code, message, fix)
    if report.safe:
        report.safe = None


def _is_statistic(name: str) -> bool:
    return name.rsplit("/", 1)[-1].split(":")[0] in ("moving_mean", "moving_variance", "seed_generator_state")


def _judge(report: Report, graphs: list[Graph]) -> None:
    """Name each operator outside the list; those that save and restore, where the model's use can reach them."""
    for graph in graphs:
        reached = _reached(graph)
        seen: set[str] = set()
        bodies = [(f"function {name}"[:200], body) for name, body in graph.functions.items()]
        for place, nodes in [("graph", graph.nodes), *bodies]:
            for node in nodes:
                if node.op in seen or node.op in HARMLESS or not node.op:
                    continue
                if node.op in graph.functions:
                    continue
                if node.op in SAVERS and id(node) not in reached:
                    continue
                if node.op in TABLES and graph.assets:
                    continue
                seen.add(node.op)
                why = (
                    "The operator reads or writes checkpoints where the model is used, not where it is saved."
                    if node.op in SAVERS
                    else "The operator reads a file that is none of the model's own."
                    if node.op in TABLES
                    else "The operator is not known to compute only: it may reach files, Python or the network."
                )
                report.find(node.op, f"{place}, node {node.name[:80]!r}, byte {node.place}", why)


def _reached(graph: Graph) -> set[int]:
    """Ids of the nodes that run when a signature, an initializer or an offered function is used."""
    by_name = {node.name: node for node in graph.nodes}
    roots = [tensor for signature in graph.signatures for tensor in signature.tensors]
    if not graph.signatures and not graph.savers:
        roots = list(by_name)
    waiting: deque[Node] = deque(_named(by_name, roots))
    done: set[int] = set()
    entered: set[str] = set()
    for name in graph.concrete:
        _enter(graph, name, entered, waiting)
    while waiting:
        node = waiting.popleft()
        if id(node) in done:
            continue
        done.add(id(node))
        waiting.extend(_named(by_name, node.inputs))
        for name in (*node.functions, node.op):
            _enter(graph, name, entered, waiting)
    return done


def _enter(graph: Graph, name: str, entered: set[str], waiting: deque[Node]) -> None:
    if name in graph.functions and name not in entered:
        entered.add(name)
        waiting.extend(graph.functions[name])


def _named(by_name: dict[str, Node], tensors: list[str]) -> list[Node]:
    names = (tensor.lstrip("^").split(":")[0] for tensor in tensors)
    return [by_name[name] for name in names if name in by_name]


def _judge_keras(report: Report, graphs: list[Graph], path: Path) -> None:
    """Layers that Keras would rebuild from their configurations when it loads the directory."""
    objects = [pair for graph in graphs for pair in graph.objects]
    metadata = path / "keras_metadata.pb"
    if metadata.is_file():
        with Source(metadata) as source:
            objects += tensorflow.keras_metadata(Window(source.part(0, source.size), source.size, source.name))
    for number, (identifier, text) in enumerate(objects):
        if not text or not identifier.startswith("_tf_keras"):
            continue
        try:
            config = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            report.find(identifier, f"object {number}", "Its configuration cannot be read.")
            continue
        if isinstance(config, dict) and identifier in ("_tf_keras_layer", "_tf_keras_sequential", "_tf_keras_network"):
            keras_layers.judge(report, config.get("config"), f"object {number}", only_code=True)
            if config.get("class_name") == "Lambda":
                keras_layers.judge(report, config, f"object {number}", only_code=True)


def _describe(report: Report, graphs: list[Graph]) -> None:
    chosen = next((graph for graph in graphs if "serve" in graph.tags), graphs[0] if graphs else None)
    if chosen is None:
        return
    signatures = {signature.name: signature for signature in chosen.signatures if signature.outputs}
    signatures.pop("__saved_model_init_op", None)
    signature = signatures.get("serving_default") or next(iter(signatures.values()), None)
    mix = of_weights(report.listing)
    reached = _reached(chosen)
    bodies = (chosen.nodes, *chosen.functions.values())
    operators = Counter(
        KINDS[node.op] for nodes in bodies for node in nodes if node.op in KINDS and id(node) in reached
    )
    for kind, times in operators.items():
        if kind not in mix.kinds and (kind not in OF_WEIGHTS or not mix.kinds):
            mix.kinds[kind] = times
    if signature is not None:
        report.know(Confidence.read, f"signature {signature.name}", inputs=signature.inputs, outputs=signature.outputs)
        mix.inputs, mix.outputs = signature.inputs, signature.outputs
        report.know(Confidence.read, "method of the signature", task=_METHODS.get(signature.method))
    recognise(report, mix)
