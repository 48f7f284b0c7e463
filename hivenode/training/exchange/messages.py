"""What workers say to each other beside the numbers. Typed and bounded; msgpack on the wire.

A connection is made by two ephemeral certificates that live for one attempt of one job, so the certificate is the
attempt's tag and nothing of another attempt can arrive here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

PROTOCOL = 4
MAX_MEMBERS = 512
MAX_PLACES = 4096
MAX_NOTE = 48 * 1024
"""Bytes."""

Rank = Annotated[int, msgspec.Meta(ge=0, le=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Place = Annotated[int, msgspec.Meta(ge=0, le=MAX_PLACES)]


class ViewId(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Totally ordered: number first, then the rank of the member that formed the view. Nobody forms two views of
    one number."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    leader: Rank


FIRST = ViewId(0, 0)


class Reason(StrEnum):
    """Why a member is put out."""

    lost = "lost"
    silent = "silent"
    told = "told"
    unreachable = "unreachable"
    unknown = "unknown"
    malformed = "malformed"
    nonfinite = "nonfinite"
    absurd = "absurd"
    left = "left"
    paused = "paused"
    behind = "behind"


class Accusation(msgspec.Struct, frozen=True, array_like=True):
    rank: Rank
    by: Rank
    reason: Reason
    round: Count = 0
    """Of `nonfinite` and `absurd`: the round it was in."""


Members = Annotated[tuple[Rank, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]
Accusations = Annotated[tuple[Accusation, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


class _Control(msgspec.Struct, frozen=True, tag_field="t"):
    pass


class Hello(_Control, frozen=True, tag="hello"):
    """First on each connection, the answer, and the lower rank's last word where it has dialled. `upward`: the dialling
    side sends on this one, else the accepting side does."""

    protocol: int
    rank: Rank
    upward: bool
    token: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    """The same on both connections of one link; random."""


class Begin(_Control, frozen=True, tag="begin"):
    """To the leader: I have called round `round` in `view`, and this is what I bring."""

    view: ViewId
    round: Count
    count: Count
    """Length of the vector, float32 elements."""
    codec: Annotated[str, msgspec.Meta(max_length=64)]
    """By which it is to travel; "" for as it is."""
    weight: float
    norm: float
    """Euclidean norm of the vector; negative when it was not taken."""
    rates: Annotated[dict[Rank, Count], msgspec.Meta(max_length=MAX_MEMBERS)]
    """Bytes a second this member could lately send to others; those not measured are missing."""
    open: bool = False
    """A newcomer may be let in before this round."""
    place: Place = 0
    """Where in a step it is called: how late members use to be there is learned for each place by itself."""


class Fixed(_Control, frozen=True, tag="fixed"):
    """From the leader, and passed on by every contributor ahead of its numbers: this is who contributes to the round
    and who owns what. Members that are not named get the result when they ask for it."""

    view: ViewId
    round: Count
    contributors: Annotated[tuple[Rank, ...], msgspec.Meta(max_length=MAX_MEMBERS)]
    """Ascending; empty when `odd` came with something that does not fit what the others brought."""
    weights: Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_MEMBERS)]
    bounds: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_MEMBERS + 1)]
    """Contributor k owns elements `[bounds[k], bounds[k + 1])`."""
    deadline: float
    """Seconds the leader will wait, in the next round, from the first to call to the last."""
    odd: Rank | None = None


class Completed(_Control, frozen=True, tag="completed"):
    """I hold the result of this round, and this is its digest."""

    round: Count
    digest: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Flush(_Control, frozen=True, tag="flush"):
    """I have stopped taking part in `view`: these are out by what I know, this is the last round I completed."""

    view: ViewId
    parent: ViewId
    members: Members
    accused: Accusations
    completed: Count


class Install(_Control, frozen=True, tag="install"):
    """The next view after `parent`. Whoever is not among `members` is excluded. Members that lack round
    `completed` fetch its result from `source`; every later round is void."""

    view: ViewId
    parent: ViewId
    members: Members
    accused: Accusations
    completed: Count
    source: Rank
    joined: Annotated[tuple[Rank, ...], msgspec.Meta(max_length=MAX_MEMBERS)] = ()
    """Of `members`, those that are new; they take over the state as of round `completed`."""


class Candidate(_Control, frozen=True, tag="candidate"):
    """To the leader: I have a link to this worker, which wants to join."""

    rank: Rank


class Donation(_Control, frozen=True, tag="donation"):
    """To a newcomer: the numbers of my part of the state follow."""

    view: ViewId
    """That it came into."""
    donors: Members
    """Who gives, ascending; each a part in proportion."""
    total: Count
    """Elements of the whole state."""
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """SHA-256 of this part."""
    follower: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """SHA-256 of the next donor's part, the first's after the last."""


class Want(_Control, frozen=True, tag="want"):
    """Send me the result of this round."""

    view: ViewId
    round: Count


class Result(_Control, frozen=True, tag="result"):
    """The numbers of this round follow, and this is whose mean they are."""

    view: ViewId
    round: Count
    count: Count
    contributors: Members
    total_weight: float


class Leave(_Control, frozen=True, tag="leave"):
    """I am finished, and have sent all I ever will."""


class Note(_Control, frozen=True, tag="note"):
    """What workers say to each other beside rounds; the exchange only carries it."""

    body: Annotated[bytes, msgspec.Meta(max_length=MAX_NOTE)]


Control = Hello | Begin | Fixed | Completed | Flush | Install | Candidate | Donation | Want | Result | Leave | Note

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


def encode(message: Control) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | bytearray) -> Control:
    """Raises msgspec.MsgspecError when the bytes are not one of these messages."""
    return _decoder.decode(data)
