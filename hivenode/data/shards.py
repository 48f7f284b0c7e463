"""Data sets cut into pieces of consecutive rows, each a file named by its digest.

A piece is `u64 length | JSON header | inputs | labels`, little-endian; equal data give equal bytes. The rows of a set
are mixed before they are cut, so that a range of them is a fair sample of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from hivenode.data.dataset import Dataset, ready
from hivenode.data.info import DataInfo
from hivenode.data.manifest import FORMAT, MOST_SHARDS, Manifest, Shard, overlapping
from hivenode.data.text import IGNORED
from hivenode.errors import Corrupted

SHARD_BYTES = 4 << 20
LEAST_SHARDS = 64
MAX_HEADER = 4096

Array = npt.NDArray[Any]
Find = Callable[[Sequence[Shard]], Mapping[str, Path]]
"""Files of pieces, by digest."""


def described(dataset: Dataset) -> Manifest:
    """A data set that is not cut."""
    return Manifest(
        FORMAT, dataset.info, dataset.normalisation, dataset.targets, dataset.tokenizer, (), (), dataset.summary
    )


def write(dataset: Dataset, directory: Path) -> Manifest:
    """Cut a data set into files in `directory`, named by digest. Raises OSError."""
    parts: list[tuple[Shard, ...]] = []
    for samples in (dataset.train, dataset.test):
        places = np.arange(len(samples))
        if not len(places):
            parts.append(())
            continue
        inputs, labels = samples.stored(places)
        one = (inputs.nbytes + labels.nbytes) // len(places) + 1
        step = max(1, min(-(-len(places) // LEAST_SHARDS), SHARD_BYTES // one))
        step = max(step, -(-len(places) // MOST_SHARDS))
        cuts = range(0, len(places), step)
        parts.append(tuple(_write(directory, inputs[at : at + step], labels[at : at + step]) for at in cuts))
    return msgspec.structs.replace(described(dataset), train=parts[0], test=parts[1])


def _write(directory: Path, inputs: Array, labels: Array) -> Shard:
    header = {"inputs": _described(inputs), "labels": _described(labels)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = np.ascontiguousarray(inputs).tobytes()
    body += b"\0" * (-len(body) % 8)
    data = len(text).to_bytes(8, "little") + text + body + np.ascontiguousarray(labels).tobytes()
    digest = hashlib.sha256(data).hexdigest()
    (directory / digest).write_bytes(data)
    return Shard(digest, len(data), len(inputs))


def _described(array: Array) -> dict[str, object]:
    return {"dtype": array.dtype.newbyteorder("<").str, "shape": array.shape}


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: Literal["|u1", "<i4", "<i8", "<f4"]
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**40)], ...], msgspec.Meta(min_length=1, max_length=5)]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: _Part
    labels: _Part


def read_shard(path: Path, shard: Shard, info: DataInfo) -> tuple[Array, Array]:
    """Inputs and labels of a piece, mapped and not copied. Raises Corrupted when it is not what the manifest says."""
    try:
        data = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        if not 2 <= length <= MAX_HEADER:
            raise ValueError("its header does not fit")
        header = msgspec.json.decode(data[8 : 8 + length].tobytes(), type=_Header)
        start = 8 + length
        middle = start + header.inputs.nbytes + -header.inputs.nbytes % 8
        if middle + header.labels.nbytes != len(data) or header.inputs.shape[0] != header.labels.shape[0]:
            raise ValueError("it is longer or shorter than its header says")
        if header.inputs.shape != (shard.rows, *info.input_shape):
            raise ValueError("it has other samples than the manifest says")
        inputs = data[start : start + header.inputs.nbytes].view(header.inputs.dtype).reshape(header.inputs.shape)
        labels = data[middle:].view(header.labels.dtype).reshape(header.labels.shape)
        _plausible(inputs, labels, info)
        return inputs, labels
    except (OSError, ValueError, IndexError) as error:  # msgspec's errors are ValueErrors
        raise Corrupted(
            f"A piece of the data ({shard.digest[:12]}) cannot be used: {error}.", fix="Submit again."
        ) from error


def _plausible(inputs: Array, labels: Array, info: DataInfo) -> None:
    """No number that a model would use as an index lies outside."""
    if info.vocabulary and (inputs.dtype != np.int32 or inputs.min() < 0 or inputs.max() >= info.vocabulary):
        raise ValueError("it holds tokens outside the vocabulary")
    expected = {"classification": 1, "language": 2, "text_to_text": 2, "clustering": 1}.get(info.task)
    if info.task == "text_to_text":
        labels = np.where(labels == IGNORED, 0, labels)
    if expected is not None:
        if labels.ndim != expected or labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= info.outputs:
            raise ValueError("it holds labels out of range")
    elif labels.shape[1:] != (info.outputs,) or labels.dtype.kind not in "fu":
        raise ValueError("it holds targets of another shape")


class Pieces:
    """`Samples` in pieces, of which those in use are mapped.

    Args:
        paths: finds the files of pieces, bringing here what is not here yet.
    """

    def __init__(self, shards: Sequence[Shard], info: DataInfo, paths: Find) -> None:
        self._shards = tuple(shards)
        self._info = info
        self._paths = paths
        self._ends = np.cumsum([shard.rows for shard in shards], dtype=np.int64)
        self._open: dict[int, tuple[Array, Array]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        inputs, labels = self.stored(places)
        return ready(inputs), ready(labels)

    def bring(self, places: range) -> None:
        """Those not here yet; none is opened."""
        if missing := overlapping(self._shards, places):
            self._paths(missing)

    def stored(self, places: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """As they lie in the pieces."""
        which = np.searchsorted(self._ends, places, side="right")
        needed = sorted({int(number) for number in which})
        missing = [number for number in needed if number not in self._open]
        if missing:
            paths = self._paths([self._shards[number] for number in missing])
            for number in missing:
                shard = self._shards[number]
                self._open[number] = read_shard(paths[shard.digest], shard, self._info)
        first = self._open[needed[0]] if needed else None
        if first is None:
            return self._nothing()
        inputs = np.empty((len(places), *first[0].shape[1:]), first[0].dtype)
        labels = np.empty((len(places), *first[1].shape[1:]), first[1].dtype)
        for number in needed:
            mine = which == number
            start = int(self._ends[number]) - self._shards[number].rows
            inputs[mine], labels[mine] = (part[places[mine] - start] for part in self._open[number])
        return inputs, labels

    def _nothing(self) -> tuple[Array, Array]:
        """No samples, of the kind that there are."""
        info = self._info
        inputs = np.zeros((0, *info.input_shape), np.int64 if info.vocabulary else np.float32)
        if info.task in ("classification", "clustering"):
            return inputs, np.zeros(0, np.int64)
        if info.task in ("language", "text_to_text"):
            length = info.input_shape[0] // (2 if info.task == "text_to_text" else 1)
            return inputs, np.zeros((0, length), np.int64)
        return inputs, np.zeros((0, info.outputs), np.float32)


def opened(manifest: Manifest, paths: Find) -> Dataset:
    """The data set that a manifest describes."""
    return Dataset(
        manifest.info,
        Pieces(manifest.train, manifest.info, paths),
        Pieces(manifest.test, manifest.info, paths),
        manifest.normalisation,
        manifest.targets,
        manifest.tokenizer,
        ranges=True,
        summary=manifest.summary,
    )
