"""A home put back from a backup while nobody could warn it: two histories of one machine, on real daemons."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Machine, found_hive, settled
from tests.cluster.test_bad_input import cli

JOB = {"training": {"epochs": 1, "batch_size": 64}, "data": {"source": "sklearn:digits"}}


async def submit(machine: Machine, name: str, least: int) -> str:
    """Returns its id."""
    wanted = {"spec": {"name": name, "placement": {"min_nodes": least}, **JOB}}
    answer = await machine.api("POST", "/v1/jobs", wanted)
    return str(answer["summary"]["job"])


def signal_to(machines: Sequence[Machine], what: signal.Signals) -> None:
    for machine in machines:
        if machine.process is not None and machine.process.returncode is None:
            machine.process.send_signal(what)


def listed(jobs: Any) -> list[tuple[str, str, float]]:
    return sorted((job["name"], job["job"], job["submitted_at"]) for job in jobs)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_home_from_a_backup_that_stated_things_alone_is_left_out_and_all_are_told(tmp_path: Path) -> None:
    hive = await found_hive(tmp_path)
    ash, birch, cedar = hive
    try:
        await submit(cedar, "before", 9)
        await cedar.stop()
        shutil.copytree(cedar.home, tmp_path / "backup")
        await cedar.start()
        for name in ("known", "known-too"):
            await submit(cedar, name, 9)
        for machine in (ash, birch):
            await machine.until("/v1/jobs", lambda jobs: len(jobs) == 3)

        await cedar.kill()
        signal_to((ash, birch), signal.SIGSTOP)  # their machines sleep
        shutil.rmtree(cedar.home)
        shutil.copytree(tmp_path / "backup", cedar.home)
        await cedar.start()
        for name in ("stated-alone", "and-more", "and-more"):
            await submit(cedar, name, 9)
        assert len(await cedar.api("GET", "/v1/jobs")) == 4
        signal_to((ash, birch), signal.SIGCONT)

        seen = [await m.until("/v1/jobs", lambda jobs: [job["name"] for job in jobs] == ["before"]) for m in hive]
        assert listed(seen[0]) == listed(seen[1]) == listed(seen[2])
        for machine in (ash, birch):
            await machine.until("/v1/status", lambda status: settled(status, 3) and not status["healthy"])
            _, said = await cli("status", home=machine.home)
            assert "The feed of cedar forked at event" in said
            assert "Give it a new home and invite it again." in said
        await cedar.until("/v1/status", lambda status: not status["healthy"])
        _, said = await cli("status", home=cedar.home)
        assert "Another member found two branches of this node's own feed" in said
        assert "give this node a new home and invite it again" in said
        status, answer = await cedar.ask("POST", "/v1/jobs", {"spec": {"name": "after", **JOB}})
        assert status == 403
        assert "two histories" in answer["error"]["message"]

        path = f"/v1/jobs/{await submit(birch, 'goes-on', 2)}"
        detail = await ash.until(path, lambda d: d["summary"]["state"] in ("finished", "failed"))
        assert detail["summary"]["state"] == "finished", detail
        assert sorted(detail["attempts"][0]["nodes"]) == ["ash", "birch"]
        jobs = [await m.until("/v1/jobs", lambda jobs: len(jobs) == 2) for m in hive]
        assert listed(jobs[0]) == listed(jobs[1]) == listed(jobs[2])
    finally:
        signal_to((ash, birch), signal.SIGCONT)
        await asyncio.gather(*(machine.stop() for machine in hive))
