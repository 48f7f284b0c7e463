"""What the protocol asks its shell to do, and what the shell hands back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from hivenode.training.exchange.attempt import Attempt
from hivenode.training.exchange.messages import Accusation, Control, ViewId
from hivenode.training.exchange.reduction import Vector
from hivenode.training.exchange.views import RankView


class Phase(Enum):
    forming = "forming"
    """Waiting for links to all the members named, before the first view."""
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


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the way to that member, in the order given."""

    to: int
    message: Control


@dataclass(frozen=True, slots=True)
class Transfer:
    """Put elements `[start, start + data.size)` on the way to that member, in the order given among bulk."""

    to: int
    kind: Bulk
    view: ViewId
    round: int
    start: int
    data: Vector


@dataclass(frozen=True, slots=True)
class Reduce:
    """Call `attempt.reduce(start, stop, out)`, then `Group.reduced` with what it returns."""

    attempt: Attempt
    start: int
    stop: int
    out: Vector


@dataclass(frozen=True, slots=True)
class Entered:
    """A new view is in force; links to `dropped` are of no more use once what is queued for them has gone."""

    view: RankView
    dropped: tuple[Accusation, ...]


Effect = Send | Transfer | Reduce | Entered


@dataclass(frozen=True, slots=True)
class Landing:
    """Where arriving numbers go. Hand it back to `Group.arrived` once `target` is filled."""

    attempt: Attempt
    view: ViewId
    """In which they were announced. A result can be fetched again, to another place, in a later one."""
    kind: Bulk
    sender: int
    target: Vector


class Malformed(Exception):
    """A member sent what no member may send."""
