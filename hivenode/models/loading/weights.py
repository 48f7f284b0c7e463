"""Tensors of a file as views of its bytes: mapped where they lie as they are, read or unpacked where they do not.

What a reader of `identify` lists (name, dtype, shape, place) is all that is used; frameworks are not needed, and no
code is. Mapped pages are clean: the kernel may drop them, and they count as nobody's own memory.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.errors import Corrupted, InvalidInput, NotFound, Refused
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.readers.torch_checkpoints import rows
from hivenode.models.identify.readers.torch_zip import root_of
from hivenode.models.identify.report import Tensor
from hivenode.models.identify.source import Source

NUMPY = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "int64": "<i8", "int32": "<i4", "int16": "<i2",
    "int8": "|i1", "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "|u1", "bool": "|b1",
    "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip
"""Our name of a dtype -> numpy's."""
BITS = {
    "bfloat16": "<u2", "float8_e4m3fn": "|u1", "float8_e5m2": "|u1", "float8_e4m3fnuz": "|u1",
    "float8_e5m2fnuz": "|u1", "float8_e8m0fnu": "|u1", "float8_e4m3": "|u1", "float8_e8m0": "|u1",
}  # fmt: skip
"""Dtypes that numpy lacks -> what holds their bits."""
TORCH = {"float8_e4m3": "float8_e4m3fn", "float8_e8m0": "float8_e8m0fnu"}
"""Where torch has another name for a dtype than ours."""
CHUNK = 1 << 20
Bytes = npt.NDArray[np.uint8]


class Weight:
    """One tensor.

    Attributes:
        name, dtype, shape: as in the file.
        nbytes: of its bytes in the file.
        shared_with: the tensor it is tied to; both are then views of the same bytes.
    """

    __slots__ = ("_buffer", "_stride", "_torch", "dtype", "name", "nbytes", "shape", "shared_with")

    def __init__(self, tensor: Tensor, buffer: Bytes) -> None:
        self.name = tensor.name
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        self.nbytes = buffer.nbytes
        self.shared_with = tensor.shared_with
        self._buffer = buffer
        self._stride = tensor.stride
        self._torch: Any = None

    def raw(self) -> Bytes:
        """The bytes as they lie in the file, e.g. blocks of quantized numbers."""
        return self._buffer

    def numpy(self) -> npt.NDArray[Any]:
        """The numbers, not copied and not writable; bfloat16 alone is copied, to float32, which holds it exactly.

        Raises:
            InvalidInput: numpy has no such numbers; `raw` and, for float8, `torch` have them.
        """
        if self.dtype in NUMPY:
            return self._view(np.dtype(NUMPY[self.dtype]))
        if self.dtype == "bfloat16":
            wide = self._view(np.dtype("<u2")).astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32)
        raise InvalidInput(
            f"{self.name} is stored as {self.dtype}, which numpy has no numbers for.",
            fix="Take its bytes with raw(), or float8 with torch().",
        )

    def torch(self) -> Any:
        """A torch tensor over the same bytes, of the same dtype and strides. It must not be written to.

        Raises:
            InvalidInput: torch has no such dtype.
        """
        if self._torch is None:
            import warnings

            import torch

            kind = getattr(torch, TORCH.get(self.dtype, self.dtype), None)
            if not isinstance(kind, torch.dtype) or self.dtype not in (NUMPY | BITS):
                raise InvalidInput(
                    f"{self.name} is stored as {self.dtype}, which torch has no dtype for.", fix="Use raw()."
                )
            if not self._buffer.nbytes:
                self._torch = torch.empty(self.shape, dtype=kind)
            else:
                buffer = self._buffer
                if buffer.ctypes.data % kind.itemsize:
                    buffer = buffer.copy()  # torch's kernels expect numbers at multiples of their size
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                    warnings.filterwarnings("ignore", message="The given buffer is not writable")
                    flat = torch.frombuffer(buffer, dtype=torch.uint8).view(kind)
                self._torch = flat.as_strided(self.shape, self._stride or rows(self.shape))
        return self._torch

    def _view(self, kind: np.dtype[Any]) -> npt.NDArray[Any]:
        steps = None if self._stride is None else tuple(step * kind.itemsize for step in self._stride)
        return np.ndarray(self.shape, kind, self._buffer, 0, steps)  # checks the bounds itself


