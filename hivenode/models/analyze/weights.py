"""What the weights take: in the file, and in the dtype they are computed in."""

from __future__ import annotations

from hivenode.models.analyze.quantities import BITS, Method, Quantity, exact, ruled
from hivenode.models.identify.report import Report, Tensor, count

ITEMSIZES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "mixed": 4.0}
ACTIVATIONS = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "mixed": 2.5}
"""Bytes of an activation; of `mixed` most are bfloat16, normalizations and losses float32."""
_FLOATS = ("float64", "float32", "bfloat16", "float16")


def own(report: Report) -> list[Tensor]:
    """The stored tensors, shared ones once."""
    return [tensor for tensor in report.listing if tensor.shared_with is None]


def stored_dtype(report: Report) -> str:
    """The floating-point dtype of most elements; float32 where there is none (quantized: that is what it is computed
    in)."""
    floats = {name: elements for name, elements in report.dtypes.items() if name in _FLOATS}
    if not floats or is_quantized(report):
        return "float32"
    return max(floats, key=lambda name: floats[name])


def is_quantized(report: Report) -> bool:
    """Whether most weights are kept in fewer bits than can be trained."""
    packed = sum(elements for name, elements in report.dtypes.items() if name not in _FLOATS and name != "int64")
    return bool(report.quantization) and 2 * packed > sum(report.dtypes.values())


def as_stored(report: Report) -> Quantity:
    """All tensors as the file keeps them, buffers too."""
    tensors = own(report)
    total = 0.0
    for tensor in tensors:
        if tensor.dtype in BITS:
            total += -(-count(tensor.shape) * BITS[tensor.dtype] // 8)
        elif tensor.nbytes is not None:
            total += tensor.nbytes
        else:
            break
    else:
        if tensors:
            return exact(total, f"{len(tensors)} tensors in the headers, as stored")
    return ruled(float(report.size_bytes or 0), "the size of the file; its tensors are not all known", 0.5, 3.0)


def in_dtype(report: Report, dtype: str) -> Quantity:
    """All tensors with floating-point (or packed) values in one dtype; integers stay as they are."""
    tensors = own(report)
    if not tensors:
        return as_stored(report)
    total = 0.0
    for tensor in tensors:
        integer = tensor.dtype in BITS and not tensor.dtype.startswith(("float", "bfloat"))
        elements = count(tensor.shape)
        total += elements * BITS[tensor.dtype] / 8 if integer else elements * ITEMSIZES[dtype]
    return exact(total, f"{len(tensors)} tensors in the headers, floating-point ones as {dtype}")


def trainable(report: Report) -> tuple[int, Method, str]:
    """Parameters that get a gradient."""
    if report.trainable_parameters is not None:
        return report.trainable_parameters, Method.exact, "trainable parameters"
    return report.parameters or 0, Method.exact, "parameters, none of them frozen"


def largest_elements(report: Report) -> int:
    """Of one tensor."""
    return max((count(tensor.shape) for tensor in report.listing), default=report.parameters or 0)
