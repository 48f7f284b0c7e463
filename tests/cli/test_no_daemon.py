"""The command line when nobody is there, when the wrong one is, and when it is asked for nonsense."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Endpoint, Run

VERBS = [
    ("status",), ("jobs",), ("jobs", "x"), ("models",), ("invite",), ("join", "TOKEN"), ("down",), ("cancel", "x"),
    ("logs", "x"), ("events",), ("events", "--json"), ("peers",), ("doctor",), ("pair",), ("forget", "x"),
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_no_daemon(run: Run, tmp_path: Path, verb: tuple[str, ...]) -> None:
    answer = run(*verb)
    assert answer.code == 5
    assert f"No daemon is running for {tmp_path / 'home'}." in answer.err
    assert "hivenode up" in answer.err
    assert answer.out == "" or "--json" in verb


def test_no_daemon_in_json(run: Run) -> None:
    answer = run("status", "--json")
    assert answer.code == 5
    assert answer.json["error"]["code"] == "unavailable"


def test_a_stale_endpoint_file(daemon: Endpoint, run: Run) -> None:
    daemon.stop()
    assert "No daemon is running" in run("status").err
    (daemon.home / "run" / "admin.json").write_text("{")
    assert "No daemon is running" in run("status").err


def test_something_else_answers_on_the_port(daemon: Endpoint, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (daemon.home / "run" / "admin.json").write_text(json.dumps({"url": f"http://127.0.0.1:{port}", "pid": 1}))
        import threading

        def serve() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n<html>")

        thread = threading.Thread(target=serve)
        thread.start()
        answer = run("status")
        thread.join()
    assert (answer.code, "is not its daemon" in answer.err) == (5, True)


def test_a_wrong_token_is_refused(daemon: Endpoint, run: Run) -> None:
    (daemon.home / "admin.token").write_text("another")
    assert run("jobs").code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_the_home_of_another_user(daemon: Endpoint, run: Run) -> None:
    (daemon.home / "admin.token").chmod(0)
    answer = run("jobs")
    assert (answer.code, "another user" in answer.err) == (4, True)


def test_the_home_is_that_of_the_verb_then_the_global_then_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    monkeypatch.setenv("HIVENODE_HOME", str(a))
    assert f"for {a}." in run("status").err
    assert f"for {b}." in run("--home", b, "status").err
    assert f"for {c}." in run("--home", b, "status", "--home", c).err
    monkeypatch.delenv("HIVENODE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"for {tmp_path / '.hivenode'}." in run("status").err


def test_an_unknown_verb_gets_the_nearest(run: Run) -> None:
    answer = run("stauts")
    assert answer.code == 2
    assert "'status'" in answer.err
    assert run("jobs", "--jsn").code == 2


def test_help_is_quick_to_import() -> None:
    """What makes `hivenode --help` slow is never even looked at."""
    program = (
        "import sys; from hivenode.cli.main import main; code = main(['--help'])\n"
        "print(sorted(m for m in sys.modules if m in ('aiohttp', 'torch', 'sklearn', 'numpy', 'pydantic', 'msgspec',"
        " 'psutil', 'asyncio', 'prometheus_client', 'cryptography')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *shown, imported = done.stdout.strip().splitlines()
    assert "submit" in "".join(shown)
    assert imported == "[]"


@pytest.mark.parametrize("verb", ["up", "down", "status", "invite", "join", "submit", "jobs", "logs", "cancel", "plan",
                                  "models", "predict", "config", "events", "version", "demo"])  # fmt: skip
def test_every_verb_is_documented(run: Run, verb: str) -> None:
    assert run(verb, "--help").code == 0
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert f"`hivenode {verb}" in manual or f"`{verb}" in manual


def test_exit_codes_are_documented() -> None:
    from hivenode.errors import BY_CODE

    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code, kind in BY_CODE.items():
        assert any(line.startswith(f"| {kind.exit_code} ") for line in manual.splitlines()), code


def test_a_reader_that_has_enough_is_no_error(daemon: Endpoint) -> None:
    done = subprocess.run(
        f"{sys.executable} -m hivenode.cli.main --home {daemon.home} status | true",
        shell=True, capture_output=True, text=True, executable="/bin/bash",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
