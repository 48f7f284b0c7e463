"""The doctor between machines: a firewall that drops, and multicast that gets through."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.cluster.machines import form_hive
from tests.network.lan import Lan, NetworkMachine


async def doctor(machine: NetworkMachine, peer: str) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        *machine.command(), "--home", str(machine.home), "doctor", peer, "--json", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    found: dict[str, object] = json.loads(said)["peers"][0]
    return found


async def test_packets_that_are_dropped_on_the_way(lan: Lan, tmp_path: Path) -> None:
    ash, birch = (lan.machine(tmp_path, name, discovery=True) for name in ("ash", "birch"))
    await form_hive([ash, birch])
    await ash.until("/v1/doctor", lambda found: found["peers"][0]["multicast_at"] is not None)
    well = await doctor(ash, "birch")
    assert well["ok"], well
    assert well["multicast_at"] is not None
    ash.host.deafen(birch.host)
    found = await doctor(ash, "birch")
    assert not found["ok"]
    assert "no answer in time" in str(found["found"])
    assert "firewall" in str(found["fix"])
    ash.host.hear()
