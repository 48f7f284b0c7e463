"""Which part of a model is exchanged when (Streaming DiLoCo, arXiv 2501.18512). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from hivenode.errors import InvalidInput
from hivenode.spec.shapes import Shape

Fragment = tuple[slice, ...]
"""Runs of the flat weights, in order."""

_NUMBERED = re.compile(r"(.*?\.\d+)\.")


def size_of(fragment: Fragment) -> int:
    """Elements."""
    return sum(run.stop - run.start for run in fragment)


def fragments_of(shapes: Mapping[str, Shape], count: int) -> tuple[Fragment, ...]:
    """Deal a model's layers to so many fragments: each to the one that holds the least so far. Layers of one size are
    dealt in turn, so that a fragment has some from all depths (the paper's strided pattern).

    Args:
        shapes: of the tensors, in the order of the flat weights.

    Raises:
        InvalidInput: there are fewer layers.
    """
    layers: dict[str, int] = {}
    for name, shape in shapes.items():
        layers[_layer(name)] = layers.get(_layer(name), 0) + prod(shape)
    if len(layers) < count:
        raise InvalidInput(
            f"training.fragments is {count}, and the model has {len(layers)} layers to deal to them.",
            fix=f"Set training.fragments to {len(layers)} or less.",
        )
    sizes, owner = [0] * count, dict[str, int]()
    for layer, size in layers.items():
        owner[layer] = sizes.index(min(sizes))
        sizes[owner[layer]] += max(size, 1)
    runs: list[list[slice]] = [[] for _ in range(count)]
    start = 0
    for name, shape in shapes.items():
        stop = start + prod(shape)
        own = runs[owner[_layer(name)]]
        if own and own[-1].stop == start:
            own[-1] = slice(own[-1].start, stop)
        else:
            own.append(slice(start, stop))
        start = stop
    return tuple(map(tuple, runs))


def _layer(tensor: str) -> str:
    """The layer of a tensor by its name: `h.3` of `h.3.attention.weight`, `block1` of `block1.norm.bias`."""
    numbered = _NUMBERED.match(tensor)
    return numbered[1] if numbered else tensor.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Timetable:
    """Each of the fragments is sent every so many steps, one after another at even distances; steps go on for `overlap`
    before what comes back is taken in, before the next is sent at the latest.

    Attributes:
        every, fragments, overlap: see `TrainingSpec`; `every` is at least `fragments`.
    """

    every: int
    fragments: int = 1
    overlap: int = 0

    def following(self, step: int) -> tuple[int, int]:
        """After how many steps the next fragment is sent (not yet taken in after `step`), and which."""
        number = max(0, (step - self.overlap) * self.fragments // self.every)
        return -(-(number + 1) * self.every // self.fragments), number % self.fragments

    def round(self, step: int) -> int:
        """How often a fragment sent after so many steps has been sent before."""
        return max(0, step - 1) // self.every
