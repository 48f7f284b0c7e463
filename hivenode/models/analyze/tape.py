"""A network as the list of what it computes, in order: FLOPs, and the bytes alive at each moment, added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.quantities import Method, Quantity, ruled

MAPPED_BYTES = 32 << 20
"""glibc's malloc gives blocks of this size and more back when they are freed (DEFAULT_MMAP_THRESHOLD_MAX)."""
GAPS = 1.8
"""What it keeps of smaller ones over what was alive, as measured with convolutional networks."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. `elements` of what it gives, `flops` it takes, both of the whole batch; `view`: it gives the
    memory it took in another shape; `free`: nothing of it is kept for the backward pass; `copied`: its output exists
    twice for a moment, as that of a convolution does, which is computed in a layout of its own."""

    takes: tuple[str, ...]
    gives: str
    elements: int
    flops: float = 0.0
    view: bool = False
    free: bool = False
    copied: bool = False


@dataclass(slots=True)
class Tape:
    """`steps` in order, after `inputs` (name, elements). `unknown`: operations with weights whose shape could not be
    told, and so count as nothing; `assumed`: what was taken for free axes."""

    steps: list[Step]
    inputs: list[tuple[str, int]]
    what: str
    unknown: int = 0
    assumed: tuple[str, ...] = ()

    def costs(self, itemsize: float) -> Costs:
        """Of the batch it was made for; `itemsize`: bytes of an activation."""
        said = self.what + (f"; assumed: {', '.join(self.assumed)}" if self.assumed else "")
        if self.unknown:
            said += f"; {self.unknown} operations of unknown shape are left out"
        wide = 3.0 if self.unknown else 1.0
        flops = sum(step.flops for step in self.steps)
        kept = sum(step.elements for step in self.steps if not (step.view or step.free))
        kept += sum(elements for _, elements in self.inputs)
        alive, resident = self._alive(itemsize)
        return Costs(
            forward=ruled(flops, f"products and convolutions of {said}", 0.97, 1.05 * wide, "FLOP"),
            kept=ruled(kept * itemsize, f"what each operation of {said} gives", 0.6, 1.4 * wide),
            passing=Quantity(resident, 0.8 * min(alive, resident), 1.6 * wide * resident, "bytes", Method.rule,
                             f"most alive at once in {said}, and what the allocator keeps of smaller blocks"),
            # The gradient of the largest output, and the copy a convolution makes of it in a layout of its own.
            backward=2.0 * itemsize * max((step.elements for step in self.steps), default=0),
        )  # fmt: skip

    def _alive(self, itemsize: float) -> tuple[float, float]:
        """Most bytes alive at once, and most that a process keeps for them: blocks that are not given back leave gaps
        that the next do not fill. A value lives from the step that gives it to the last that takes it, or a view."""
        roots: dict[str, str] = {}
        last: dict[str, int] = {}
        for place, step in enumerate(self.steps):
            roots[step.gives] = roots.get(step.takes[0], step.takes[0]) if step.view and step.takes else step.gives
            for name in step.takes:
                last[roots.get(name, name)] = place
        leaving: dict[int, list[str]] = {}
        for name, place in last.items():
            leaving.setdefault(place, []).append(name)
        held = {name: elements * itemsize for name, elements in self.inputs}
        small = sum(size for size in held.values() if size < MAPPED_BYTES)
        large = sum(held.values()) - small
        most, heap, resident = small + large, small, small + large
        for place, step in enumerate(self.steps):
            size = 0.0 if step.view else step.elements * itemsize
            twice = 2 * size if step.copied else size
            fits = size < MAPPED_BYTES
            most = max(most, small + large + twice)
            heap = max(heap, small + (twice if fits else 0.0))
            resident = max(resident, GAPS * heap + large + (0.0 if fits else twice))
            if not step.view:
                held[step.gives] = size
                small, large = (small + size, large) if fits else (small, large + size)
            for name in leaving.get(place, ()):
                gone = held.pop(name, 0.0)
                small, large = (small - gone, large) if gone < MAPPED_BYTES else (small, large - gone)
        return most, resident


def convolved(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Length of one axis after a convolution or pooling, rounded down."""
    return max(0, (size + before + after - dilation * (kernel - 1) - 1) // max(1, stride) + 1)


def product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
