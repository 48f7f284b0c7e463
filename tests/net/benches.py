"""Benches on which transports are tried: one of real ones, one of simulated ones. Each makes nodes, brings misfortune
over them and waits, never shows which it is, and never looks at a clock."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hivenode.net.link import LinkLimits
from hivenode.net.messages import Message
from hivenode.net.peers import PeerTransport
from hivenode.net.pool import PoolLimits
from hivenode.net.simulated import SimulatedTransport
from hivenode.net.transport import LinkEnd
from tests.net import nodes
from tests.simulation.net import Rig, Station

PATIENCE = 20.0
"""Seconds, real or virtual, until a wait gives up."""


class Peer(Protocol):
    """A node of the bench, and what its handler has heard."""

    id: str
    address: str

    async def want(self, other: Peer) -> None: ...
    async def know(self, other: Peer) -> None: ...
    async def forget(self, other: Peer) -> None: ...
    async def seed(self, *others: Peer) -> None: ...
    async def redial(self, other: Peer) -> None: ...
    async def drop(self, other: Peer, why: LinkEnd) -> None: ...
    async def send(self, other: Peer, *messages: Message) -> list[bool]:
        """All in one go of the loop."""
        ...

    async def stop(self) -> None: ...
    def links(self) -> list[str]: ...
    def ups(self) -> list[str]: ...
    def downs(self) -> list[tuple[str, LinkEnd]]: ...
    def failures(self) -> list[tuple[str, LinkEnd]]: ...
    def messages(self, other: Peer) -> list[Message]: ...


class Bench(Protocol):
    idle_seconds: float
    """Of the nodes' pools."""
    young_seconds: float
    """Age from which a link may be replaced."""

    async def node(
        self, number: int, *, pool: int = 16, idle_seconds: float | None = None, attempt_seconds: float = 5.0
    ) -> Peer:
        """Start one; the same number again is a new life at the same address."""
        ...

    async def until(self, condition: Callable[[], object]) -> None: ...
    async def quiet(self, seconds: float) -> None:
        """Let time pass in which something should not happen."""
        ...

    def silent(self, number: int) -> str:
        """An address at which a dial gets neither an answer nor a refusal."""
        ...


# --- the real one -------------------------------------------------------------------------------------------------


class RealPeer:
    def __init__(self, node: nodes.Node, ends: AsyncExitStack) -> None:
        self._node = node
        self._ends = ends
        self.id = node.id
        self.address = node.address

    @property
    def transport(self) -> PeerTransport:
        return self._node.transport

    async def want(self, other: Peer) -> None:
        self.transport.want(other.id, (other.address,))

    async def know(self, other: Peer) -> None:
        self.transport.know(other.id, (other.address,))

    async def forget(self, other: Peer) -> None:
        self.transport.forget(other.id)

    async def seed(self, *others: Peer) -> None:
        self.transport.seed([other.address for other in others])

    async def redial(self, other: Peer) -> None:
        self.transport.redial(other.id)

    async def drop(self, other: Peer, why: LinkEnd) -> None:
        self.transport.drop(other.id, why)

    async def send(self, other: Peer, *messages: Message) -> list[bool]:
        return [self.transport.send(other.id, message) for message in messages]

    async def stop(self) -> None:
        await self._ends.aclose()

    def links(self) -> list[str]:
        return list(self.transport.links)

    def ups(self) -> list[str]:
        return [peer for (peer,) in self._node.handler.all("up")]

    def downs(self) -> list[tuple[str, LinkEnd]]:
        return [(peer, why) for peer, why in self._node.handler.all("down")]

    def failures(self) -> list[tuple[str, LinkEnd]]:
        return [(peer, why) for peer, _, why, _ in self._node.handler.all("failed")]

    def messages(self, other: Peer) -> list[Message]:
        return [message for peer, message in self._node.handler.all("message") if peer == other.id]


