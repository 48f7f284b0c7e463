"""What the protocol asks its shell to do, and what the shell hands back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from hivenode.training.exchange.attempt import Attempt
from hivenode.training.exchange.codecs import Codec, Encoded
from hivenode.training.exchange.messages import Accusation, Control, ViewId
from hivenode.training.exchange.scratch import Vector
from hivenode.training.exchange.views import RankView


class Phase(Enum):
    forming = "forming"
    """Waiting for links to all the members named, before the first view."""
    joining = "joining"
    """Waiting to be let into a view that there is."""
    stable = "stable"
    flush = "flush"
    out = "out"


class Bulk(IntEnum):
    """Kinds of numbers on the wire. `start` counts elements from the beginning of the vector."""

    part = 1
    """Of the sender's contribution, to the owner of the slice."""
    reduced = 2
    """Of the sender's slice, to all."""
    fetched = 3
    """Of a whole result, to a member that lacks it."""
    state = 4
    """Of a member's part of the state, to a newcomer."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the way to that member, in the order given."""

    to: int
    message: Control


@dataclass(frozen=True, slots=True)
class Transfer:
    """Put elements `[start, start + values.size)` on the way to that member, in the order given among bulk.

    Attributes:
        codec: by which they travel; None for as they are.
        encoded: they are encoded already, whole blocks from `start` on.
    """

    to: int
    kind: Bulk
    view: ViewId
    round: int
    start: int
    values: Vector
    codec: Codec | None = None
    encoded: Encoded | None = None


@dataclass(frozen=True, slots=True)
class Reduce:
    """Call `attempt.reduce(start, stop)`, then `Group.reduced` with what it returns."""

    attempt: Attempt
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Entered:
    """A new view is in force; links to `dropped` are of no more use once what is queued for them has gone."""

    view: RankView
    dropped: tuple[Accusation, ...]


Effect = Send | Transfer | Reduce | Entered


@dataclass(frozen=True, slots=True)
class Landing:
    """Where arriving numbers go. Hand it back to `Group.arrived` once they are there.

    Attributes:
        attempt: None for a piece of the state.
        view: in which they were announced. A result can be fetched again, to another place, in a later one.
        count: elements.
        target: the bytes go here as they come; None when they are to be decoded to `values` by `codec`.
    """

    attempt: Attempt | None
    view: ViewId
    kind: Bulk
    sender: int
    count: int
    target: Encoded | None
    values: Vector | None = None
    codec: Codec | None = None

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        if self.target is not None:
            return int(self.target.size)
        assert self.codec is not None
        return self.codec.encoded_size(self.count)


class Malformed(Exception):
    """A member sent what no member may send."""
