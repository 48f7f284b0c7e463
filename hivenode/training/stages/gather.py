"""Files of a whole model whose tensors are spread over the stages: checkpoints while training goes on, and the model.

The first stage writes. It asks the others for their vectors piece by piece, so that no worker ever holds more than its
own share and one piece, and puts the pieces where the file's layout says. The file is the same that one node would have
written alone, so a run may be resumed under any strategy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from hivenode.errors import Exhausted, HiveError
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Vector
from hivenode.training.stages.line import Line, Subject, Tag
from hivenode.training.stages.stage import Shapes
from hivenode.training.tensorfiles import FileLayout

PIECE = 256 * 1024
"""Elements of a piece: 1 MiB."""
FILE, VECTORS = 0x4000, 0x8000
"""Indices of messages about the finished file, and about vectors."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements [first, last) of a stage's flat vector lie in the file from byte `at` on."""

    first: int
    last: int
    at: int


def segments(names: Sequence[str], shapes: Shapes, at: Callable[[str], int | None]) -> tuple[Segment, ...]:
    """Where the tensors of a stage go.

    Args:
        names: of its tensors, in the order of its vector.
        at: first byte in the file of a tensor; None for one that another stage gives.
    """
    made, start = [], 0
    for name in names:
        end = start + prod(shapes[name])
        if (place := at(name)) is not None:
            made.append(Segment(start, end, place))
        start = end
    return tuple(made)


def scatter(placed: Sequence[Segment], first: int, piece: Vector) -> Iterator[tuple[int, memoryview]]:
    """Elements from `first` on of a stage's vector, as (byte of the file, bytes)."""
    for segment in placed:
        low, high = max(segment.first, first), min(segment.last, first + piece.size)
        if low < high:
            yield segment.at + 4 * (low - segment.first), piece[low - first : high - first].view(np.uint8).data


@dataclass(frozen=True, slots=True)
class Holdings:
    """Which tensors each stage holds, in the order of its vector; `shapes` are those of the whole model, in order."""

    shapes: Shapes
    names: tuple[tuple[str, ...], ...]

    def size(self, stage: int) -> int:
        return sum(prod(self.shapes[name]) for name in self.names[stage])

    def in_model(self, stage: int, plan: FileLayout, prefix: str) -> tuple[Segment, ...]:
        """Where its weights go, in a file that holds each tensor by name."""
        return segments(
            self.names[stage], self.shapes, lambda name: self._first(stage, name, plan.offsets[prefix + name])
        )

    def in_vector(self, stage: int, plan: FileLayout, slot: str) -> tuple[Segment, ...]:
        """Where its part of an optimizer's vector goes, in a file that holds such vectors whole."""
        starts, start = {}, 0
        for name, shape in self.shapes.items():
            starts[name] = start
            start += prod(shape)
        return segments(
            self.names[stage], self.shapes, lambda name: self._first(stage, name, plan.offsets[slot] + 4 * starts[name])
        )

    def _first(self, stage: int, name: str, at: int) -> int | None:
        """Of stages that share a tensor the first gives it."""
        return None if any(name in self.names[earlier] for earlier in range(stage)) else at


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to be made: its layout, and for each kind of vector (in the order given by all stages) where the part of
    each stage goes."""

    path: Path
    plan: FileLayout
    places: tuple[tuple[tuple[Segment, ...], ...], ...]
    """[kind][stage]"""


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, size, PIECE):
        yield first, min(PIECE, size - first)


Own = Sequence[Callable[[int, int], Vector]]
"""A stage's vectors, each as what gives so many of its elements from one on."""


def live(vectors: Sequence[Vector]) -> Own:
    """Vectors that do not change meanwhile."""
    return [lambda first, count, vector=vector: vector[first : first + count] for vector in vectors]  # type: ignore[misc]


def give(line: Line, step: int, size: int, own: Own) -> None:
    """At a stage that does not write: hand over vectors of `size` elements, as they are asked for.

    Raises:
        Unavailable: the first stage is lost.
    """
    for kind, read in enumerate(own):
        for number, (first, count) in enumerate(_pieces(size)):
            line.receive(0, Tag(Subject.ask, step, number, VECTORS + kind), 0)
            line.send(0, Tag(Subject.piece, step, number, VECTORS + kind), read(first, count).tobytes())


def take(line: Line, step: int, holdings: Holdings, own: Own, wanted: Wanted) -> None:
    """At the first stage: write the file.

    Raises:
        Unavailable: a stage is lost.
        OSError: it cannot be written; the others have been heard out all the same.
    """

    def pieces() -> Iterator[tuple[int, memoryview]]:
        for kind, read in enumerate(own):
            for first, count in _pieces(holdings.size(0)):
                yield from scatter(wanted.places[kind][0], first, read(first, count))
            for rank in line.ranks[1:]:
                for number, (first, count) in enumerate(_pieces(holdings.size(rank))):
                    line.send(rank, Tag(Subject.ask, step, number, VECTORS + kind), b"")
                    body = line.receive(rank, Tag(Subject.piece, step, number, VECTORS + kind), 4 * count)
                    yield from scatter(wanted.places[kind][rank], first, np.frombuffer(body, np.float32))

    source = pieces()
    try:
        tensorfiles.assemble(wanted.path, wanted.plan, source)
    except OSError:
        for _ in source:
            pass
        raise


