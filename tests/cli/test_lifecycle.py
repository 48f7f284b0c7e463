"""Starting and stopping real daemons."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest

from hivenode.cli.daemons import wait_end
from tests.cli.conftest import Run

LOCAL = '[network]\nlisten = "127.0.0.1"\nport = 0\ndiscovery = false\n[admin]\nport = 0\n'


@pytest.fixture
def home(tmp_path: Path, run: Run):
    """Set for loopback; whatever runs in it is ended."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "hivenode.toml").write_text(LOCAL)
    yield home
    run("down")


def test_up_status_down(home: Path, run: Run) -> None:
    answer = run("up", "--detach", "--name", "oak")
    assert answer.code == 0, answer
    assert "oak is up." in answer.out
    assert "hivenode invite" in answer.out, "what to do next"
    status = run("status", "--json").json
    assert (status["name"], len(status["members"])) == ("oak", 1)
    assert (home / "admin.token").stat().st_mode & 0o077 == 0

    answer = run("up", "--detach")
    assert (answer.code, str(home) in answer.err) == (6, True), "a second daemon on the same home"

    pid = json.loads((home / "run" / "admin.json").read_text())["pid"]
    assert run("down").code == 0
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert run("status").code == 5


def test_the_first_start_writes_every_setting_down(home: Path, run: Run) -> None:
    (home / "hivenode.toml").unlink()
    assert run("up", "--detach", "--name", "oak", "--port", 0, "--admin-port", 0).code == 0
    run("down")
    text = (home / "hivenode.toml").read_text()
    assert tomllib.loads(text) == {
        "node": {"name": "oak"}, "network": {"port": 0}, "membership": {}, "trust": {}, "election": {}, "feeds": {},
        "worker": {}, "jobs": {}, "models": {}, "data": {}, "training": {}, "admin": {"port": 0}, "logs": {},
    }  # fmt: skip
    assert "#nice = 10" in text
    (home / "hivenode.toml").write_text(text + "# mine\n")
    assert run("up", "--detach").code == 0
    assert run("status", "--json").json["name"] == "oak"
    assert (home / "hivenode.toml").read_text().endswith("# mine\n")


def test_a_wrong_option_is_not_written_down(tmp_path: Path, run: Run) -> None:
    assert run("up", "--name", "no spaces").code == 2
    assert not (tmp_path / "home" / "hivenode.toml").exists()


def test_why_it_could_not_start_is_said_here(home: Path, run: Run) -> None:
    (home / "hivenode.toml").write_text("[network]\nprot = 1\n")
    for detach in ((), ("--detach",)):
        answer = run("up", *detach)
        assert answer.code == 2
        assert "'port'" in answer.err
    (home / "hivenode.toml").write_text(LOCAL)
    answer = run("up", "--detach", "--join", "garbage")
    assert answer.code == 2
    assert "invite" in answer.err


def test_a_daemon_that_dies_without_a_word(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "broken").mkdir()
    (home / "broken" / "hivenode.py").write_text("raise SystemExit('broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(home / "broken"))
    answer = run("up", "--detach")
    assert answer.code == 5
    assert str(home / "daemon.log") in answer.err


def test_a_process_that_nobody_has_buried_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert wait_end(child.pid, 30)
    assert psutil.pid_exists(child.pid), "a zombie"
    child.wait()
    assert wait_end(child.pid, 0)
    assert not wait_end(os.getpid(), 0)


def test_the_service_manager_is_told(home: Path, run: Run, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hivenode.cli.main", "--home", str(home), "up"],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told = []

        def until(word: bytes) -> None:
            while not told or word not in told[-1]:
                told.append(manager.recv(4096))

        try:
            until(b"READY=1")
            assert run("status").code == 0, "ready means that it answers"
            until(b"WATCHDOG=1")
            process.terminate()
            until(b"STOPPING=1")
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
