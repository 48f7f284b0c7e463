"""The shells around the failure detector and the election: they give the pure cores time, carry out what those
decide, and tell the rest of the node what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hivenode.errors import HiveError
from hivenode.hive.election import Effect as ElectionEffect
from hivenode.hive.election import Election, Leader, Persist
from hivenode.hive.election import Send as ElectionSend
from hivenode.hive.swim import PRESENT, Changed, Conflict, Forgotten, Member, MemberState, Redial, Swim
from hivenode.hive.swim import Effect as SwimEffect
from hivenode.hive.swim import Send as SwimSend
from hivenode.logs import get_logger
from hivenode.net.messages import Message
from hivenode.net.transport import LinkEnd, Transport
from hivenode.spec.values import Epoch
from hivenode.store.ports import Journal
from hivenode.tasks import TaskGroup

RETRY_SECONDS = 2.0
"""After a vote could not be written."""

log = get_logger("membership")


class Alarm:
    """One timer that always stands at a core's own deadline."""

    def __init__(self, deadline: Callable[[], float], ring: Callable[[float], None]) -> None:
        self._deadline = deadline
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def reset(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_at(self._deadline(), self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._ring(asyncio.get_running_loop().time())


class Membership:
    """Who is alive.

    Args:
        on_change: called with each member whose state changed and the state it had.
        on_forgotten: called with the id of a member gone so long that it is no longer listed.
        on_conflict: another machine runs with our own key.
    """

    def __init__(
        self,
        swim: Swim,
        transport: Transport,
        on_change: Callable[[Member, MemberState | None], None],
        on_forgotten: Callable[[str], None],
        on_conflict: Callable[[str], None],
    ) -> None:
        self._swim = swim
        self._transport = transport
        self._on_change = on_change
        self._on_forgotten = on_forgotten
        self._on_conflict = on_conflict
        self._alarm = Alarm(swim.deadline, self._tick)

    @property
    def members(self) -> tuple[Member, ...]:
        """Everyone known, this node included, by id."""
        return tuple(self._swim.members[node] for node in sorted(self._swim.members))

    @property
    def alive(self) -> tuple[str, ...]:
        """Ids not known to be gone (a suspect still counts), this node included, sorted."""
        return tuple(member.node for member in self.members if member.state in PRESENT)

    def member(self, node: str) -> Member | None:
        return self._swim.members.get(node)

    def latency(self, node: str) -> float | None:
        """Smoothed round trip of direct probes, seconds."""
        return self._swim.latency(node)

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

    def expel(self, node: str) -> None:
        """A member was revoked: it is as good as dead."""
        self._carry_out(self._swim.expel(self._now(), node))

    def lagged(self, seconds: float) -> None:
        """Our own event loop was late by this much: blame ourselves first."""
        self._swim.lag(self._now(), seconds)

    def _tick(self, now: float) -> None:
        self._carry_out(self._swim.tick(now))

    def _carry_out(self, effects: Sequence[SwimEffect]) -> None:
        for effect in effects:
            match effect:
                case SwimSend(peer=peer, message=message):
                    self._transport.send(peer, message)
                case Redial(peer=peer):
                    self._transport.redial(peer)
                case Changed(member=member, was=was):
                    log.info("member changed", member=member.name, member_id=member.node, state=member.state.value,
                             was=was.value if was else "unknown")  # fmt: skip
                    self._on_change(member, was)
                case Forgotten(member=member):
                    self._on_forgotten(member.node)
                case Conflict():
                    self._on_conflict("Another machine runs with this node's key.")
        self._alarm.reset()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class Leadership:
    """Who coordinates. Effects are carried out strictly in order: nothing that follows a vote is sent before the
    vote is on disk.

    Args:
        build: an election that goes on from the state as last persisted.
        on_leader: called with the new coordinator's epoch, or None while there is none.
    """

    CELL = "election"

    def __init__(
        self,
        build: Callable[[bytes | None], Election],
        transport: Transport,
        journal: Journal,
        on_leader: Callable[[Epoch | None], None],
        tasks: TaskGroup,
    ) -> None:
        self._build = build
        self._election = build(journal.cell(self.CELL))
        self._electorate: tuple[tuple[str, ...], tuple[str, ...], bool, tuple[str, ...]] = ((), (), False, ())
        self._transport = transport
        self._journal = journal
        self._on_leader = on_leader
        self._alarm = Alarm(lambda: self._election.deadline(), self._tick)
        self._effects: asyncio.Queue[ElectionEffect] = asyncio.Queue()
        self._tasks = tasks
        self._announced: Epoch | None = None

    @property
    def leader(self) -> Epoch | None:
        return self._election.leader

    @property
    def leading(self) -> bool:
        return self._election.leading

    @property
    def highest(self) -> Epoch:
        """The highest epoch ever seen."""
        return self._election.highest

    def start(self, *, alone: bool) -> None:
        """`alone`: nobody else has ever been of this hive."""
        self._tasks.spawn(self._carry_out(), "election: effects")
        self._take(self._election.start(self._now(), alone=alone))

    def stop(self) -> None:
        self._alarm.stop()

    async def resign(self) -> None:
        """Hand over on purpose, so that nobody has to notice."""
        self._take(self._election.resign(self._now()))
        self._alarm.stop()
        await self._effects.join()

    def receive(self, peer: str, message: Message) -> None:
        self._take(self._election.receive(self._now(), peer, message))

    def outbid(self, epoch: Epoch) -> None:
        """We lead, and somebody has led in a higher epoch without our hearing of it: lead above it or not at all."""
        self._take(self._election.overtaken(self._now(), epoch))

    def electorate(
        self, alive: tuple[str, ...], known: tuple[str, ...], eligible: bool, followers: tuple[str, ...]
    ) -> None:
        """Members that may coordinate (alive, and all known), whether we may, and all alive members."""
        self._electorate = (alive, known, eligible, followers)
        self._take(self._election.electorate(self._now(), *self._electorate))

    def _tick(self, now: float) -> None:
        self._take(self._election.tick(now))

    def _take(self, effects: Sequence[ElectionEffect]) -> None:
        for effect in effects:
            self._effects.put_nowait(effect)
        self._alarm.reset()

    async def _carry_out(self) -> None:
        while True:
            effect = await self._effects.get()
            try:
                match effect:
                    case Persist(state=state):
                        await self._journal.set_cell(self.CELL, state)
                    case ElectionSend(peer=peer, message=message):
                        self._transport.send(peer, message)
                    case Leader(epoch=epoch):
                        self._announce(epoch)
            except HiveError as error:
                log.error("a vote could not be written", reason=str(error))
                await self._start_over()
            finally:
                self._effects.task_done()

    def _announce(self, epoch: Epoch | None) -> None:
        if epoch != self._announced:
            self._announced = epoch
            log.info("coordinator", epoch=str(epoch) if epoch else "none")
            self._on_leader(epoch)

    async def _start_over(self) -> None:
        """A vote that is not on disk was not cast: forget what followed from it and go on from what the disk says."""
        while not self._effects.empty():
            self._effects.get_nowait()
            self._effects.task_done()
        self._announce(None)
        await asyncio.sleep(RETRY_SECONDS)
        now = self._now()
        self._election = self._build(self._journal.cell(self.CELL))
        self._take(self._election.start(now))
        self._take(self._election.electorate(now, *self._electorate))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
