"""What a newcomer to a running job takes over: arrays on the members' side, one run of bytes on its own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec
import numpy as np

from hivenode.errors import Corrupted
from hivenode.training.exchange.inheritance import State as Arrays
from hivenode.training.frameworks.model import Vector

HEADER_ELEMENTS = 256 * 1024
"""A header takes at most so many float32 elements (1 MiB)."""


class Header(msgspec.Struct, frozen=True):
    """All but the large vectors. The same bytes on all members."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    planned: tuple[str, ...]
    members: tuple[str, ...]
    """Of these, who is there."""
    shares: dict[str, float]
    codec: str
    """That the members' vectors travel by."""
    scalars: dict[str, str]
    patience: dict[str, str]
    course: dict[str, str]
    """Whose samples are whose."""
    loss: float
    """Sum over the epoch's samples so far."""
    samples: int
    weights: int
    """Elements."""
    buffers: int
    slots: tuple[tuple[str, int], ...]
    """Names and elements, in order."""


@dataclass(frozen=True, slots=True)
class Handover:
    header: Header
    weights: Vector
    buffers: Vector
    slots: Mapping[str, Vector]


def pack(header: Header, weights: Vector, buffers: Vector, slots: Mapping[str, Vector]) -> Arrays:
    """`header` as far as it does not say what the vectors do."""
    ordered = sorted(slots.items())
    sizes = tuple((name, int(slot.size)) for name, slot in ordered)
    whole = msgspec.structs.replace(header, weights=int(weights.size), buffers=int(buffers.size), slots=sizes)
    text = msgspec.json.encode(whole, order="sorted")
    padded = np.frombuffer(text + b" " * (-len(text) % 4), np.uint8)
    return [np.array([padded.size], np.int64), padded, weights, buffers, *(slot for _, slot in ordered)]


def unpack(state: Vector) -> Handover:
    """Raises Corrupted: it is not one."""
    try:
        length = int(state[:2].view(np.int64)[0])
        text = state[2 : 2 + length // 4].tobytes()
        header = msgspec.json.decode(text, type=Header)
        sizes = [header.weights, header.buffers, *(size for _, size in header.slots)]
        if length % 4 or min(sizes) < 0 or 2 + length // 4 + sum(sizes) != state.size:
            raise ValueError("its parts do not add up")
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise Corrupted(
            f"The state of the other workers cannot be read: {error}.", fix="Run the same version on all nodes."
        ) from error
    bounds = np.cumsum([2 + length // 4, *sizes])
    weights, buffers, *slots = (state[a:b] for a, b in pairwise(bounds))
    return Handover(header, weights, buffers, dict(zip((name for name, _ in header.slots), slots, strict=True)))
