"""A daemon's admin endpoint over a service in memory, in a thread of its own, found in a home like any other."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hivenode.admin.api import AdminServer
from hivenode.cli.main import main
from tests.admin.memory import MemoryNode

TOKEN = "battery-staple"


class Endpoint:
    """`node` may be looked at from the test; what changes it goes through `do`, on the server's own loop."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        (home / "run").mkdir(parents=True)
        (home / "admin.token").write_text(TOKEN + "\n")
        self.start()

    def do(self, what: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        async def call() -> Any:
            result = what(*arguments, **named)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def start(self, node: MemoryNode | None = None) -> None:
        self.node = node or self.do(lambda: MemoryNode(home=str(self.home)))
        self.server = AdminServer(self.node, TOKEN, keep_alive_seconds=0.2)
        url = self.do(self.server.start)
        (self.home / "run" / "admin.json").write_text(json.dumps({"url": url, "pid": 2**22 + 1}))

    def stop(self) -> None:
        self.do(self.server.stop)

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path / "home")
    yield endpoint
    endpoint.close()


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line on the home that `daemon` serves."""
    monkeypatch.setenv("HIVENODE_HOME", str(tmp_path / "home"))

    def command(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return command
