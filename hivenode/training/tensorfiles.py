"""Named float32 tensors in one safetensors file, written so that equal contents give equal bytes.

The format is huggingface/safetensors': `u64 header length | JSON header | data`, little-endian. That library keeps
metadata in a hash map, so two members would write the same state as different bytes, and the digest of a model is its
name here; hence a writer of our own, and with it a reader that checks every number before it believes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

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


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Where things lie in a file that holds these tensors.

    Attributes:
        head: the first bytes of the file, up to the tensors.
        offsets: first byte of each tensor, counted from the start of the file.
        size: of the whole file, bytes.
    """

    head: bytes
    offsets: Mapping[str, int]
    size: int


def layout(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> FileLayout:
    """Tensors in the order of their names."""
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    starts: dict[str, int] = {}
    start = 0
    for name in sorted(shapes):
        size = prod(shapes[name]) * _SIZE
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, start + size]}
        starts[name] = start
        start += size
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = len(text).to_bytes(8, "little") + text
    return FileLayout(head, {name: len(head) + at for name, at in starts.items()}, len(head) + start)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, synced and renamed at the end; nothing is left behind on an error."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: under a temporary name, synced, then renamed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    plan = layout({name: tensor.shape for name, tensor in tensors.items()}, metadata)
    with _replacing(path) as file:
        file.write(plan.head)
        for name in plan.offsets:
            file.write(np.ascontiguousarray(tensors[name], "<f4").data)


def assemble(path: Path, plan: FileLayout, pieces: Iterable[tuple[int, bytes | memoryview]]) -> None:
    """Write a file of which the tensors come in pieces (first byte, bytes), in any order; all of them, once.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with _replacing(path) as file:
        file.write(plan.head)
        file.truncate(plan.size)
        for start, piece in pieces:
            file.seek(start)
            file.write(piece)


class Parts:
    """Parts of the tensors of a file, without the rest of it in memory.

    Args:
        limit_bytes: the largest file to take.

    Raises (all):
        Corrupted: it is missing or is not such a file in every detail.
        Exhausted: it is larger than the limit.
    """

    def __init__(self, path: Path, limit_bytes: int | None = None) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                if limit_bytes is not None and total > limit_bytes:
                    raise _too_large(path, total, limit_bytes)
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(MAX_HEADER_BYTES, total - 8):
                    raise _wrong(path, "its header does not fit")
                self._entries, self.metadata = _header(path, file.read(length))
        except OSError as error:
            raise _wrong(path, str(error.strerror)) from error
        self._data = 8 + length
        start = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].data_offsets):
            end = start + prod(entry.shape) * _SIZE
            if entry.data_offsets != (start, end):
                raise _wrong(path, f"tensor {name[:64]!r} is not where its shape says")
            start = end
        if self._data + start != total:
            raise _wrong(path, "it is longer or shorter than its tensors")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def read_into(self, target: Tensor, name: str, first: int = 0) -> None:
        """Fill `target` (one-dimensional) with elements of a tensor from `first` on; KeyError for an unknown name."""
        entry = self._entries[name]
        if first + target.size > prod(entry.shape):
            raise _wrong(self._path, f"tensor {name[:64]!r} is shorter than expected")
        try:
            with self._path.open("rb") as file:
                file.seek(self._data + entry.data_offsets[0] + first * _SIZE)
                count = file.readinto(target.view(np.uint8).data)
        except OSError as error:
            raise _wrong(self._path, str(error.strerror)) from error
        if count != target.nbytes:
            raise _wrong(self._path, "it has become shorter")


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
                raise _too_large(path, total, limit_bytes)
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


def _too_large(path: Path, total: int, limit: int) -> Exhausted:
    return Exhausted(f"{path.name} has {total} bytes; at most {limit} are read.", fix="Raise the worker's memory.")


def _wrong(path: Path, why: str) -> Corrupted:
    return Corrupted(f"{path.name} is not a usable safetensors file: {why}.", fix="Use another copy of it.")
