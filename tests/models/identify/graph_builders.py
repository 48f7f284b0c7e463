"""Small builders of hostile files: protobuf fields, ONNX models, GGUF headers, as bytes."""

from __future__ import annotations

import struct


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, value: int | bytes | str) -> bytes:
    """One field: a number as varint, bytes and text with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def message(*parts: tuple[int, int | bytes | str]) -> bytes:
    return b"".join(field(number, value) for number, value in parts)


def onnx_tensor(
    name: str, dims: list[int], raw: bytes | None, *, dtype: int = 1, external: dict[str, str] | None = None
) -> bytes:
    parts: list[tuple[int, int | bytes | str]] = [(1, size) for size in dims]
    parts += [(2, dtype), (8, name)]
    if raw is not None:
        parts.append((9, raw))
    for key, value in (external or {}).items():
        parts.append((13, message((1, key), (2, value))))
    if external is not None:
        parts.append((14, 1))
    return message(*parts)


def onnx_model(*graph: tuple[int, int | bytes | str], more: bytes = b"") -> bytes:
    """A model around the fields of a graph (1 nodes, 5 initializers, 11 inputs, 12 outputs)."""
    return message((1, 9), (2, "test"), (7, message(*graph)), (8, message((1, ""), (2, 18)))) + more


def onnx_node(
    op: str, inputs: list[str], outputs: list[str], *, domain: str = "", attributes: list[bytes] | None = None
) -> bytes:
    parts: list[tuple[int, int | bytes | str]] = [(1, name) for name in inputs]
    parts += [(2, name) for name in outputs]
    parts += [(4, op), (7, domain)]
    parts += [(5, attribute) for attribute in attributes or []]
    return message(*parts)


def gguf_text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def gguf(
    pairs: bytes = b"",
    count: int = 0,
    tensors: bytes = b"",
    tensor_count: int = 0,
    data: bytes = b"",
    *,
    version: int = 3,
) -> bytes:
    """A file out of its parts, the data aligned to 32 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + pairs + tensors
    return head + b"\0" * (-len(head) % 32) + data


def gguf_tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        gguf_text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )
