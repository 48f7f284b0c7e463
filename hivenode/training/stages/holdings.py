"""Which tensors of a model each stage holds, and where they belong in files of the whole. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from hivenode.training.frameworks.model import Vector
from hivenode.training.tensorfiles import FileLayout

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements [first, last) of a stage's flat vector lie in the file from byte `at` on."""

    first: int
    last: int
    at: int


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
        """Elements of a stage's vector."""
        return sum(prod(self.shapes[name]) for name in self.names[stage])

    def parts(self, stage: int) -> dict[str, slice]:
        """Where each tensor lies in a stage's vector."""
        return _ranges({name: self.shapes[name] for name in self.names[stage]})

    def whole(self) -> dict[str, slice]:
        """Where each tensor lies in the vector of the whole model."""
        return _ranges(self.shapes)

    def holders(self, name: str) -> tuple[int, ...]:
        """Stages that hold a tensor, ascending; several where it is tied."""
        return tuple(stage for stage, names in enumerate(self.names) if name in names)

    def in_model(self, plan: FileLayout, prefix: str) -> tuple[tuple[Segment, ...], ...]:
        """Where each stage's tensors go, in a file that holds them by name."""
        return tuple(
            self._segments(stage, lambda name: plan.offsets[prefix + name]) for stage in range(len(self.names))
        )

    def in_vector(self, plan: FileLayout, slot: str) -> tuple[tuple[Segment, ...], ...]:
        """Where each stage's part of an optimizer's vector goes, in a file that holds such vectors whole."""
        base, whole = plan.offsets[slot], self.whole()
        stages = range(len(self.names))
        return tuple(self._segments(stage, lambda name: base + 4 * whole[name].start) for stage in stages)

    def _segments(self, stage: int, at: Callable[[str], int]) -> tuple[Segment, ...]:
        """Of stages that share a tensor the first gives it."""
        parts = self.parts(stage).items()
        return tuple(Segment(part.start, part.stop, at(name)) for name, part in parts if self.holders(name)[0] == stage)


def _ranges(shapes: Shapes) -> dict[str, slice]:
    made, start = {}, 0
    for name, shape in shapes.items():
        made[name] = slice(start, start + prod(shape))
        start += prod(shape)
    return made
