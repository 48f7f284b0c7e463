"""ONNX: a graph with its weights, in one file or with weights beside it. https://onnx.ai/onnx/repo-docs/IR.html"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from hivenode.errors import HiveError
from hivenode.models.identify.formats.onnx import Constant, Model, parse
from hivenode.models.identify.formats.protobuf import BYTES, VARINT, Wire
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.naming.graphs import recognise
from hivenode.models.identify.naming.onnx_graphs import Roles, mix_of
from hivenode.models.identify.naming.onnx_operators import harmless
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble
from hivenode.models.identify.source import Held, Source

_MODEL_FIELDS = {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES,
                 25: BYTES, 26: BYTES}  # fmt: skip
VERSIONED = 3
"""Versions of the format from this one on must name a set of operators, which is written last."""
_GRAPH_STARTS = {0x0A, 0x12, 0x2A, 0x52, 0x5A, 0x62, 0x6A, 0x72, 0x7A}
_ULTRALYTICS = re.compile(r"ultralytics\s+(yolo\S+|rt-?detr\S*|fastsam\S*|sam\S*)", re.IGNORECASE)
_ULTRALYTICS_TASKS = {
    "detect": "object_detection", "segment": "instance_segmentation", "classify": "image_classification",
    "pose": "pose_estimation", "obb": "oriented_object_detection",
}  # fmt: skip
_FRAMEWORKS = {
    "pytorch": "pytorch", "tf2onnx": "tensorflow", "keras2onnx": "keras", "skl2onnx": "scikit-learn",
    "onnxmltools": "onnx", "paddle": "paddle", "cntk": "cntk", "onnx-caffe2": "caffe2", "lightgbm": "lightgbm",
    "paddlepaddle": "paddle",
    "matlab deep learning toolbox converter for onnx model format": "matlab",
}  # fmt: skip


def detects(head: bytes, source: Source) -> bool:
    """ONNX has no magic: it is told by the fields of its outermost message, up to the beginning of the graph."""
    window = Window(Held(head), len(head), source.name)
    known = False
    if not head or (head[0] != 0x08 and head[0] not in (0x12, 0x3A)):
        return False
    try:
        for number, kind, value, size in Wire(window, most_fields=64).fields(0, len(head)):
            if _MODEL_FIELDS.get(number) != kind:
                return False
            if number == 1 and not 0 < value < 100:
                return False
            if number == 7:
                return size > 0 and head[value] in _GRAPH_STARTS
            known = True
    except HiveError:
        return known and _graph_follows(head, source)
    return False


def _graph_follows(head: bytes, source: Source) -> bool:
    """The graph, or a long text before it, reaches beyond the head."""
    window = Window(source.part(0, source.size), source.size, source.name)
    position = 0
    for _ in range(16):
        try:
            number, kind, value, size = next(Wire(window, most_fields=1).fields(position, source.size - position))
        except (HiveError, StopIteration):
            # cut short within the graph: its first field is still there to be seen
            return re.match(rb"\x08.(?:\x12|\x3a)", head, re.DOTALL) is not None and _graph_in(head)
        if _MODEL_FIELDS.get(number) != kind:
            return False
        if number == 7:
            try:
                return size > 0 and window.read(value, 1)[0] in _GRAPH_STARTS
            except HiveError:
                return False
        if kind != BYTES:
            value, size = position, 1 + max(1, (value.bit_length() + 6) // 7)
        position = value + size
    return False


def _graph_in(head: bytes) -> bool:
    """`08 <version> 12 <length> <producer>` and then the key of the graph, perhaps after a producer's version."""
    found = re.match(rb"\x08.(?:\x12(.))?", head, re.DOTALL)
    if found is None:
        return False
    at = found.end() + (found.group(1)[0] if found.group(1) else 0)
    if head[at : at + 1] == b"\x1a" and at + 1 < len(head):
        at += 2 + head[at + 1]
    return head[at : at + 1] == b"\x3a"


def read(source: Source) -> Report:
    """Everything the graph tells.

    Raises:
        Corrupted, Exhausted: see `formats.onnx`.
    """
    report = Report(safe=True)
    model = parse(Window(source.part(0, source.size), source.size, source.name))
    report.know(Confidence.read, "fields of the outermost message", format="onnx")
    report.know(Confidence.read, "producer_name", framework=_FRAMEWORKS.get(model.producer.lower(), "onnx"))
    report.know(Confidence.read, "graph inputs that are no initializers", inputs=_own_inputs(model))
    report.know(Confidence.read, "graph outputs", outputs=model.graph.outputs)
    report.hyperparameters["opset"] = model.opsets.get("", model.opsets.get("ai.onnx", 0))
    if model.producer:
        report.hyperparameters["producer"] = model.producer[:80]
    roles = Roles.of(model)
    report.hold([_tensor(constant, roles) for constant in roles.constants], "initializers and constants of nodes")
    report.know(
        Confidence.inferred,
        "floating-point or quantized tensors, less running statistics, scales, bounds and other settings of operators",
        parameters=report.parameters,
    )
    _judge(report, model)
    _external(report, source, roles.constants)
    if model.ir_version >= VERSIONED and not model.opsets:
        _trouble(report, f"{source.name} is cut short: it does not say which version of the operators it takes.")
    report.know(Confidence.inferred, "operators and dtypes", quantization=roles.quantization())
    _metadata(report, model)
    recognise(report, mix_of(model, roles))
    return report


