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

from hivenode.errors import HiveError
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Vector
from hivenode.training.stages.holdings import Holdings, Segment, scatter
from hivenode.training.stages.line import Line, Subject, Tag
from hivenode.training.tensorfiles import FileLayout

PIECE = 256 * 1024
"""Elements of a piece: 1 MiB."""
READY, FILE, VECTORS = 0x2000, 0x4000, 0x8000
"""Places of messages about who has its part, about the finished file, and about vectors."""
YES, NO = b"\1", b"\0"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of vector, such as the weights: what each stage's has in it, and where that goes in the file."""

    holdings: Holdings
    places: tuple[tuple[Segment, ...], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to be made, and the kinds of vectors it is made of, in the order in which all stages give them."""

    path: Path
    plan: FileLayout
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Own:
    """A stage's vector of one kind: its size, and so many of its elements from one on."""

    size: int
    read: Callable[[int, int], Vector]

    @classmethod
    def live(cls, vector: Vector) -> Own:
        """One that does not change meanwhile."""
        return cls(vector.size, lambda first, count: vector[first : first + count])


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, size, PIECE):
        yield first, min(PIECE, size - first)


def give(line: Line, step: int, own: Sequence[Own]) -> None:
    """At a stage that does not write: hand over its vectors, as they are asked for. Raises Unavailable."""
    for kind, vector in enumerate(own):
        for number, (first, count) in enumerate(_pieces(vector.size)):
            line.receive(0, Tag(Subject.ask, step, number, VECTORS + kind), 0)
            line.send(0, Tag(Subject.piece, step, number, VECTORS + kind), vector.read(first, count).tobytes())


def take(line: Line, step: int, own: Sequence[Own], wanted: Wanted) -> None:
    """At the first stage: write the file.

    Raises:
        Unavailable: a stage is lost.
        OSError: it cannot be written; the others have been heard out all the same.
    """

    def pieces() -> Iterator[tuple[int, memoryview]]:
        for number, (vector, kind) in enumerate(zip(own, wanted.kinds, strict=True)):
            for first, count in _pieces(vector.size):
                yield from scatter(kind.places[0], first, vector.read(first, count))
            for rank in line.ranks[1:]:
                for turn, (first, count) in enumerate(_pieces(kind.holdings.size(rank))):
                    line.send(rank, Tag(Subject.ask, step, turn, VECTORS + number), b"")
                    body = line.receive(rank, Tag(Subject.piece, step, turn, VECTORS + number), 4 * count)
                    yield from scatter(kind.places[rank], first, np.frombuffer(body, np.float32))

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
    gathered from there by a thread. Where a stage has no room for its part, there is no checkpoint of that step, and
    training goes on.

    Args:
        directory: for that file.
        wanted: the file to be made of a step; asked at the first stage only, and before training goes on.
        written: told of the first stage's success, in that thread.
        failed: told of the step and why there is no checkpoint of it, at the stage that is the cause.
    """

    def __init__(
        self,
        line: Line,
        number: int,
        directory: Path,
        wanted: Callable[[int], Wanted],
        written: Callable[[int, Path], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._line, self._number, self._file = line, number, directory / "snapshot.part"
        self._wanted, self._written, self._failed = wanted, written, failed
        self._thread: threading.Thread | None = None

    def save(self, step: int, vectors: Sequence[Vector]) -> None:
        """Begin to gather the state of a step. Waits for the one before it: all stages take part in all of them."""
        self.wait()
        here = True
        try:
            with self._file.open("wb") as file:
                for vector in vectors:
                    file.write(vector.view(np.uint8).data)
        except OSError as error:
            here = False
            self._file.unlink(missing_ok=True)
            self._failed(step, f"no room for the part of stage {self._number}: {error.strerror}")
        sizes = [vector.size for vector in vectors]
        wanted = self._wanted(step) if self._number == 0 else None
        arguments = (step, sizes, here, wanted)
        self._thread = threading.Thread(target=self._gather, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done."""
        if self._thread is not None:
            self._thread.join()

    def _gather(self, step: int, sizes: Sequence[int], here: bool, wanted: Wanted | None) -> None:
        try:
            if not self._all_have(step, here):
                return
            with self._file.open("rb") as file:

                def read(base: int, first: int, count: int) -> Vector:
                    file.seek(4 * (base + first))
                    return np.frombuffer(file.read(4 * count), np.float32)

                own = [Own(size, partial(read, sum(sizes[:kind]))) for kind, size in enumerate(sizes)]
                if wanted is None:
                    give(self._line, step, own)
                    return
                take(self._line, step, own, wanted)
        except OSError as error:
            self._failed(step, error.strerror or str(error))
            return
        except HiveError as error:
            self._failed(step, str(error))
            return
        self._written(step, wanted.path)

    def _all_have(self, step: int, here: bool) -> bool:
        """Whether every stage has kept its part; the same at all of them. Raises Unavailable."""
        line, number = self._line, self._number
        if number > 0:
            line.send(0, Tag(Subject.ask, step, number, READY), YES if here else NO)
            return bytes(line.receive(0, Tag(Subject.ask, step, 0, READY), 1)) == YES
        told = [bytes(line.receive(rank, Tag(Subject.ask, step, rank, READY), 1)) for rank in line.ranks[1:]]
        everyone = here and all(answer == YES for answer in told)
        for rank in line.ranks[1:]:
            line.send(rank, Tag(Subject.ask, step, 0, READY), YES if everyone else NO)
        return everyone


def read_named(parts: tensorfiles.Parts, holdings: Holdings, stage: int, prefix: str, target: Vector) -> None:
    """Fill a stage's vector from a file that holds each tensor by name.

    Raises:
        Corrupted: it is damaged.
        KeyError, ValueError: its tensors are not those of this model.
    """
    shapes = parts.shapes
    for name, shape in holdings.shapes.items():
        if shapes[prefix + name] != tuple(shape):
            raise ValueError(f"tensor {name} has shape {shapes[prefix + name]}, not {tuple(shape)}")
    for name, part in holdings.parts(stage).items():
        parts.read_into(target[part], prefix + name)


def read_slots(parts: tensorfiles.Parts, holdings: Holdings, stage: int, slots: Mapping[str, str]) -> dict[str, Vector]:
    """A stage's part of the optimizer's vectors (slot -> name in the file), which the file holds whole. Raises as
    `read_named`."""
    total, whole, state = sum(map(prod, holdings.shapes.values())), holdings.whole(), {}
    for slot, tensor in slots.items():
        if parts.shapes[tensor] != (total,):
            raise ValueError(f"{tensor} has shape {parts.shapes[tensor]}, not ({total},)")
        state[slot] = np.empty(holdings.size(stage), np.float32)
        for name, part in holdings.parts(stage).items():
            parts.read_into(state[slot][part], tensor, whole[name].start)
    return state
