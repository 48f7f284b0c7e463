"""Shares of a data set that is cut into ranges, cut again where they no longer fit the members' speeds. Pure.

A member that computes n samples in t seconds has the speed n/t, and needs share over speed for its part of a sample
that is dealt to all; a step lasts as long as the slowest takes. What an epoch's ranges are is settled before it begins,
so that every sample is in it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

TOLERANCE = 1.2
"""Times as long as it would with other shares, that the slowest may take."""
LOOKS = 3
"""In a row that have to find it beyond that."""
LOOKS_PER_EPOCH = 4
LEAST_STEPS = 10
"""Between two looks."""
LEAST_SECONDS = 1e-3
"""That a step has to gain: what is over sooner is not worth moving data for."""
LEAST_SHARE = 0.02
"""Of an equal share: enough to see when a member is fast again."""

KEY = "shares"
"""Scalar of a checkpoint."""

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1e300)]


@dataclass(frozen=True, slots=True)
class Pace:
    """What a member has computed since the last look."""

    samples: float
    seconds: float


class Cut(msgspec.Struct, frozen=True):
    """Shares, by member, from an epoch on.

    Attributes:
        gain: times as long as with these, that the slowest took with those before.
    """

    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    weights: dict[str, Share]
    gain: float = 1.0


def fitting(speeds: Mapping[str, float]) -> dict[str, float]:
    """Shares in proportion to speeds (> 0), summing to 1; none falls below the least."""
    whole, least = sum(speeds.values()), LEAST_SHARE / len(speeds)
    raised = {member: max(speed / whole, least) for member, speed in speeds.items()}
    total = sum(raised.values())
    return {member: share / total for member, share in raised.items()}


def slowest(weights: Mapping[str, float], speeds: Mapping[str, float]) -> float:
    """Seconds that the slowest takes for its share of one sample."""
    whole = sum(weights[member] for member in speeds)
    return max(weights[member] / whole / speed for member, speed in speeds.items())


class Scales:
    """Judges shares look by look; the same on all members, who are told the same numbers."""

    def __init__(self) -> None:
        self._seen: list[dict[str, float]] = []
        """Seconds a sample, by member, of the looks in a row that found them amiss."""

    def look(
        self, weights: Mapping[str, float], paces: Mapping[str, Pace], steps: int
    ) -> tuple[dict[str, float], float]:
        """Better shares and what they gain; none (and 1) while these do.

        Args:
            weights: shares in effect, in any unit.
            paces: of the members there are.
            steps: in which these were made.
        """
        if len(paces) < 2 or any(pace.samples <= 0 or pace.seconds <= 0 for pace in paces.values()):
            return {}, 1.0
        speeds = {member: pace.samples / pace.seconds for member, pace in paces.items()}
        per_step = sum(pace.samples for pace in paces.values()) / max(steps, 1)
        now, then = slowest(weights, speeds), slowest(fitting(speeds), speeds)
        if now < TOLERANCE * then or (now - then) * per_step < LEAST_SECONDS:
            self._seen.clear()
            return {}, 1.0
        if self._seen and self._seen[0].keys() != speeds.keys():
            self._seen.clear()
        self._seen.append({member: 1.0 / speed for member, speed in speeds.items()})
        if len(self._seen) < LOOKS:
            return {}, 1.0
        usual = {member: len(self._seen) / sum(seen[member] for seen in self._seen) for member in speeds}
        self._seen.clear()
        better = fitting(usual)
        gain = slowest(weights, usual) / slowest(better, usual)
        return (better, gain) if gain >= TOLERANCE else ({}, 1.0)


class Line(msgspec.Struct, frozen=True):
    """For checkpoints and newcomers: the members' shares in effect, in the order in which their ranges lie, and those
    to come."""

    shares: Annotated[tuple[tuple[str, Share], ...], msgspec.Meta(min_length=1, max_length=65_536)]
    coming: Cut | None = None

    def dump(self) -> str:
        return msgspec.json.encode(self).decode()

    def welcoming(self, joined: Sequence[str], epoch: int) -> Line:
        """Newcomers have nothing of the epoch that is going on, and from `epoch` on as much as the others usually have.

        Args:
            epoch: the first of which no sample has been taken yet.
        """
        present = {member: share for member, share in self.shares if member not in joined}
        next_ = {m: share for m, share in (self.coming.weights if self.coming else present).items() if m in present}
        usual = sum(next_.values()) / len(next_)
        shares = (*present.items(), *((member, 0.0) for member in joined))
        return Line(shares, Cut(epoch, {**next_, **dict.fromkeys(joined, usual)}))


def load(text: str) -> Line:
    """Raises ValueError: it is none."""
    return msgspec.json.decode(text, type=Line)
