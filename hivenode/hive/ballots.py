"""The values an election works with: settings, effects, what is persisted, a campaign."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from hivenode.errors import Corrupted
from hivenode.hive.effects import Redial, Send
from hivenode.spec.values import ZERO_EPOCH, Epoch


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """All times in seconds."""

    heartbeat: float = 0.5
    """Between two of a leader's heartbeats."""
    timeout: tuple[float, float] = (3.0, 4.5)
    """A node that has heard no leader for a random time in this range stands; for the shorter one it refuses
    its vote to anybody else."""
    quorum: int = 0
    """Votes needed at least, on top of a majority of those alive. 0: the majority suffices. To rule out two
    leaders at a time, more than half of all that may coordinate."""
    rank_delay: float = 0.1
    """Once a leader is known to be gone, the r-th of those that could follow waits r times this long."""
    transfer: float = 30.0
    """A leader hands over to a member that has been clearly better for this long."""

    @property
    def window(self) -> float:
        """How long an heir has to win, and how long voters wait for a clearly better candidate."""
        return 2 * self.heartbeat


@dataclass(frozen=True, slots=True)
class Persist:
    """Write this durably; it replaces what was written before. Everything after it, in this list and in all
    later ones, waits until it is on disk. If it cannot be written, drop what waits and build a new Election
    from what is on disk: this one has gone on."""

    state: bytes


@dataclass(frozen=True, slots=True)
class Leader:
    """The leader is now this one (perhaps ourselves), or none is known."""

    epoch: Epoch | None


Effect = Persist | Send | Redial | Leader


class State(msgspec.Struct, frozen=True, array_like=True):
    """What survives a crash."""

    accepted: Epoch = ZERO_EPOCH
    """The highest leader obeyed."""
    promised: Epoch = ZERO_EPOCH
    """The candidate of the last vote."""


@dataclass(slots=True)
class Campaign:
    epoch: Epoch
    trial: bool
    ends: float
    grants: dict[str, None] = field(default_factory=dict)
    raises: int = 0
    """Times the counter was raised within this campaign because a voter knew of a higher one."""


def load(state: bytes | None) -> State:
    """Read what was persisted; raises Corrupted if it was not written by `dump`."""
    if state is None:
        return State()
    try:
        return msgspec.msgpack.decode(state, type=State)
    except msgspec.MsgspecError as error:
        raise Corrupted(
            "The stored state of the election cannot be read.",
            fix="Restore the journal from a backup, or give this machine a new identity and join again.",
        ) from error


def dump(accepted: Epoch, promised: Epoch) -> bytes:
    """What `load` reads."""
    return msgspec.msgpack.encode(State(accepted, promised))
