"""A hive of real daemons, an attacker with a certificate of its own, and what must hold while it does its worst."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from hivenode.hive.clock import HybridClock
from hivenode.hive.feeds import Feeds
from hivenode.net.joining import join
from hivenode.net.messages import FeedDelta
from hivenode.spec.events import Body, NodeAdmitted
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from hivenode.trust.invites import read_token
from tests.cluster.machines import Machine, form_hive
from tests.security.wire import PATIENCE, Wire

MORE_BYTES = 16 << 20
"""What an attack may cost in memory."""
MORE_LINES = 100
"""Lines of log that an attack may cause."""
CALM_SECONDS = 15.0
"""What an attack may shake for a moment (a suspicion) has so long to settle."""


class Attacker:
    """A member that keeps to no rule: its certificate is good."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self.credentials = credentials
        self.id = credentials.identity.node_id
        self.feeds = Feeds(credentials.hive_id, credentials.authority_key)
        self.clock = HybridClock(time.time)

    async def link(self, **hello: Any) -> Wire:
        return await Wire.linked(self.address, self.credentials, **hello)

    def state(self, *bodies: Body) -> FeedDelta:
        """Next events of its own feed, properly signed."""
        made = self.feeds.compose(self.credentials.identity, self.clock.now, bodies)
        for entry in made:
            self.feeds.accept(entry)
        return FeedDelta(events=tuple(entry.event for entry in made))


@dataclass
class Siege:
    """`ash` is attacked, `birch` is an honest member beside it; attackers join as they are needed."""

    ash: Machine
    birch: Machine
    token: str
    address: str
    beside: str
    """Where `birch` listens."""
    attackers: dict[str, str] = field(default_factory=dict)
    """Names by id."""
    slowest: float = 0.0
    """Longest time that a status took, seconds."""
    peak: int = 0
    """Most resident memory seen, bytes."""
    figures: list[str] = field(default_factory=list)

    async def attacker(self) -> Attacker:
        """A new member. It introduces itself as every member does, so that its key and its roles are known."""
        name = f"mallory{len(self.attackers) + 1}"
        identity = Identity.from_seed(f"{name} {self.ash.home}".encode())
        credentials, _ = await join(read_token(self.token), identity, name, datetime.now(UTC))
        one = Attacker(self.address, credentials)
        self.attackers[one.id] = name
        said = one.state(NodeAdmitted(grant=credentials.grant))
        for machine, address in ((self.ash, self.address), (self.birch, self.beside)):
            async with await Wire.linked(address, credentials) as wire:
                wire.say(said)
                await machine.until("/v1/peers", lambda peers: any(k["node"] == one.id for k in peers["known"]))
            await machine.until("/v1/peers", lambda p: not any(k["linked"] for k in p["known"] if k["node"] == one.id))
        return one

    @property
    def rss(self) -> int:
        assert self.ash.process is not None
        return int(psutil.Process(self.ash.process.pid).memory_info().rss)

    async def standing(self, *, epoch: bool = True) -> dict[str, Any]:
        """What an attack must not change, as `ash` and `birch` see it; with or without the epoch."""
        seen: dict[str, Any] = {}
        for machine in (self.ash, self.birch):
            status = await machine.api("GET", "/v1/status")
            seen[machine.name] = {
                "members": sorted(
                    (m["name"], m["roles"], m["state"], m["linked"], m["addresses"])
                    for m in status["members"]
                    if m["node"] not in self.attackers
                ),
                "coordinator": status["coordinator"],
                "epoch": status["epoch"] if epoch else "",
                "jobs": await machine.api("GET", "/v1/jobs"),
                "models": await machine.api("GET", "/v1/models"),
            }
        return seen

    async def named(self, one: Attacker, what: str) -> None:
        """The attacker is not linked, and `hivenode peers` says what it did."""
        peers = await self.ash.until(
            "/v1/peers", lambda p: any(what in k["last_error"] for k in p["known"] if k["node"] == one.id), PATIENCE
        )
        assert not any(known["linked"] for known in peers["known"] if known["node"] == one.id)
        assert any(what in str(line.get("reason", "")) for line in self.ash.lines), what

    @asynccontextmanager
    async def attack(
        self, name: str, *, lines: int = MORE_LINES, errors: bool = False, epoch: bool = True
    ) -> AsyncIterator[None]:
        """Whatever is done inside leaves everything as it was, costs little memory, and does not keep the node from
        answering.

        Args:
            lines: most of the log that it may cause.
            errors: whether lines of level error may be among them.
            epoch: whether it must stay. The coordinator outbids a member that may vote and says that it obeys another
                epoch, as one that has been elsewhere does: it stays what it is, under a higher epoch.
        """
        before, rss, spoken = await self.standing(epoch=epoch), self.rss, len(self.ash.lines)
        self.peak, self.slowest = rss, 0.0
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            if watching.done():
                watching.result()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        deadline = time.monotonic() + CALM_SECONDS
        while (after := await self.standing(epoch=epoch)) != before and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        grown = self.rss - rss
        said = self.ash.lines[spoken:]
        self.figures.append(
            f"{name:44} memory {grown / 2**20:+6.1f} MB (peak {(self.peak - rss) / 2**20:+6.1f}), "
            f"slowest status {self.slowest * 1000:5.0f} ms, {len(said)} log lines"
        )
        assert after == before, (name, after, before)
        assert self.peak - rss < MORE_BYTES, self.figures[-1]
        assert grown < MORE_BYTES, self.figures[-1]
        assert len(said) < lines, self.figures[-1]
        defects = [
            (line["event"], line.get("error_trace", line.get("reason", ""))[-600:])
            for line in said
            if "error_trace" in line or (line.get("level") == "error" and not errors)
        ]
        assert not defects, (name, defects[:3])
        links = [line for line in said if line.get("event") == "link ended" and line["peer_id"] not in self.attackers]
        assert not links, (name, links)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await self.ash.api("GET", "/v1/status")
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.peak = max(self.peak, self.rss)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def siege(root: Path, extra: str = "", roles: tuple[str, ...] = ()) -> AsyncIterator[Siege]:
    """
    Args:
        extra: more lines of the configuration.
        roles: the attackers'; all but admin if not given.
    """
    machines = [Machine(root, name, extra) for name in ("ash", "birch")]
    await form_hive(machines)
    ash, birch = machines
    try:
        wish: dict[str, Any] = {"uses": 10_000} | ({"roles": roles} if roles else {})
        token = (await ash.api("POST", "/v1/invites", wish))["token"]
        address, beside = [(await machine.api("GET", "/v1/status"))["addresses"][0] for machine in machines]
        one = Siege(ash, birch, token, address, beside)
        yield one
        print("", *one.figures, sep="\n")
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))
