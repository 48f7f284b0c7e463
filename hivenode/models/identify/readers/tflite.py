"""LiteRT (TensorFlow Lite) models. Schema: tensorflow/compiler/mlir/lite/schema/schema.fbs."""

from __future__ import annotations

import math

from hivenode.models.identify.formats.flatbuffers import Buffer, Table
from hivenode.models.identify.formats.windows import Paged
from hivenode.models.identify.naming.graphs import Mix, recognise
from hivenode.models.identify.naming.tensorflow_operators import HARMLESS
from hivenode.models.identify.naming.tflite_operators import BUILTIN, CUSTOM_KNOWN, KINDS, NOT_HARMLESS
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor
from hivenode.models.identify.source import Source

MAGIC = b"TFL3"
_DTYPES = {
    0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 3: ("uint8", 8), 4: ("int64", 64), 5: ("string", 0),
    6: ("bool", 8), 7: ("int16", 16), 8: ("complex64", 64), 9: ("int8", 8), 10: ("float64", 64),
    11: ("complex128", 128), 12: ("uint64", 64), 13: ("resource", 0), 14: ("variant", 0), 15: ("uint32", 32),
    16: ("uint16", 16), 17: ("int4", 4), 18: ("bfloat16", 16),
}  # fmt: skip
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "EMBEDDING_LOOKUP", "SVDF",
             "CONV_3D_TRANSPOSE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "RNN",
             "UNIDIRECTIONAL_SEQUENCE_RNN", "BATCH_MATMUL", "DEQUANTIZE", "GATHER"}  # fmt: skip
_SMALL = ("int8", "uint8", "int4", "float16")
_WHOLE = ("int8", "uint8", "int4", "int16")
_FLOATS = ("float", "bfloat", "complex")


def detects(head: bytes, source: Source) -> bool:
    return head[4:8] == MAGIC


def read(source: Source) -> Report:
    """Operators, ports and constant tensors of all subgraphs.

    Raises:
        Corrupted: offsets outside the file, numbers that point to nothing, shapes that do not fit their bytes.
    """
    report = Report(safe=True)
    window = Paged(source.part(0, source.size), source.size, source.name)
    root = Buffer(window).root()
    report.know(Confidence.read, "file identifier TFL3", format="tflite", framework="tensorflow_lite")
    operators = _operators(report, root)
    buffers = [_extent(buffer, source) for buffer in root.tables(4)]
    mix = Mix()
    listing: list[Tensor] = []
    taken: dict[int, str] = {}
    quantized: dict[str, int] = {}
    for number, subgraph in enumerate(root.tables(2)):
        tensors = subgraph.tables(0)
        used = _uses(subgraph, operators, len(tensors), mix, window)
        for place, tensor in enumerate(tensors):
            index = tensor.number(2, 4)
            if index >= len(buffers):
                raise window.broken(f"the tensor {place} points to buffer {index} of {len(buffers)}")
            offset, size = buffers[index]
            if not size:
                continue
            held = _tensor(tensor, offset, size, used[place], window, taken.get(index))
            taken.setdefault(index, held.name)
            listing.append(held)
            if held.trainable is None and held.shared_with is None and held.dtype in _SMALL:
                quantized[held.dtype] = quantized.get(held.dtype, 0) + math.prod(held.shape)
        if number == 0:
            mix.inputs = [_port(tensors, place, window) for place in subgraph.numbers(1, 4)]
            mix.outputs = [_port(tensors, place, window) for place in subgraph.numbers(2, 4)]
    report.know(Confidence.read, "the first subgraph", inputs=mix.inputs, outputs=mix.outputs)
    report.hold(listing, "tensors with bytes of their own")
    report.know(Confidence.inferred, "floating-point tensors, and those that weighty operators take",
                parameters=report.parameters)  # fmt: skip
    if quantized:
        kind = max(quantized, key=lambda name: quantized[name])
        report.know(Confidence.inferred, "dtype of most weights", quantization=kind)
    mix.names = [tensor.name for tensor in listing][:5000]
    recognise(report, mix)
    return report