def spread(line: Line, step: int, path: Path, size: int) -> None:
    """At the first stage: give every other stage a copy of a file, as they ask for it. Raises Unavailable, OSError."""
    with path.open("rb") as file:
        for rank in line.ranks[1:]:
            file.seek(0)
            for number, (_, count) in enumerate(_pieces(-(-size // 4))):
                line.receive(rank, Tag(Subject.ask, step, number, FILE), 0)
                line.send(rank, Tag(Subject.piece, step, number, FILE), file.read(4 * count))


def copy(line: Line, step: int, path: Path, size: int) -> None:
    """At another stage: write that file. Raises Unavailable, OSError."""
    with path.open("wb") as file:
        left = size
        for number, (_, count) in enumerate(_pieces(-(-size // 4))):
            line.send(0, Tag(Subject.ask, step, number, FILE), b"")
            length = min(4 * count, left)
            file.write(line.receive(0, Tag(Subject.piece, step, number, FILE), length))
            left -= length


class Snapshots:
    """Checkpoints beside training: this stage's vectors are put in a file of its own, where they take no memory, and
    gathered from there by a thread.

    Args:
        directory: for that file.
        wanted: the file for a step; asked at the first stage only.
        written, failed: told of the first stage's success, or of why not, in that thread.
    """

    def __init__(
        self,
        line: Line,
        number: int,
        holdings: Holdings,
        wanted: Callable[[int], Wanted],
        written: Callable[[int, Path], None],
        failed: Callable[[int, str], None],
        directory: Path,
    ) -> None:
        self._file = directory / "snapshot.part"
        self._line, self._number, self._holdings = line, number, holdings
        self._wanted, self._written, self._failed = wanted, written, failed
        self._thread: threading.Thread | None = None

    def save(self, step: int, vectors: Sequence[Vector]) -> None:
        """Begin to gather the state of a step. Waits for the one before it: all stages take part in all of them."""
        self.wait()
        try:
            with self._file.open("wb") as file:
                for vector in vectors:
                    file.write(vector.view(np.uint8).data)
        except OSError as error:
            raise Exhausted(
                f"A checkpoint of stage {self._number} could not be kept: {error.strerror}.",
                fix="Make room on the disk of its node.",
            ) from error
        self._thread = threading.Thread(target=self._gather, args=(step, len(vectors)), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done."""
        if self._thread is not None:
            self._thread.join()

    def _gather(self, step: int, kinds: int) -> None:
        size = self._holdings.size(self._number)
        try:
            with self._file.open("rb") as file:

                def read(kind: int, first: int, count: int) -> Vector:
                    file.seek(4 * (kind * size + first))
                    return np.frombuffer(file.read(4 * count), np.float32)

                own = [partial(read, kind) for kind in range(kinds)]
                if self._number > 0:
                    give(self._line, step, size, own)
                    return
                wanted = self._wanted(step)
                take(self._line, step, self._holdings, own, wanted)
        except (OSError, HiveError) as error:
            self._failed(step, str(error) or type(error).__name__)
            return
        self._written(step, wanted.path)


def read_part(
    parts: tensorfiles.Parts, holdings: Holdings, stage: int, prefix: str, slots: Mapping[str, str]
) -> tuple[Vector, dict[str, Vector]]:
    """A stage's weights and its part of the optimizer's vectors (slot -> name in the file) from a whole checkpoint.

    Raises:
        Corrupted: it is damaged.
        KeyError, ValueError: its tensors are not those of this model or optimizer.
    """
    shapes, total = parts.shapes, sum(map(prod, holdings.shapes.values()))
    for name, shape in holdings.shapes.items():
        if shapes[prefix + name] != tuple(shape):
            raise ValueError(f"tensor {name} has shape {shapes[prefix + name]}, not {tuple(shape)}")
    size = holdings.size(stage)
    weights, state = np.empty(size, np.float32), {slot: np.empty(size, np.float32) for slot in slots}
    starts, start = {}, 0
    for name, shape in holdings.shapes.items():
        starts[name] = start
        start += prod(shape)
    low = 0
    for name in holdings.names[stage]:
        high = low + prod(holdings.shapes[name])
        parts.read_into(weights[low:high], prefix + name)
        for slot, tensor in slots.items():
            if shapes[tensor] != (total,):
                raise ValueError(f"{tensor} has shape {shapes[tensor]}, not ({total},)")
            parts.read_into(state[slot][low:high], tensor, starts[name])
        low = high
    return weights, state