class RealBench:
    idle_seconds = 0.4
    young_seconds = 0.2

    def __init__(self, directory: Path, ends: AsyncExitStack) -> None:
        self._directory = directory
        self._ends = ends
        self._ports: dict[int, int] = {}

    async def node(
        self, number: int, *, pool: int = 16, idle_seconds: float | None = None, attempt_seconds: float = 5.0
    ) -> Peer:
        limits = nodes.with_limits(
            link=LinkLimits(goodbye_seconds=0.5),
            dial=replace(nodes.FAST.dial, attempt_seconds=attempt_seconds, young_seconds=self.young_seconds),
            pool=PoolLimits(links=pool, idle_seconds=idle_seconds or self.idle_seconds, busy_seconds=0.05),
        )
        ends = AsyncExitStack()
        one = await ends.enter_async_context(
            nodes.node(number, self._directory, port=self._ports.get(number, 0), limits=limits)
        )
        self._ports[number] = one.transport.port
        self._ends.push_async_callback(ends.aclose)
        return RealPeer(one, ends)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def quiet(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def silent(self, number: int) -> str:
        hole = socket.create_server(("127.0.0.1", 0))  # its host takes connections, and nobody ever serves them
        self._ends.callback(hole.close)
        return f"127.0.0.1:{hole.getsockname()[1]}"


@asynccontextmanager
async def real(directory: Path) -> AsyncIterator[RealBench]:
    async with AsyncExitStack() as ends:
        yield RealBench(directory, ends)


# --- its twin -----------------------------------------------------------------------------------------------------


class SimulatedPeer:
    def __init__(self, station: Station) -> None:
        self._station = station
        self.id = station.id
        self.address = f"sim-{station.name}:1"

    @property
    def transport(self) -> SimulatedTransport:
        return self._station.transport

    async def _do(self, what: Callable[..., object], *arguments: object) -> None:
        async def act() -> None:
            what(*arguments)

        await self._station.process.perform(act())

    async def want(self, other: Peer) -> None:
        await self._do(self.transport.want, other.id, (other.address,))

    async def know(self, other: Peer) -> None:
        await self._do(self.transport.know, other.id, (other.address,))

    async def forget(self, other: Peer) -> None:
        await self._do(self.transport.forget, other.id)

    async def seed(self, *others: Peer) -> None:
        await self._do(self.transport.seed, [other.address for other in others])

    async def redial(self, other: Peer) -> None:
        await self._do(self.transport.redial, other.id)

    async def drop(self, other: Peer, why: LinkEnd) -> None:
        await self._do(self.transport.drop, other.id, why)

    async def send(self, other: Peer, *messages: Message) -> list[bool]:
        async def act() -> list[bool]:
            return [self.transport.send(other.id, message) for message in messages]

        return await self._station.process.perform(act())

    async def stop(self) -> None:
        await self._station.process.perform(self.transport.stop())

    def links(self) -> list[str]:
        return list(self.transport.links)

    def _heard(self, kind: str) -> list[tuple[str, object]]:
        ids = {name: station.id for name, station in self._station.rig.stations.items()}
        return [(ids.get(peer, peer), detail) for _, what, peer, detail in self._station.heard if what == kind]

    def ups(self) -> list[str]:
        return [peer for peer, _ in self._heard("up")]

    def downs(self) -> list[tuple[str, LinkEnd]]:
        return [(peer, why) for peer, why in self._heard("down") if isinstance(why, LinkEnd)]

    def failures(self) -> list[tuple[str, LinkEnd]]:
        return [(peer, why) for peer, why in self._heard("failed") if isinstance(why, LinkEnd)]

    def messages(self, other: Peer) -> list[Message]:
        return [m for peer, m in self._heard("received") if peer == other.id and isinstance(m, Message)]


class SimulatedBench:
    idle_seconds = 20.0
    young_seconds = 2.0

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def node(
        self, number: int, *, pool: int = 16, idle_seconds: float | None = None, attempt_seconds: float = 5.0
    ) -> Peer:
        limits = PoolLimits(links=pool, idle_seconds=idle_seconds or self.idle_seconds)
        return SimulatedPeer(await self._rig.add(f"n{number}", pool=limits))

    async def until(self, condition: Callable[[], object]) -> None:
        await self._rig.loop.until(condition, 10 * PATIENCE)

    async def quiet(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def silent(self, number: int) -> str:
        return f"sim-nowhere{number}:1"
