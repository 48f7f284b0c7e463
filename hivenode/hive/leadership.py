"""The shell around the election: gives the pure core time, carries out what it decides in order, and tells the rest of
the node who coordinates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hivenode.errors import HiveError
from hivenode.hive.alarm import Alarm
from hivenode.hive.election import Effect, Election, Leader, Persist, Redial, Send
from hivenode.logs import get_logger
from hivenode.net.messages import Message
from hivenode.net.transport import Transport
from hivenode.spec.values import Epoch
from hivenode.store.ports import Journal
from hivenode.tasks import Signal, TaskGroup

RETRY_SECONDS = 2.0
"""Between attempts to write, after a vote could not be written."""
PROBE = "election probe"
"""Cell written to find out whether votes can be written again."""

log = get_logger("election")


@dataclass(frozen=True)
class Electorate:
    """Who takes part; see `Election.electorate`."""

    alive: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    eligible: bool = False
    followers: tuple[str, ...] = ()
    voters: tuple[str, ...] = ()
    standings: Mapping[str, int] = field(default_factory=dict)
    told: Epoch | None = None


class Leadership:
    """Who coordinates. Effects are carried out strictly in order: nothing that follows a vote is sent before the
    vote is on disk.

    Args:
        build: an election that goes on from the state as last persisted.
        handover_seconds: how long a leader that stops waits at most until another leads.
        on_leader: called with the new coordinator's epoch, or None while there is none.
        on_able: called when votes cannot be written any more, and when they can again.
    """

    CELL = "election"

    def __init__(
        self,
        build: Callable[[bytes | None], Election],
        transport: Transport,
        journal: Journal,
        on_leader: Callable[[Epoch | None], None],
        on_able: Callable[[], None],
        tasks: TaskGroup,
        *,
        handover_seconds: float,
    ) -> None:
        self._build = build
        self._election = build(journal.cell(self.CELL))
        self._electorate = Electorate()
        self._transport = transport
        self._journal = journal
        self._on_leader = on_leader
        self._on_able = on_able
        self._handover_seconds = handover_seconds
        self._alarm = Alarm(lambda: self._election.deadline(), self._tick)
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
        self._tasks = tasks
        self._announced: Epoch | None = None
        self._moved = Signal()
        self.able = True
        """Whether votes can be written. While not, this node takes no part."""

    @property
    def leader(self) -> Epoch | None:
        return self._election.leader if self.able else None

    @property
    def leading(self) -> bool:
        return self.able and self._election.leading

    @property
    def highest(self) -> Epoch:
        """The highest epoch ever seen."""
        return self._election.highest

    @property
    def voters(self) -> tuple[str, ...]:
        """Members whose votes are asked for, this node perhaps included, sorted."""
        return self._electorate.voters

    @property
    def waiting(self) -> str:
        """Why nobody can be elected here; empty when somebody can, or is."""
        present, needed = self._election.votes
        if self.leader is not None or present >= needed:
            return ""
        return f"waiting for {needed} vote{'s' if needed > 1 else ''}: {present} of {needed} present"

    def start(self, *, alone: bool) -> None:
        """`alone`: nobody else has ever been of this hive."""
        self._tasks.spawn(self._carry_out(), "election: effects")
        self._take(self._election.start(self._now(), alone=alone))

    def stop(self) -> None:
        self._alarm.stop()

    async def resign(self) -> None:
        """Hand over on purpose: name the best of the others, and wait until that one leads, `handover_seconds` at
        most."""
        if self.able:
            led = self.leading
            self._take(self._election.resign(self._now()))
            patience = self._now() + self._handover_seconds
            while led and (self.leading or self.leader is None) and (left := patience - self._now()) > 0:
                await self._moved.wait(left)
        self._alarm.stop()
        await self._effects.join()

    def receive(self, peer: str, message: Message) -> None:
        if self.able:
            self._take(self._election.receive(self._now(), peer, message))

    def outbid(self, epoch: Epoch) -> None:
        """We lead, and somebody has led in a higher epoch without our hearing of it: lead above it or not at all."""
        if self.able:
            self._take(self._election.overtaken(self._now(), epoch))

    def electorate(self, electorate: Electorate) -> None:
        """Who takes part from now on; to be told after every change."""
        self._electorate = electorate
        if self.able:
            self._take(self._election_told())

    def _election_told(self) -> list[Effect]:
        e = self._electorate
        return self._election.electorate(
            self._now(), e.alive, e.known, e.eligible, e.followers, voters=e.voters, standings=e.standings, told=e.told
        )

    def _tick(self, now: float) -> None:
        self._take(self._election.tick(now))

    def _take(self, effects: Sequence[Effect]) -> None:
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
                    case Send(peer=peer, message=message):
                        self._transport.send(peer, message)
                    case Redial(peer=peer):
                        self._transport.redial(peer)
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
        self._moved.notify()

    async def _start_over(self) -> None:
        """A vote that is not on disk was not cast: forget what followed from it, take no part until the disk takes
        votes again, and go on from what it says."""
        self._alarm.stop()
        self.able = False
        while not self._effects.empty():
            self._effects.get_nowait()
            self._effects.task_done()
        self._announce(None)
        self._on_able()
        while not self.able:
            await asyncio.sleep(RETRY_SECONDS)
            self.able = await self._writes()
        self._election = self._build(self._journal.cell(self.CELL))
        self._take(self._election.start(self._now()))
        self._take(self._election_told())
        self._on_able()

    async def _writes(self) -> bool:
        try:
            await self._journal.set_cell(PROBE, b"")
        except HiveError:
            return False  # the trouble is known and told
        return True

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
