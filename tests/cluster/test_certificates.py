"""Real daemons whose certificates live for seconds, and a key that was copied to a second machine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Machine, found_hive, settled
from tests.cluster.test_bad_input import cli

SECONDS = 9.0
SHORT = f"[trust]\ncertificate_days = {SECONDS / 86400:.6f}\n"


def said(machine: Machine, event: str) -> list[dict[str, Any]]:
    return [line for line in machine.lines if event in str(line.get("event"))]


async def heard(machine: Machine, event: str, count: int) -> None:
    """Wait until a daemon has logged so many lines of a kind."""
    await machine.until("/v1/status", lambda status: len(said(machine, event)) >= count)


@pytest.mark.slow
async def test_certificates_are_renewed_over_links_that_stay(tmp_path: Path) -> None:
    machines = await found_hive(tmp_path, ("ash", "birch", "cedar"), SHORT)
    ash, birch, cedar = machines
    try:
        ups = {machine.name: len(said(machine, "linked")) for machine in machines}
        for machine in machines:
            await heard(machine, "certificate renewed", 2)  # longer than any certificate of the beginning lives
        for machine in machines:
            status = await machine.api("GET", "/v1/status")
            assert settled(status, 3)
            assert status["healthy"], status["health"]
            assert all(member["linked"] for member in status["members"])
            assert len(said(machine, "linked")) == ups[machine.name], "a link was made anew"
            assert not said(machine, "link ended")

        # A machine that was off for longer than its certificate lives comes back by itself ...
        await cedar.stop()
        await heard(ash, "certificate renewed", len(said(ash, "certificate renewed")) + 2)
        await cedar.start()
        await cedar.until("/v1/status", lambda status: settled(status, 3))
        assert said(birch, "request refused") or said(ash, "request refused") or said(cedar, "certificate renewed")

        # ... and while nobody can sign, the others part when their certificates end, and say why.
        await ash.stop()
        told = await birch.until(
            "/v1/status", lambda status: any("turn it away" in sentence for sentence in status["health"])
        )
        assert "Start ash" in " ".join(told["health"])
        found = await birch.until("/v1/peers", lambda peers: any(p["why"] == "expired" for p in peers["pending"]))
        inbound = next(p for p in found["pending"] if p["why"] == "expired")
        assert (inbound["inbound"], inbound["name"]) == (True, "cedar")
        await ash.start()
        for machine in machines:
            await machine.until("/v1/status", lambda status: settled(status, 3) and not status["health"])
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


@pytest.mark.slow
async def test_with_a_second_admin_the_hive_does_without_its_founder(tmp_path: Path) -> None:
    machines = await found_hive(tmp_path, ("ash", "birch", "cedar"), SHORT)
    ash, birch, cedar = machines
    newcomer = Machine(tmp_path, "dogwood", SHORT)
    try:
        status, answer = await birch.ask("POST", "/v1/invites", {})
        assert status == 403
        assert "ash" in answer["error"]["fix"]
        roles = ["admin", "coordinator", "worker", "submitter"]
        await ash.api("POST", "/v1/members/birch/grant", {"roles": roles})
        await heard(birch, "keeps a copy of the authority's key", 1)
        await ash.stop()
        token = (await birch.api("POST", "/v1/invites", {}))["token"]
        await newcomer.start("--join", token)
        for machine in (birch, cedar, newcomer):
            await heard(machine, "certificate renewed", 2)
            assert settled(await machine.api("GET", "/v1/status"), 3)
        await birch.api("POST", "/v1/members/cedar/revoke", {"reason": "sold"})
        await newcomer.until("/v1/status", lambda status: len(status["members"]) == 3 and status["healthy"])
        keys = list((birch.home / "hives").glob("*/authority-*.key"))
        assert len(keys) == 1
        assert keys[0].stat().st_mode & 0o077 == 0
        await ash.start()
        await ash.api("POST", "/v1/members/birch/grant", {"roles": ["worker"]})
        await heard(birch, "its copy of the authority's key is removed", 1)
        assert not keys[0].exists()
    finally:
        await asyncio.gather(*(machine.stop() for machine in (*machines, newcomer)))


async def test_a_copied_key_cannot_join_while_its_owner_is_there(tmp_path: Path) -> None:
    ash, birch = await found_hive(tmp_path, ("ash", "birch"))
    copy = Machine(tmp_path, "copy")
    shutil.copy(birch.home / "key.pem", copy.home / "key.pem")
    try:
        token = (await ash.api("POST", "/v1/invites", {"uses": 5}))["token"]
        code, out = await cli("up", "--join", token, home=copy.home)
        assert code == 6, out
        where = (await birch.api("GET", "/v1/status"))["addresses"][0]
        assert where in out
        assert "never copied" in out
        peers = await ash.api("GET", "/v1/peers")
        assert [(p["name"], p["why"], p["inbound"]) for p in peers["pending"]] == [("copy", "invite", True)]
        for machine in (ash, birch):
            assert settled(await machine.api("GET", "/v1/status"), 2)
    finally:
        await asyncio.gather(*(machine.stop() for machine in (ash, birch)))


@pytest.mark.parametrize("whole", [False, True])
async def test_of_two_machines_with_one_key_one_stays_and_the_other_ends_with_an_alarm(
    tmp_path: Path, whole: bool
) -> None:
    """The copy joins, or starts from a copy of the whole home, while the owner is off; then the owner comes back."""
    ash, birch = await found_hive(tmp_path, ("ash", "birch"))
    copy = Machine(tmp_path, "copy")
    await birch.stop()
    settings = (copy.home / "hivenode.toml").read_text()
    if whole:
        shutil.copytree(birch.home, copy.home, dirs_exist_ok=True)
        (copy.home / "hivenode.toml").write_text(settings)
    else:
        shutil.copy(birch.home / "key.pem", copy.home / "key.pem")
    try:
        token = (await ash.api("POST", "/v1/invites", {"uses": 5}))["token"]
        await copy.start(*(() if whole else ("--join", token)))
        await ash.until("/v1/status", lambda status: settled(status, 2))
        await birch.start()
        ends = {machine: asyncio.create_task(machine.process.wait()) for machine in (birch, copy) if machine.process}
        async with asyncio.timeout(60):
            done, _ = await asyncio.wait(ends.values(), return_when=asyncio.FIRST_COMPLETED)
        gone, stays = (birch, copy) if ends[birch] in done else (copy, birch)
        assert ends[gone].result() == 6
        assert gone._drain is not None
        await gone._drain
        alarm = said(gone, "key is in use on another machine")
        assert alarm
        assert (await stays.api("GET", "/v1/status"))["addresses"][0] in alarm[0]["addresses"]
        assert any("never copied" in str(line.get("event")) for line in gone.lines)
        await ash.until("/v1/status", lambda status: settled(status, 2))
        assert not ends[stays].done()
        ends[stays].cancel()
        spec = subprocess.run(  # what the survivor states is believed
            [*stays.command(), "--home", str(stays.home), "status"], capture_output=True, text=True, check=False
        )
        assert spec.returncode == 0
        for machine in (ash, stays):
            await machine.until("/v1/status", lambda status: settled(status, 2) and status["health"] == [])
    finally:
        await asyncio.gather(*(machine.stop() for machine in (ash, birch, copy)))