def _operators(report: Report, root: Table) -> list[str]:
    """Names of the operator codes; findings for those that are not builtin."""
    found: list[str] = []
    for place, code in enumerate(root.tables(1)):
        number = max(code.number(3, 4, signed=True), code.number(0, 1, signed=True))
        custom = code.text(1)
        name = BUILTIN[number] if 0 <= number < len(BUILTIN) else f"operator {number}"
        if name == "CUSTOM":
            name = custom
            if custom not in CUSTOM_KNOWN and not (custom.startswith("Flex") and custom[4:] in HARMLESS):
                report.find(
                    f"custom::{custom}", f"operator code {place}, byte {code.at}",
                    "The operator is none of the runtime's own; running it takes native code from elsewhere.",
                )  # fmt: skip
        elif name in NOT_HARMLESS or not 0 <= number < len(BUILTIN):
            report.find(name, f"operator code {place}, byte {code.at}", "The operator is not known to compute only.")
        found.append(name)
    return found


def _extent(buffer: Table, source: Source) -> tuple[int, int]:
    """Where the bytes of a buffer lie: in the flat buffer, or after it in files beyond 2 GB."""
    outside, size = buffer.number(1, 8), buffer.number(2, 8)
    if outside > 1:
        if outside + size > source.size:
            raise buffer.buffer.window.broken(f"a buffer of {size} bytes at {outside} ends beyond the end")
        return outside, size
    return buffer.vector(0, 1)


def _uses(subgraph: Table, operators: list[str], tensors: int, mix: Mix, window: Paged) -> list[bool]:
    """For each tensor whether an operator that holds weights takes it; counts the operators."""
    used = [False] * tensors
    for operator in subgraph.tables(3):
        number = operator.number(0, 4)
        if number >= len(operators):
            raise window.broken(f"an operator is of code {number} of {len(operators)}")
        name = operators[number]
        if name in KINDS:
            mix.kinds[KINDS[name]] += 1
        for place in operator.numbers(1, 4):
            if place >= tensors:
                raise window.broken(f"an operator takes tensor {place} of {tensors}")
            if place >= 0 and name in _WEIGHTED:
                used[place] = True
        mix.last = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid", "TANH": "tanh", "FULLY_CONNECTED": "linear"}.get(name)
    return used


def _shape(tensor: Table, field: int, window: Paged) -> tuple[int, ...]:
    shape = tuple(tensor.numbers(field, 4, most=64))
    if any(size < -1 for size in shape) or math.prod(max(abs(size), 1) for size in shape) >= 1 << 62:
        raise window.broken(f"the shape of the tensor at byte {tensor.at} makes no sense")
    return tuple(FREE if size < 0 else size for size in shape)


def _dtype(tensor: Table, window: Paged) -> tuple[str, int]:
    number = tensor.number(1, 1)
    if number not in _DTYPES:
        raise window.broken(f"the tensor at byte {tensor.at} is of type {number}, which is none")
    return _DTYPES[number]


def _tensor(tensor: Table, offset: int, size: int, weighty: bool, window: Paged, shared: str | None) -> Tensor:
    dtype, bits = _dtype(tensor, window)
    shape = _shape(tensor, 0, window)
    name = tensor.text(3)
    sparse = tensor.table(6) is not None
    if bits and not sparse and -(-math.prod(shape) * bits // 8) != size:
        raise window.broken(f"the tensor {name[:80]!r} of shape {list(shape)} has {size} bytes")
    learnt = math.prod(shape) > 1 and (dtype.startswith(_FLOATS) or (weighty and dtype in _WHOLE))
    if weighty and dtype == "int32" and tensor.table(4) is not None and len(shape) == 1:
        learnt = _has_scale(tensor)  # the bias of a quantized layer
    return Tensor(name, dtype, shape, "", offset, size, None, None if learnt else False, shared)


def _has_scale(tensor: Table) -> bool:
    quantization = tensor.table(4)
    return quantization is not None and quantization.vector(2, 4)[1] > 0


def _port(tensors: list[Table], place: int, window: Paged) -> Port:
    if not 0 <= place < len(tensors):
        raise window.broken(f"a port is tensor {place} of {len(tensors)}")
    tensor = tensors[place]
    signature = _shape(tensor, 7, window)
    return Port(tensor.text(3), _dtype(tensor, window)[0], signature or _shape(tensor, 0, window))
