"""The composition root of a node: builds every service, starts and stops them."""

from __future__ import annotations

import asyncio

from hivenode.config import Settings
from hivenode.errors import Exhausted
from hivenode.jobs.leftovers import Leftovers
from hivenode.logs import get_logger
from hivenode.node import building
from hivenode.node.candidacy import Candidacy
from hivenode.node.newcomers import Newcomers
from hivenode.node.ports import Ports
from hivenode.node.reactions import Reactions
from hivenode.node.services import Services
from hivenode.trust.credentials import Credentials

log = get_logger("node")

BOOT = "boot"
BOOT_EPOCH = 1_577_836_800
"""2020-01-01: the boot counter begins at the seconds since then."""
MAX_CLOCK_BOOT = (1 << 31) - (1 << 24)
"""To what a clock may bring it: there are 31 bits."""
LAG_SECONDS = 0.1
LOOK_AT_LAG_SECONDS = 0.5
LOOK_FURTHER_SECONDS = 10.0
"""How long a node that reaches nobody tries the same members."""


class Node(Services):
    """One member of one hive. `start` brings it up, `stop` takes it down in good order; it is not started twice."""

    def __init__(self, settings: Settings, credentials: Credentials, ports: Ports) -> None:
        super().__init__(settings, credentials, ports)
        self._candidacy = Candidacy(self)
        self._newcomers = Newcomers(self)
        self._reactions = Reactions(self, self._candidacy, self._newcomers)
        self._lag_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bring everything up. Raises Conflict (port), Corrupted (journal), Exhausted (disk)."""
        ports, reactions, candidacy = self.ports, self._reactions, self._candidacy
        alone = not (self.book.remembered or ports.seeds)
        boot = await self._next_boot()
        building.build_feeds(self, reactions, candidacy, alone=alone)
        await self.replication.start()
        building.build_sealer(self, reactions)
        building.build_papers(self)
        building.build_work(self, reactions)
        building.build_coordination(self, reactions)
        self.papers.start()
        self.addresses = await ports.transport.start(reactions)
        building.build_membership(self, reactions, boot=boot)
        candidacy.begin()
        building.build_leadership(self, candidacy)
        building.build_admission(self)
        building.build_service(self)
        self.ready = True
        self.membership.start()
        self.leadership.start(alone=alone)
        candidacy.assess()
        candidacy.electorate()
        self.sealer.start()
        self.book.open(ports.seeds)
        self._measure_lag(asyncio.get_running_loop().time())
        self.tasks.spawn(candidacy.keep_assessing(), "node: standing")
        self.tasks.spawn(self._look_further(), "node: look further")
        self.tasks.spawn(self.tidy(), "node: tidy")
        self.tasks.spawn(Leftovers(ports.blobs, self.names).run(), "node: leftovers")

    async def stop(self) -> None:
        """Hand over, say goodbye, end workers and links, close the journal."""
        was_ready = self.ready
        if was_ready:
            await self.leadership.resign()
            self.coordinator.lead(None)
            self.membership.leave()
            self.ready = False
        if self._lag_timer is not None:
            self._lag_timer.cancel()
        self._candidacy.close()
        self._newcomers.close()
        await self.ports.workers.close()
        await self.ports.transport.stop()
        await self.tasks.close()
        if was_ready:
            try:
                await self.book.write()
            except Exhausted as error:
                log.warning("where the other members are could not be written down", reason=str(error))
        if hasattr(self, "calls"):
            await self.calls.close()
        await self.ports.journal.close()

    def found(self, node: str, addresses: tuple[str, ...]) -> None:
        """A hint from discovery: a node of this hive may be at these addresses."""
        if self.ready:
            self.book.hint(node, addresses)

    async def _next_boot(self) -> int:
        """Which life of this node begins now. By the clock too, so that a key in a new or restored home speaks above
        what it said in an earlier one."""
        journal = self.ports.journal
        boot = int.from_bytes(journal.cell(BOOT) or b"", "big") + 1
        boot = max(boot, min(MAX_CLOCK_BOOT, int(self.ports.wall()) - BOOT_EPOCH))
        await journal.set_cell(BOOT, boot.to_bytes(8, "big"))
        return boot

    async def _look_further(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FURTHER_SECONDS)
            self.book.look_further()

    def _measure_lag(self, due: float) -> None:
        """Look whether our own event loop comes round in time; `due`: when this was to be called."""
        loop = asyncio.get_running_loop()
        late = loop.time() - due
        if late > LAG_SECONDS:
            self.membership.lagged(late)
        again = loop.time() + LOOK_AT_LAG_SECONDS
        self._lag_timer = loop.call_at(again, self._measure_lag, again)