@dataclass
class Files:
    """The files of one model.

    Args:
        path: what was identified, a file or a directory.
        resident: read tensors into memory of this process instead of mapping them.
    """

    path: Path
    resident: bool = False
    _mapped: dict[str, Bytes] = field(default_factory=dict)
    _unpacked: dict[str, Bytes] = field(default_factory=dict)
    _read: dict[tuple[str, int, int], Bytes] = field(default_factory=dict)

    def weight(self, tensor: Tensor) -> Weight:
        """Raises:
        Corrupted: the bytes are not there.
        Refused: they are kept in a form that is not read here.
        """
        return Weight(tensor, self._bytes(tensor))

    def forget(self) -> None:
        """Drop what was read or unpacked; views that others hold stay valid."""
        self._read.clear()
        self._unpacked.clear()

    def _bytes(self, tensor: Tensor) -> Bytes:
        length = span(tensor)
        if tensor.packed is not None:
            key, start = tensor.packed
            whole = self._unpacked.get(key)
            if whole is None:
                whole = self._unpacked[key] = _unpack(self._place(tensor.file), key)
            return _part(whole, start, length, tensor)
        if tensor.offset is None:
            raise Refused(
                f"{tensor.name} in {self.path.name} is compressed, in pieces, or without bytes; it has no place to be "
                "read from.",
                fix=f"Turn the model into plain weights on your own machine: hivenode convert {self.path} DIR",
            )
        if not self.resident:
            if tensor.file not in self._mapped:
                self._mapped[tensor.file] = _map(self._place(tensor.file))
            return _part(self._mapped[tensor.file], tensor.offset, length, tensor)
        key_ = (tensor.file, tensor.offset, length)
        if key_ not in self._read:
            self._read[key_] = _read(self._place(tensor.file), tensor.offset, length)
        return self._read[key_]

    def _place(self, file: str) -> Path:
        """A file of the model; names are relative and stay inside, or `identify` would have refused them."""
        base = self.path if self.path.is_dir() else self.path.parent
        if not file:
            return self.path
        if os.path.isabs(file) or ".." in Path(file).parts:
            raise Refused(f"{file} is not in the directory of {self.path}.", fix="Fetch it from where it was made.")
        return base / file


def span(tensor: Tensor) -> int:
    """Bytes from the first element to the last."""
    if tensor.dtype in NUMPY or tensor.dtype in BITS:
        width = np.dtype(NUMPY.get(tensor.dtype) or BITS[tensor.dtype]).itemsize
        if 0 in tensor.shape:
            return 0
        if tensor.stride is not None:
            return width * (1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)))
        return width * prod(tensor.shape)
    return tensor.nbytes or 0


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that are tied counted once."""
    sizes: dict[object, int] = {}
    for tensor in tensors:
        place = (tensor.file, tensor.packed or tensor.offset)
        sizes[place] = max(sizes.get(place, 0), span(tensor))
    return sum(sizes.values())


def _part(whole: Bytes, start: int, length: int, tensor: Tensor) -> Bytes:
    if start < 0 or start + length > whole.nbytes:
        raise Corrupted(f"{tensor.name} reaches beyond the end of its file.", fix="Fetch the file again.")
    return whole[start : start + length]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", fix="Fetch all files of the model.") from None


def _map(path: Path) -> Bytes:
    descriptor = _open(path)
    try:
        if not os.fstat(descriptor).st_size:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED), np.uint8)
    finally:
        os.close(descriptor)


def _read(path: Path, offset: int, length: int) -> Bytes:
    made = np.empty(length, np.uint8)
    descriptor = _open(path)
    try:
        view, at = memoryview(made.data), 0
        while at < length:
            count = os.preadv(descriptor, [view[at:]], offset + at)
            if not count:
                raise Corrupted(f"{path.name} ends within a tensor.", fix="Fetch the file again.")
            at += count
    finally:
        os.close(descriptor)
    return made


def _unpack(path: Path, key: str) -> Bytes:
    """A storage that is deflated in torch's archive, its size and checksum verified."""
    with Source(path) as source:
        archive = Archive.of(source)
        name = f"{root_of(archive)}/data/{key}"
        entry = archive.entries.get(name)
        if entry is None:
            raise Refused(
                f"{path.name} keeps its storages in an archive inside it; they have no place to be read from.",
                fix="Unpack the outer archive and load what is in it.",
            )
        start = archive.start(name)
    made = np.empty(entry.size, np.uint8)
    machine, at, checksum = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    with path.open("rb") as file:
        file.seek(start)
        left = entry.packed
        while left and not machine.eof:
            data = file.read(min(CHUNK, left))
            if not data:
                raise _damaged(path, name)
            left -= len(data)
            while data and not machine.eof:
                try:
                    piece = machine.decompress(data, CHUNK)
                except zlib.error:
                    raise _damaged(path, name) from None
                data = machine.unconsumed_tail
                if at + len(piece) > entry.size:
                    raise _damaged(path, name)
                made[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
                checksum = zlib.crc32(piece, checksum)
    if at != entry.size or checksum != entry.crc:
        raise _damaged(path, name)
    return made


def _damaged(path: Path, name: str) -> Corrupted:
    return Corrupted(f"{name} in {path.name} cannot be unpacked.", fix="Fetch the file again.")


Wanted = str | Iterable[str] | Callable[[str], bool] | None


def chooser(only: Wanted) -> Callable[[str], bool]:
    """Which tensors are wanted: a pattern of the shell (`layers.3.*`), several of them, or a predicate on the name."""
    if only is None:
        return lambda _: True
    if callable(only):
        return only
    patterns = [only] if isinstance(only, str) else list(only)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)
