"""What people get wrong, and what disks and files do, on real daemons: a sentence that names the thing and the fix."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.machines import Machine


async def cli(*arguments: str, home: Path) -> tuple[int, str]:
    """Exit code and everything printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hivenode.cli.main", "--home", str(home), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, " ".join(out.decode().split())


@pytest.fixture
async def lone(tmp_path: Path):
    machine = Machine(tmp_path, "lone")
    await machine.start()
    yield machine
    await machine.stop()


async def test_without_a_daemon_the_command_line_says_how_to_start_one(tmp_path: Path) -> None:
    code, said = await cli("status", home=tmp_path / "nowhere")
    assert code == 5
    assert "No daemon is running" in said
    assert "hivenode up" in said


async def test_a_second_daemon_on_the_same_home(lone: Machine) -> None:
    assert lone.process is not None
    code, said = await cli("up", home=lone.home)
    assert code == 6
    assert str(lone.process.pid) in said


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        machine = Machine(tmp_path, "unlucky")
        port = str(taken.getsockname()[1])
        code, said = await cli("up", "--port", port, home=machine.home)
    assert code == 6
    assert port in said


async def test_invites_used_up_expired_garbled_and_foreign(lone: Machine, tmp_path: Path) -> None:
    spent = (await lone.api("POST", "/v1/invites", {"uses": 1}))["token"]
    guest = Machine(tmp_path, "guest")
    await guest.start("--join", spent)
    late = Machine(tmp_path, "late")
    code, said = await cli("up", "--join", spent, home=late.home)
    assert code == 4, said
    assert "used" in said

    expired = (await lone.api("POST", "/v1/invites", {"uses": 1, "expires_seconds": 1}))["token"]
    await asyncio.sleep(1.5)  # an expiry is a matter of the wall clock
    code, said = await cli("up", "--join", expired, home=late.home)
    assert code == 4, said
    assert "expired" in said

    code, said = await cli("up", "--join", spent[:-3] + "aaa", home=late.home)
    assert code == 2, said

    code, said = await cli("invite", home=guest.home)
    assert code == 4, "only the founder keeps the authority's key"
    assert "authority" in said
    await guest.stop()


async def test_wrong_jobs_are_refused_with_the_nearest_name(lone: Machine, tmp_path: Path) -> None:
    def toml(text: str) -> str:
        path = tmp_path / "job.toml"
        path.write_text(text)
        return str(path)

    for text, named in {
        'name = "x"\n[training]\nepoch = 3': "epochs",
        'name = "x"\n[model]\nsource = "zoo:cn"': "cnn",
        'name = "x"\n[data]\nsource = "sklearn:digit"': "sklearn:digits",
        'name = "x"\n[placement]\nnodes = ["moon"]': "moon",
        "name = ": "TOML",
    }.items():
        code, said = await cli("submit", toml(text), home=lone.home)
        assert code in (2, 3), said
        assert named in said
    code, said = await cli("submit", str(tmp_path / "none.toml"), home=lone.home)
    assert code == 3
    assert "none.toml" in said


async def test_a_job_nobody_can_run_says_why(lone: Machine, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('name = "big"\n[placement]\nmin_nodes = 9')
    code, said = await cli("plan", str(path), home=lone.home)
    assert code == 5, said
    assert "9" in said
    submitted = await lone.api("POST", "/v1/jobs", {"spec": {"name": "big", "placement": {"min_nodes": 9}}})
    detail = await lone.until(f"/v1/jobs/{submitted['summary']['job']}", lambda d: "9" in d["summary"]["reason"])
    assert detail["summary"]["state"] == "queued"


async def test_a_torn_journal_tail_is_cut_off_and_the_rest_kept(lone: Machine) -> None:
    for number in range(5):
        await lone.api("POST", "/v1/jobs", {"spec": {"name": f"job{number}", "placement": {"min_nodes": 9}}})
    await lone.kill()
    journal = next(lone.home.glob("hives/*/journal.db"))
    wal = journal.with_name("journal.db-wal")
    os.truncate(wal, wal.stat().st_size - 100)
    await lone.start()
    names = [job["name"] for job in await lone.api("GET", "/v1/jobs")]
    assert names == [f"job{number}" for number in range(3, -1, -1)]
    await lone.api("POST", "/v1/jobs", {"spec": {"name": "after", "placement": {"min_nodes": 9}}})


async def test_a_garbled_journal_is_named(lone: Machine) -> None:
    await lone.stop()
    journal = next(lone.home.glob("hives/*/journal.db"))
    journal.write_bytes(b"not a database, surely" * 500)
    code, said = await cli("up", home=lone.home)
    assert code == 8, said
    assert "journal.db" in said


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small tmpfs")
async def test_a_full_disk_refuses_what_it_cannot_keep_and_recovers(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        machine = Machine(small, "full")
        await machine.start()
        filler = small / "filler"
        fill(filler)
        job = {"spec": {"name": "x" * 60, "placement": {"min_nodes": 9}}}
        accepted = 0
        while (answer := await machine.ask("POST", "/v1/jobs", job))[0] < 400:
            accepted += 1
            assert accepted < 5000
        assert answer[0] == 507
        assert "full" in answer[1]["error"]["message"].lower()
        filler.unlink()
        await machine.api("POST", "/v1/jobs", job)
        assert len(await machine.api("GET", "/v1/jobs")) == accepted + 1
        await machine.kill()
        await machine.start()
        assert len(await machine.api("GET", "/v1/jobs")) == accepted + 1, "what was accepted is still known"
        await machine.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


async def test_the_daemon_imports_no_framework(lone: Machine) -> None:
    submitted = await lone.api("POST", "/v1/jobs", {"spec": {"name": "tiny", "training": {"epochs": 1}}})
    await lone.until(f"/v1/jobs/{submitted['summary']['job']}", lambda d: d["summary"]["state"] == "finished")
    assert lone.process is not None
    mapped = {Path(region.path).name for region in psutil.Process(lone.process.pid).memory_maps()}
    assert not [name for name in mapped if "torch" in name or "sklearn" in name]