def _own_inputs(model: Model) -> list[object]:
    held = {tensor.name for tensor in model.graph.initializers}
    return [port for port in model.graph.inputs if port.name not in held]


def _tensor(constant: Constant, roles: Roles) -> Tensor:
    file = ""
    offset = constant.offset
    if constant.external is not None:
        file = constant.external.get("location", "")
        given = constant.external.get("offset", "0")
        offset = int(given) if given.isdecimal() else None
    learnt = roles.is_learnt(constant)
    return Tensor(
        constant.name,
        constant.dtype,
        constant.shape,
        file,
        offset,
        constant.nbytes,
        trainable=None if learnt else False,
    )


def _judge(report: Report, model: Model) -> None:
    """Name each operator that is not known to compute only, once, with its first place."""
    seen: set[tuple[str, str]] = set()
    bodies = [("graph", model.graph), *((f"function {name}", body) for (_, name), body in model.functions.items())]
    for label, top in bodies:
        for graph in top.walk():
            for node in graph.nodes:
                key = (node.domain, node.op)
                if key in seen:
                    continue
                seen.add(key)
                if key not in model.functions and not harmless(*key):
                    report.find(
                        f"{node.domain or 'ai.onnx'}::{node.op}",
                        f"{label}, node {node.name[:80]!r}, byte {node.place}",
                        "The operator is not ONNX's own; running it takes a library of native code from elsewhere.",
                    )
    for domain, name in model.functions:
        if harmless(domain, name) and domain in ("", "ai.onnx"):
            report.find(
                f"{domain or 'ai.onnx'}::{name}",
                f"function {name}",
                "A function of the file has the name of a standard operator; runtimes disagree on which one runs.",
            )


def _external(report: Report, source: Source, constants: list[Constant]) -> None:
    """Check every pointer to bytes in another file; sum up the sizes."""
    base = source.path.resolve().parent
    sizes: dict[str, int | None] = {}
    report.size_bytes = source.size
    for constant in constants:
        if constant.external is None:
            continue
        location = constant.external.get("location", "")
        if location not in sizes:
            sizes[location] = _size(report, base, location, constant.name)
        size = sizes[location]
        if size is None:
            continue
        numbers = [constant.external.get("offset", "0"), constant.external.get("length", str(constant.nbytes))]
        if not all(number.isdecimal() and len(number) < 20 for number in numbers):
            _trouble(report, f"{source.name} gives an offset or length of {constant.name!r} that is no number.")
            continue
        offset, length = map(int, numbers)
        if length != constant.nbytes or offset + length > size:
            _trouble(
                report,
                f"{location} is too short or {source.name} lies: {constant.name!r} wants {constant.nbytes} bytes "
                f"at {offset}, the file has {size}.",
            )
    report.size_bytes += sum(size or 0 for size in sizes.values())


def _size(report: Report, base: Path, location: str, tensor: str) -> int | None:
    """The size of the file at `location`; a finding if it is outside the directory, an error if it isn't there."""
    path = PurePosixPath(location)
    leaves = (
        not location or location != location.strip() or path.is_absolute() or ".." in path.parts
        or any(mark in location for mark in ("\\", "\0", ":", "*")) or len(location) > 255
    )  # fmt: skip
    if not leaves:
        try:
            real = (base / path).resolve()
            leaves = not real.is_relative_to(base)
        except (OSError, RuntimeError):
            leaves = True
    if leaves:
        report.find(
            location, f"external_data of tensor {tensor[:80]!r}", "The path leads out of the model's directory."
        )
        return None
    try:
        status = os.stat(real)
    except OSError:
        _trouble(report, f"The weights are in {location}, which is missing.", fix=f"Put {location} beside the model.")
        return None
    if not stat.S_ISREG(status.st_mode):
        report.find(
            location, f"external_data of tensor {tensor[:80]!r}", "The path leads to something that is no file."
        )
        return None
    return status.st_size


def _trouble(report: Report, message: str, *, fix: str = "Fetch all files of the model again.") -> None:
    if report.error is None:
        report.error = Trouble("corrupted", message, fix)
        if report.safe:
            report.safe = None


def _metadata(report: Report, model: Model) -> None:
    """What exporters write beside the graph; Ultralytics says task and model."""
    task = _ULTRALYTICS_TASKS.get(model.metadata.get("task", ""))
    named = _ULTRALYTICS.search(model.metadata.get("description", ""))
    if task and named:
        report.know(
            Confidence.read, "metadata_props", task=task, model=named.group(1).lower(), family="computer_vision",
            framework="ultralytics",
        )  # fmt: skip
