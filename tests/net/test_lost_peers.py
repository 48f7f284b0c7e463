"""Peers that end without a word, each in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hivenode.net.link import LinkLimits
from hivenode.net.transport import LinkEnd
from tests.net.nodes import node, with_limits

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(number: int, directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """A node elsewhere: its process, id and address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.net.peer_process",
        str(number),
        str(directory),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        peer, address = (await child.stdout.readline()).decode().split()
        yield child, peer, address
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_a_killed_peer_is_noticed_at_once_and_a_redial_finds_nobody(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, process(2, tmp_path) as (child, peer, address):
        a.transport.want(peer, (address,))
        await a.handler.one("up")
        child.kill()
        assert await a.handler.one("down") == (peer, LinkEnd.reset)
        await child.wait()
        seen = len(a.handler.all("failed"))
        a.transport.redial(peer)
        failed = await a.handler.one("failed", seen + 1)
        assert failed[:3] == (peer, address, LinkEnd.refused)


async def test_a_killed_peer_that_dialled_us_is_noticed_too(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(3, tmp_path) as other, process(2, tmp_path) as (child, peer, address):
        other.want(a)
        a.transport.seed([address])
        await a.handler.until(lambda: len(a.transport.links) == 2)
        child.send_signal(signal.SIGKILL)
        assert await a.handler.one("down") == (peer, LinkEnd.reset)
        assert list(a.transport.links) == [other.id]


async def test_a_frozen_peer_is_given_up_when_it_answers_no_pings(tmp_path: Path) -> None:
    limits = with_limits(link=LinkLimits(heartbeat_seconds=0.5, goodbye_seconds=0.2))
    async with node(1, tmp_path, limits=limits) as a, process(2, tmp_path) as (child, peer, address):
        a.transport.want(peer, (address,))
        await a.handler.one("up")
        child.send_signal(signal.SIGSTOP)
        assert await a.handler.one("down") == (peer, LinkEnd.unreachable)
