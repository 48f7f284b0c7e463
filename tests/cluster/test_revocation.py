"""A member is shown out while its worker trains: its links and its work are ended, and the job goes on without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.cluster.machines import found_hive
from tests.network.hive import job

SOON = 10.0
"""Seconds within which a revoked node must be cut off everywhere."""


async def test_a_revoked_worker_is_cut_off_and_its_job_is_finished_by_the_others(tmp_path: Path) -> None:
    machines = await found_hive(tmp_path)
    ash, birch, cedar = machines
    try:
        status = await ash.api("GET", "/v1/status")
        led = next(member["name"] for member in status["members"] if member["coordinator"])
        gone, stays = (birch, cedar) if led != "birch" else (cedar, birch)
        body = job(400, min_nodes=3)
        path = f"/v1/jobs/{(await ash.api('POST', '/v1/jobs', body))['summary']['job']}"
        running = await ash.until(
            path, lambda detail: [worker["state"] for worker in detail["workers"]] == ["running"] * 3
        )
        id = (await gone.api("GET", "/v1/status"))["node"]
        await ash.api("POST", f"/v1/members/{gone.name}/revoke", {"reason": "sold"})

        def cut_off(peers: dict[str, list[dict[str, object]]]) -> bool:
            return not any(peer["node"] == id for peer in peers["known"])

        for machine in (ash, stays):
            await machine.until("/v1/peers", cut_off, SOON)
            await machine.until("/v1/status", lambda found: all(m["node"] != id for m in found["members"]), SOON)
        await gone.until("/v1/peers", lambda peers: not any(p["linked"] for p in peers["known"] if not p["self"]), SOON)
        told = await gone.until("/v1/status", lambda status: status["roles"] == [], SOON)
        assert any("sold" in sentence for sentence in told["health"])
        step = (await ash.api("GET", path))["summary"]["step"]
        on = await ash.until(path, lambda detail: detail["summary"]["step"] > step + 20)
        assert on["summary"]["attempt"] == running["summary"]["attempt"], "the same attempt goes on with fewer"
        await ash.api("POST", f"{path}/cancel", {})

    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


async def test_one_that_was_off_when_it_was_revoked_comes_back_and_is_turned_away(tmp_path: Path) -> None:
    machines = await found_hive(tmp_path, ("ash", "birch"))
    ash, birch = machines
    try:
        await birch.stop()
        await ash.api("POST", "/v1/members/birch/revoke", {"reason": "sold"})
        await birch.start()
        found = await ash.until("/v1/peers", lambda peers: any(p["why"] == "revoked" for p in peers["pending"]))
        came = next(p for p in found["pending"] if p["why"] == "revoked")
        assert (came["name"], came["inbound"]) == ("birch", True)
        assert found["revoked"][0]["tried_at"] == came["at"]
        told = await birch.until("/v1/peers", lambda peers: any(p["why"] == "identity" for p in peers["pending"]))
        assert any("not a member any more" in peer["detail"] for peer in told["pending"])
        assert not any(peer["linked"] for peer in told["known"] if not peer["self"])
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))
