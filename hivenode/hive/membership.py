"""The shell around the failure detector: gives the pure core time, carries out what it decides, and tells the rest of
the node what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hivenode.hive.alarm import Alarm
from hivenode.hive.swim import PRESENT, Changed, Conflict, Effect, Forgotten, Member, MemberState, Redial, Send, Swim
from hivenode.logs import get_logger
from hivenode.net.messages import Message
from hivenode.net.transport import LinkEnd, Transport

log = get_logger("membership")


class Membership:
    """Who is alive.

    Args:
        on_change: called with each member whose state changed and the state it had.
        on_forgotten: called with the id of a member gone so long that it is no longer listed.
        on_conflict: another machine, at these addresses, runs with our own key.
    """

    def __init__(
        self,
        swim: Swim,
        transport: Transport,
        on_change: Callable[[Member, MemberState | None], None],
        on_forgotten: Callable[[str], None],
        on_conflict: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._swim = swim
        self._transport = transport
        self._on_change = on_change
        self._on_forgotten = on_forgotten
        self._on_conflict = on_conflict
        self._alarm = Alarm(swim.deadline, self._tick)
        self._listed: tuple[tuple[Member, ...], tuple[str, ...]] = ((), ())
        self._listed_at = -1

    @property
    def members(self) -> tuple[Member, ...]:
        """Everyone known, this node included, by id."""
        return self._lists()[0]

    @property
    def alive(self) -> tuple[str, ...]:
        """Ids not known to be gone (a suspect still counts), this node included, sorted."""
        return self._lists()[1]

    def _lists(self) -> tuple[tuple[Member, ...], tuple[str, ...]]:
        if self._listed_at != self._swim.changes:
            self._listed_at = self._swim.changes
            members = tuple(self._swim.members[node] for node in sorted(self._swim.members))
            self._listed = (members, tuple(member.node for member in members if member.state in PRESENT))
        return self._listed

    @property
    def present(self) -> int:
        """How many are not known to be gone, this node included."""
        return self._swim.present

    def member(self, node: str) -> Member | None:
        return self._swim.members.get(node)

    def latency(self, node: str) -> float | None:
        """Smoothed round trip of direct probes, seconds."""
        return self._swim.latency(node)

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 (well) to 7."""
        return self._swim.health

    def start(self) -> None:
        self._carry_out(self._swim.start(self._now()))

    def leave(self) -> None:
        """Tell everyone that we stop on purpose."""
        self._carry_out(self._swim.leave(self._now()))
        self._alarm.stop()

    def stop(self) -> None:
        self._alarm.stop()

    def receive(self, peer: str, message: Message) -> None:
        self._carry_out(self._swim.receive(self._now(), peer, message))

    def link_up(self, peer: str) -> None:
        self._carry_out(self._swim.link_up(self._now(), peer))

    def link_down(self, peer: str, why: LinkEnd) -> None:
        self._carry_out(self._swim.link_down(self._now(), peer, why))

    def dial_failed(self, peer: str, why: LinkEnd) -> None:
        self._carry_out(self._swim.dial_failed(self._now(), peer, why))

    def admitted(self, node: str) -> None:
        """A node has become one of the hive: what it said of itself before counts now."""
        self._carry_out(self._swim.admitted(self._now(), node))

    def expel(self, node: str) -> None:
        """A member was revoked: it is as good as dead."""
        self._carry_out(self._swim.expel(self._now(), node))

    def declare(self, standing: int, leads: int) -> bool:
        """Say how fit we are to coordinate, and the counter of the epoch in which we do (else 0); whether that is
        anything new."""
        news = self._swim.declare(self._now(), standing, leads)
        self._alarm.reset()
        return news

    def lagged(self, seconds: float) -> None:
        """Our own event loop was late by this much: blame ourselves first."""
        self._swim.lag(self._now(), seconds)

    def _tick(self, now: float) -> None:
        self._carry_out(self._swim.tick(now))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer=peer, message=message):
                    self._transport.send(peer, message)
                case Redial(peer=peer):
                    self._transport.redial(peer)
                case Changed(member=member, was=was):
                    log.info("member changed", member=member.name, member_id=member.node, state=member.state.value,
                             was=was.value if was else "unknown")  # fmt: skip
                    self._on_change(member, was)
                case Forgotten(member=member):
                    self._on_forgotten(member.node)
                case Conflict(addresses=addresses):
                    self._on_conflict(addresses)
        self._alarm.reset()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
