"""safetensors: a length, a JSON header, raw tensors. https://github.com/huggingface/safetensors#format"""

from __future__ import annotations

import struct

import msgspec

from hivenode.errors import Corrupted
from hivenode.models.identify.naming.buffers import is_buffer
from hivenode.models.identify.report import Confidence, Report, Tensor, count
from hivenode.models.identify.source import Source

LONGEST_HEADER = 25_000_000
"""Rust's safetensors refuses more than 100 MB; no real header comes near this."""
MOST_AXES = 64
DTYPES = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3", 8), "F8_E8M0": ("float8_e8m0", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F4": ("float4_e2m1", 4), "F6_E2M3": ("float6_e2m3", 6),
    "F6_E3M2": ("float6_e3m2", 6), "I16": ("int16", 16), "U16": ("uint16", 16), "F16": ("float16", 16),
    "BF16": ("bfloat16", 16), "I32": ("int32", 32), "U32": ("uint32", 32), "F32": ("float32", 32),
    "F64": ("float64", 64), "I64": ("int64", 64), "U64": ("uint64", 64), "C64": ("complex64", 64),
}  # fmt: skip


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def detects(head: bytes, source: Source) -> bool:
    if len(head) < 10:
        return False
    (length,) = struct.unpack_from("<Q", head)
    return head[8:9] == b"{" and length >= 2 and head[9:10] in b'"} \t\r\n' and not (length >> 40)


def read(source: Source) -> Report:
    from hivenode.models.identify.naming.state_dicts import recognise

    report = Report(format="safetensors", safe=True)
    tensors, metadata = header(source)
    report.know(Confidence.read, "header", format="safetensors")
    report.hold(tensors, "header")
    producer = metadata.get("format")
    report.know(
        Confidence.read,
        "metadata: format",
        framework={"pt": "pytorch", "tf": "tensorflow", "flax": "flax", "np": "numpy", "mlx": "mlx"}.get(
            producer or ""
        ),
    )
    recognise(report, tensors, metadata)
    return report


def header(source: Source, *, file: str = "") -> tuple[list[Tensor], dict[str, str]]:
    """The tensors of a file, in the order of their bytes, and its metadata.

    Args:
        file: put into each tensor as its file.

    Raises:
        Corrupted: cut short, a header that is no JSON, offsets that overlap, leave gaps or do not fit shape and dtype.
    """
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > LONGEST_HEADER:
        raise _damaged(source, f"its header claims {length} bytes, more than {LONGEST_HEADER}")
    raw = source.read(8, length)
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(fields.pop("__metadata__", b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(value, type=_Entry) for name, value in fields.items()}
    except RecursionError:
        raise _damaged(source, "its header nests too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(source, f"its header cannot be read ({str(error)[:120]})") from None
    if raw.count(b'"data_offsets"') > len(entries):
        raise _damaged(source, "its header names a tensor twice")
    start = 8 + length
    at = 0
    tensors = []
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        dtype, bits = DTYPES.get(entry.dtype, ("", 0))
        if not dtype:
            raise _damaged(source, f"{name} has the unknown dtype {entry.dtype[:40]}")
        if len(entry.shape) > MOST_AXES or any(size < 0 for size in entry.shape):
            raise _damaged(source, f"the shape of {name} makes no sense")
        if begin != at or end < begin:
            raise _damaged(source, f"{name} does not begin where the tensor before it ends")
        if (end - begin) * 8 != count(entry.shape) * bits:
            raise _damaged(source, f"{name} takes {end - begin} bytes, which do not fit its shape and dtype")
        at = end
        trainable = False if is_buffer(name, entry.shape) else None
        tensors.append(Tensor(name, dtype, entry.shape, file, start + begin, end - begin, None, trainable))
    if start + at != source.size:
        what = "it is cut short" if start + at > source.size else "there is something after its last tensor"
        raise _damaged(source, what)
    return tensors, metadata


def _damaged(source: Source, what: str) -> Corrupted:
    return Corrupted(
        f"{source.name} is no sound safetensors file: {what}.", fix="Fetch it again from where it was made."
    )
