"""Nodes find each other by multicast DNS alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.cluster.machines import form_hive, settled
from tests.network.lan import PORT, Lan


async def test_members_that_all_moved_find_each_other_again(lan: Lan, tmp_path: Path) -> None:
    machines = [lan.machine(tmp_path, name, discovery=True) for name in ("ash", "birch")]
    await form_hive(machines)
    moved = {}
    for number, machine in enumerate(machines, start=1):
        await machine.kill()
        # Every address that either has kept of the other is wrong from here on.
        machine.configure(machine.host.address, PORT + number, discovery=True)
        moved[machine.name] = [f"{machine.host.address}:{PORT + number}"]
    for machine in machines:
        await machine.start()
    for machine in machines:
        status = await machine.until(
            "/v1/status",
            lambda status: settled(status, 2) and {m["name"]: m["addresses"] for m in status["members"]} == moved,
        )
        assert all(member["linked"] for member in status["members"])


async def test_a_pairing_code_is_found_without_an_address(lan: Lan, tmp_path: Path) -> None:
    ash, birch = (lan.machine(tmp_path, name, discovery=True) for name in ("ash", "birch"))
    await ash.start()
    await birch.start()
    await birch.until("/v1/peers", lambda peers: any(peer["name"] == "ash" for peer in peers["pending"]))
    code = (await ash.api("POST", "/v1/pair", {"roles": ["worker"]}))["code"]
    joining = await asyncio.create_subprocess_exec(
        *birch.command(), "--home", str(birch.home), "pair", code, "--json", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await joining.communicate()
    assert joining.returncode == 0, said
    assert json.loads(said)["roles"] == ["worker"]
    await ash.until("/v1/status", lambda status: settled(status, 2))
