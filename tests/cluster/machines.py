"""Real daemons for tests: each a process of its own with a home and ports of its own, on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

CONFIG = """
[node]
name = "{name}"
[network]
listen = "{listen}"
port = {port}
discovery = {discovery}
[admin]
port = 0
[worker]
threads = 1
"""

LOOK_AGAIN_SECONDS = 0.1


def free_port() -> int:
    """A port that is free now: a node keeps its port when it starts again, so that the others find it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Machine:
    """One home, and the daemon that runs in it now."""

    def __init__(self, root: Path, name: str, extra: str = "") -> None:
        self.name = name
        self.home = root / name
        self.home.mkdir(parents=True)
        self.configure("127.0.0.1", free_port(), extra=extra)
        self.process: asyncio.subprocess.Process | None = None
        self.lines: list[dict[str, Any]] = []
        self._drain: asyncio.Task[None] | None = None
        self._url = ""

    def configure(self, listen: str, port: int, *, discovery: bool = False, extra: str = "") -> None:
        """What the daemon goes by when it starts next."""
        network = {"listen": listen, "port": port, "discovery": str(discovery).lower()}
        (self.home / "hivenode.toml").write_text(CONFIG.format(name=self.name, **network) + extra)

    def command(self) -> tuple[str, ...]:
        """What runs the command line."""
        return (sys.executable, "-m", "hivenode.cli.main")

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """A client session that reaches the admin endpoint."""
        return aiohttp.ClientSession(**options)

    async def start(self, *arguments: str) -> None:
        """Start the daemon and return when it is ready. Raises AssertionError with its log if it ends instead."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command(), "--home", str(self.home), "up", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        ready = asyncio.Event()
        self._drain = asyncio.create_task(self._read(ready))
        waits = [asyncio.create_task(ready.wait()), self._drain]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()
        assert ready.is_set(), f"{self.name} did not start: {self.lines[-5:]}"
        self.look_up()

    def look_up(self) -> None:
        """Find the admin endpoint, which has moved when the daemon went over to another hive."""
        self._url = json.loads((self.home / "run" / "admin.json").read_text())["url"]

    async def _read(self, ready: asyncio.Event) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": raw.decode(errors="replace").rstrip()}
            self.lines.append(line)
            if line.get("event") == "ready":
                ready.set()

    @property
    def worker_pids(self) -> list[int]:
        assert self.process is not None
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    async def kill(self) -> None:
        """SIGKILL the daemon and everything it started, as when the machine dies."""
        assert self.process is not None
        for pid in [self.process.pid, *self.worker_pids]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()
        if self._drain is not None:
            await self._drain

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the admin endpoint; returns the decoded answer, raises AssertionError on an error answer."""
        status, answer = await self.ask(method, path, body)
        assert status < 400, (self.name, path, status, answer)
        return answer

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {(self.home / 'admin.token').read_text().strip()}"}
        async with (
            self.session() as session,
            session.request(method, self._url + path, json=body, headers=headers) as response,
        ):
            return response.status, await response.json()

    async def until(self, path: str, holds: Callable[[Any], bool], seconds: float = 60.0) -> Any:
        """The answer of GET `path` once it satisfies `holds`; looked at again whenever the node has news."""
        answer: Any = None
        try:
            async with asyncio.timeout(seconds), self._news() as news:
                status, answer = await self.ask("GET", path)
                while status >= 400 or not holds(answer):
                    await news()
                    status, answer = await self.ask("GET", path)
        except TimeoutError:
            raise AssertionError(f"{self.name}: {path} after {seconds} s: {answer}; {self.lines[-10:]}") from None
        return answer

    @asynccontextmanager
    async def _news(self) -> AsyncIterator[Callable[[], Any]]:
        headers = {"Authorization": f"Bearer {(self.home / 'admin.token').read_text().strip()}"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            self.session(timeout=timeout) as session,
            session.get(self._url + "/v1/events", headers=headers) as stream,
        ):

            async def wait() -> None:
                # News usually comes; what is noted of an offender, or a round trip time, is none: look again soon.
                try:
                    async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                        while not (line := await stream.content.readline()).startswith(b"data:"):
                            if not line:  # the stream has ended: reading on would return at once, for ever
                                await asyncio.sleep(2.0)
                except TimeoutError:
                    return

            yield wait


async def found_hive(root: Path, names: tuple[str, ...] = ("ash", "birch", "cedar"), extra: str = "") -> list[Machine]:
    """Machines that are all members of one hive with a coordinator, the first its founder."""
    machines = [Machine(root, name, extra) for name in names]
    await form_hive(machines)
    return machines


async def form_hive(machines: Sequence[Machine]) -> None:
    """Start them; the first founds a hive and the others join it, and all agree on a coordinator."""
    await machines[0].start()
    token = (await machines[0].api("POST", "/v1/invites", {"uses": len(machines)}))["token"]
    await asyncio.gather(*(machine.start("--join", token) for machine in machines[1:]))
    for machine in machines:
        await machine.until("/v1/status", lambda status: settled(status, len(machines)))


def settled(status: Any, count: int) -> bool:
    alive = [member for member in status["members"] if member["state"] == "alive"]
    return len(alive) == count and bool(status["coordinator"])
