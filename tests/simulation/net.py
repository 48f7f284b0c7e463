"""A few transports on a simulated network, each in a process of its own, and all that their handlers heard."""

from __future__ import annotations

import asyncio
import hashlib
import random

from hivenode.net.messages import Message, Ping
from hivenode.net.pool import PoolLimits
from hivenode.net.simulated import Quality, SimulatedNetwork, SimulatedTransport
from hivenode.net.transport import LinkEnd
from hivenode.store.simulated import SimulatedBlobs, SimulatedDisk
from tests.simulation.loop import Process, VirtualLoop

HIVE = "h" * 32


def node_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


class Station:
    """One node's transport; records what it hears as `(seconds, what, peer's name, detail)`."""

    def __init__(self, rig: Rig, name: str, hive: str = HIVE, pool: PoolLimits | None = None) -> None:
        self.rig = rig
        self.name = name
        self.id = node_id(name)
        self.heard: list[tuple[float, str, str, object]] = []
        self.disk = SimulatedDisk(random.Random(name))
        self.blobs = SimulatedBlobs(self.disk)
        self.process: Process = rig.loop.process(name)
        self.transport = SimulatedTransport(
            rig.network, name, self.id, hive, self.blobs, random.Random(name), pool=pool
        )

    async def start(self) -> Station:
        await self.process.perform(self.transport.start(self))
        return self

    def want(self, *others: Station) -> None:
        for other in others:
            self.process.call_soon(self.transport.want, other.id, [f"sim-{other.name}:1"])

    def send(self, other: Station, number: int) -> None:
        self.process.call_soon(self.transport.send, other.id, Ping(sequence=number))

    def numbers(self, other: Station) -> list[int]:
        return [m.sequence for _, what, peer, m in self.heard if what == "received" and peer == other.name]  # type: ignore[attr-defined]

    def events(self, *kinds: str) -> list[tuple[str, str, object]]:
        return [(what, peer, detail) for _, what, peer, detail in self.heard if what in kinds]

    def kill(self) -> None:
        self.process.kill()
        self.rig.network.kill(self.name)

    # --- the transport's handler ---

    def link_up(self, peer: str, address: str) -> None:
        self._note("up", peer, None)

    def link_down(self, peer: str, why: LinkEnd) -> None:
        self._note("down", peer, why)

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None:
        self._note("failed", peer, why)

    def received(self, peer: str, message: Message) -> None:
        self._note("received", peer, message)

    def _note(self, what: str, peer: str, detail: object) -> None:
        self.heard.append((self.rig.loop.time(), what, self.rig.names.get(peer, peer), detail))


class Rig:
    """The network and its stations. Make it inside of `run`."""

    def __init__(self, rng: random.Random, quality: Quality | None = None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.network = SimulatedNetwork(random.Random(rng.random()), quality)
        self.stations: dict[str, Station] = {}
        self.names: dict[str, str] = {}

    async def add(self, name: str, hive: str = HIVE, pool: PoolLimits | None = None) -> Station:
        """Start a station; one of the same name is replaced by a new process on the same host."""
        station = self.stations[name] = Station(self, name, hive, pool)
        self.names[station.id] = name
        return await station.start()

    async def linked(self, a: Station, b: Station, seconds: float = 60) -> None:
        await self.loop.until(
            lambda: b.id in a.transport.links and a.id in b.transport.links, seconds, f"{a.name}-{b.name}"
        )
