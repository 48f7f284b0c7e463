"""The shell around the election: gives the pure core time, carries out what it decides in order, and tells the rest of
the node who coordinates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hivenode.errors import HiveError
from hivenode.hive.alarm import Alarm
from hivenode.hive.election import Effect, Election, Leader, Persist, Send
from hivenode.logs import get_logger
from hivenode.net.messages import Message
from hivenode.net.transport import Transport
from hivenode.spec.values import Epoch
from hivenode.store.ports import Journal
from hivenode.tasks import TaskGroup

RETRY_SECONDS = 2.0
"""After a vote could not be written."""

log = get_logger("election")


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
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
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
