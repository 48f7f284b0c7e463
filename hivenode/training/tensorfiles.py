"""Named float32 tensors in one safetensors file, written so that equal contents give equal bytes.

The format is huggingface/safetensors': `u64 header length | JSON header | data`, little-endian. That library keeps
metadata in a hash map, so two members would write the same state as different bytes, and the digest of a model is its
name here; hence a writer of our own, and with it a reader that checks every number before it believes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from hivenode.errors import Corrupted, Exhausted

Tensor = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 24 * 1024 * 1024
_METADATA = "__metadata__"
_ALIGNMENT = 8
_SIZE = np.dtype("<f4").itemsize


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: Literal["F32"]
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**40)], ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[int, int]


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: under a temporary name, synced, then renamed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    start = 0
    names = sorted(tensors)
    for name in names:
        size = tensors[name].size * _SIZE
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in names:
                file.write(np.ascontiguousarray(tensors[name], "<f4").data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path, limit_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Args:
        limit_bytes: the largest file to read.

    Raises:
        Corrupted: it is missing or is not such a file in every detail.
        Exhausted: it is larger than the limit.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            if total > limit_bytes:
                raise Exhausted(
                    f"{path.name} has {total} bytes; at most {limit_bytes} are read.", fix="Raise the worker's memory."
                )
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, total - 8):
                raise _wrong(path, "its header does not fit")
            entries, metadata = _header(path, file.read(length))
            return _tensors(path, entries, file.read(), total - 8 - length), metadata
    except OSError as error:
        raise _wrong(path, str(error.strerror)) from error


def _header(path: Path, text: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop(_METADATA, b"{}"), type=dict[str, str])
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}, metadata
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, str(error)) from error


def _tensors(path: Path, entries: dict[str, _Entry], data: bytes, expected: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        end = start + prod(entry.shape) * _SIZE
        if entry.data_offsets != (start, end) or end > len(data):
            raise _wrong(path, f"tensor {name[:64]!r} is not where its shape says")
        tensors[name] = np.frombuffer(data, "<f4", prod(entry.shape), start).reshape(entry.shape).astype(np.float32)
        start = end
    if start != len(data) or len(data) != expected:
        raise _wrong(path, "it is longer or shorter than its tensors")
    return tensors


def _wrong(path: Path, why: str) -> Corrupted:
    return Corrupted(f"{path.name} is not a usable safetensors file: {why}.", fix="Use another copy of it.")
