"""The service manager's side of the conversation."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from hivenode.admin.notify import keep_watchdog, notify, watchdog_seconds


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


def test_ready_arrives(manager: socket.socket) -> None:
    assert notify("READY=1\nSTATUS=here")
    assert manager.recv(1000) == b"READY=1\nSTATUS=here"


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")


async def test_the_watchdog_is_fed_twice_per_period(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await keep_watchdog()
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 0.01
    feeding = asyncio.create_task(keep_watchdog())
    for _ in range(3):
        assert await asyncio.to_thread(manager.recv, 1000) == b"WATCHDOG=1"
    feeding.cancel()
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_seconds() is None
