"""Administering the members of a hive of real daemons: roles taken and given, nodes shown out, ghosts removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Machine, found_hive
from tests.cluster.test_bad_input import cli


@pytest.fixture
async def hive(tmp_path: Path):
    machines = await found_hive(tmp_path)
    yield machines
    await asyncio.gather(*(machine.stop() for machine in machines))


def member(status: Any, name: str) -> Any:
    return next((member for member in status["members"] if member["name"] == name), None)


def peer(peers: Any, name: str) -> Any:
    return next((peer for peer in peers["known"] if peer["name"] == name), None)


async def test_a_revoked_coordinator_is_shown_out_and_cannot_come_back(hive: list[Machine]) -> None:
    ash, birch, cedar = hive
    await ash.stop()  # it hands over, so that one of the others coordinates
    elected = await birch.until("/v1/status", lambda s: s["coordinator"] and not member(s, "ash")["coordinator"])
    if member(elected, "birch")["coordinator"]:
        birch, cedar = cedar, birch
    await ash.start()
    gone = cedar.name
    await ash.until("/v1/status", lambda s: len(s["members"]) == 3 and member(s, gone)["coordinator"])
    status, answer = await birch.ask("POST", f"/v1/members/{gone}/revoke", {})
    assert status == 403
    assert "founded the hive" in answer["error"]["fix"]
    status, answer = await ash.ask("POST", "/v1/members/ash/revoke", {})
    assert status == 403
    assert "cannot be revoked" in answer["error"]["message"]
    assert peer(await birch.api("GET", "/v1/peers"), gone)["linked"]

    await ash.api("POST", f"/v1/members/{gone}/revoke", {"reason": "the laptop was sold"})
    told = await cedar.until("/v1/status", lambda s: "the laptop was sold" in " ".join(s["health"]))
    assert not told["healthy"]
    assert told["roles"] == []
    for machine in (ash, birch):
        await machine.until("/v1/status", lambda s: member(s, gone) is None and s["coordinator"], 15)
        assert [p["name"] for p in (await machine.api("GET", "/v1/peers"))["revoked"]] == [gone]
        assert (await machine.api("GET", "/v1/status"))["healthy"]
    for left in (await cedar.api("GET", "/v1/peers"))["known"]:
        assert not left["linked"]
    status, answer = await cedar.ask("POST", "/v1/jobs", {"spec": {"name": "late"}})
    assert status == 403

    await cedar.stop()
    await cedar.start()
    await ash.stop()
    await ash.start()
    alone = await birch.until("/v1/status", lambda s: member(s, "ash")["linked"] and s["coordinator"])
    assert member(alone, gone) is None
    assert not any(p["linked"] for p in (await cedar.api("GET", "/v1/peers"))["known"])

    await ash.api("POST", f"/v1/members/{gone}/grant", {"roles": ["worker"]})
    token = (await ash.api("POST", "/v1/invites", {}))["token"]
    await cedar.api("POST", "/v1/join", {"token": token})
    back = await birch.until("/v1/status", lambda s: (m := member(s, gone)) is not None and m["linked"])
    assert member(back, gone)["state"] == "alive"


async def test_ghosts_strangers_and_the_doctor(tmp_path: Path) -> None:
    ash, birch = await found_hive(tmp_path, ("ash", "birch"))
    stranger = Machine(tmp_path, "stranger")
    await stranger.start()
    strange = (await stranger.api("GET", "/v1/status"))["addresses"][0]
    try:
        code, said = await cli("doctor", "--json", home=ash.home)
        assert code == 0, said
        examined = json.loads(said)["peers"][0]
        assert examined["linked"]
        probed = examined["addresses"][0]
        assert (probed["tcp"], probed["identity"], probed["protocols"]) == (True, True, "1-1")
        assert abs(probed["skew_seconds"]) < 5

        status, answer = await ash.ask("POST", "/v1/members/birch/forget", {})
        assert status == 409
        assert "hivenode revoke birch" in answer["error"]["fix"]
        await birch.kill()
        await ash.until("/v1/status", lambda s: member(s, "birch")["state"] == "dead")
        code, said = await cli("doctor", "birch", home=ash.home)
        assert code == 5
        assert "hivenode up" in said
        code, said = await cli("forget", "birch", home=ash.home)
        assert code == 0, said
        assert member(await ash.api("GET", "/v1/status"), "birch") is None

        await ash.stop()
        settings = ash.home / "hivenode.toml"
        settings.write_text(settings.read_text().replace("[network]", f'[network]\nseeds = ["{strange}"]'))
        await ash.start()
        peers = await ash.until("/v1/peers", lambda found: found["pending"])
        assert peers["pending"][0]["address"] == strange
        assert peers["pending"][0]["why"] == "identity"
        assert [known["name"] for known in peers["known"]] == ["ash"]
        assert [gone["name"] for gone in peers["revoked"]] == ["birch"]
        code, said = await cli("peers", home=ash.home)
        assert code == 0
        assert strange in said
        assert "gone for good" in said
    finally:
        await asyncio.gather(*(machine.stop() for machine in (ash, birch, stranger)))
