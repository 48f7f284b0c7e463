"""The doctor on real daemons, each with one thing wrong that has been made wrong for real."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hivenode import walls
from tests.cluster.machines import Machine, found_hive, free_port, settled
from tests.cluster.test_bad_input import cli

SHORT = "[trust]\ncertificate_days = 0.000105\n"


class Odd(Machine):
    """A machine whose daemon runs with something changed beforehand."""

    change = ""

    def command(self) -> tuple[str, ...]:
        if not self.change:
            return super().command()
        return (sys.executable, "-c", f"{self.change}\nfrom hivenode.cli.main import run\nrun()")


def clock_off(seconds: float) -> str:
    return f"import hivenode.daemon as d, time\nd._wall = lambda: time.time() + {seconds}"


NEWER_PROTOCOL = "import hivenode.net.link as link\nlink.PROTOCOL_VERSIONS = (7, 9)"


@pytest.fixture
async def two(tmp_path: Path):
    machines = [Odd(tmp_path, "ash"), Odd(tmp_path, "birch")]
    await machines[0].start()
    token = (await machines[0].api("POST", "/v1/invites", {}))["token"]
    await machines[1].start("--join", token)
    for machine in machines:
        await machine.until("/v1/status", lambda status: settled(status, 2))
    yield machines
    await asyncio.gather(*(machine.stop() for machine in machines))


async def examined(machine: Machine, peer: str) -> Any:
    """What the doctor found of one peer."""
    code, said = await cli("doctor", peer, "--json", home=machine.home)
    found = json.loads(said)
    assert code == (0 if found["healthy"] else 5)
    return found["peers"][0]


async def gone(machine: Machine) -> None:
    await machine.until("/v1/status", lambda status: all(not m["linked"] for m in status["members"] if not m["self"]))


def reconfigure(machine: Machine, before: str, after: str) -> None:
    settings = machine.home / "hivenode.toml"
    text = settings.read_text()
    assert before in text
    settings.write_text(text.replace(before, after))


@pytest.mark.skipif(bool(walls.lacking()), reason="this machine lacks walls, and the doctor says so")
async def test_when_all_is_well_everything_is_said_to_be(two: list[Odd]) -> None:
    ash, _ = two
    code, said = await cli("doctor", home=ash.home)
    assert code == 0, said
    for words in ("All is well", "TLS identity right", "protocol 1-1", "clock", "Used: lo 127.0.0.1", "switched off",
                  "certificate: Good until", "The authority's key is kept by ash", "--role admin",
                  "kept apart by Landlock"):  # fmt: skip
        assert words in said, words


async def test_a_machine_without_walls_around_its_workers_says_so(tmp_path: Path) -> None:
    machine = Odd(tmp_path, "ash")
    machine.change = "import hivenode.walls as w\nw.landlock, w.seccomp = (lambda: 0), (lambda: False)"
    await machine.start()
    try:
        code, said = await cli("doctor", "--json", home=machine.home)
        assert code == 5
        found = next(check for check in json.loads(said)["checks"] if check["about"] == "walls")
        assert not found["ok"]
        assert "no Landlock" in found["found"]
        assert "can start programs" in found["found"]
        assert "Linux 5.13" in found["fix"]
        (warning,) = [line for line in machine.lines if "not fully walled in" in line["event"]]
        assert warning["level"] == "warning"
        assert "no Landlock" in warning["reason"]
    finally:
        await machine.stop()


async def test_a_port_that_others_cannot_dial(two: list[Odd]) -> None:
    ash, birch = two
    await birch.stop()
    reconfigure(birch, "[network]", '[network]\nadvertise = ["127.0.0.1:1"]')
    await birch.start()
    await ash.until("/v1/status", lambda status: settled(status, 2) and "127.0.0.1:1" in str(status["members"]))
    found = await examined(ash, "birch")
    assert "linked because it dialled this node" in found["found"]
    assert "network.advertise" in found["fix"]
    probed = next(one for one in found["addresses"] if one["address"] == "127.0.0.1:1")
    assert (probed["tcp"], probed["identity"]) == (False, False)
    code, said = await cli("doctor", home=birch.home)
    assert code == 5
    assert "cannot reach itself at 127.0.0.1:1" in said


async def test_a_daemon_that_is_not_there(two: list[Odd]) -> None:
    ash, birch = two
    await birch.kill()
    await gone(ash)
    found = await examined(ash, "birch")
    assert "nothing listens there" in found["found"]
    assert "`hivenode up`" in found["fix"]


async def test_another_hives_daemon_at_the_address(two: list[Odd], tmp_path: Path) -> None:
    ash, birch = two
    port = (await birch.api("GET", "/v1/status"))["addresses"][0].rpartition(":")[2]
    await birch.kill()
    stranger = Machine(tmp_path, "stranger")
    stranger.configure("127.0.0.1", int(port))
    await stranger.start()
    try:
        await ash.until("/v1/peers", lambda peers: any("another hive" in p["detail"] for p in peers["pending"]))
        found = await examined(ash, "birch")
        assert "of another hive" in found["found"]
        assert "hivenode forget birch" in found["fix"]
        # The stranger was dialled by somebody who looked for another: it says so too.
        pending = (await stranger.api("GET", "/v1/peers"))["pending"]
        assert {(p["why"], p["inbound"]) for p in pending} == {("hive", True)}
    finally:
        await stranger.stop()


async def test_another_member_at_the_address(tmp_path: Path) -> None:
    ash, birch, cedar = await found_hive(tmp_path)
    try:
        port = (await birch.api("GET", "/v1/status"))["addresses"][0].rpartition(":")[2]
        await birch.kill()
        await cedar.stop()
        cedar.configure("127.0.0.1", int(port))
        await cedar.start()
        await ash.until("/v1/status", lambda status: settled(status, 2))
        found = await examined(ash, "birch")
        assert "answered instead of" in found["found"]
        assert "Something else has that address" in found["fix"]
    finally:
        await asyncio.gather(*(machine.stop() for machine in (ash, birch, cedar)))


async def test_a_clock_that_is_off_by_an_hour(two: list[Odd]) -> None:
    ash, birch = two
    await birch.stop()
    birch.change = clock_off(3660)
    await birch.start()
    await ash.until("/v1/status", lambda status: settled(status, 2))
    for machine, other, words in ((ash, "birch", "61 minutes ahead of"), (birch, "ash", "61 minutes behind")):
        found = await examined(machine, other)
        assert words in found["found"]
        assert "timedatectl" in found["fix"]
        assert found["linked"]  # an hour is no reason to part: certificates are renewed long before they end


async def test_a_build_with_which_nothing_can_be_said(two: list[Odd]) -> None:
    ash, birch = two
    await birch.stop()
    birch.change = NEWER_PROTOCOL
    await birch.start()
    pending = await ash.until("/v1/peers", lambda peers: any("protocol" in p["detail"] for p in peers["pending"]))
    assert any("speaks protocol 7-9" in peer["detail"] and peer["name"] == "birch" for peer in pending["pending"])
    found = await examined(ash, "birch")
    assert "speaks protocol 7-9 and this node 1-1" in found["found"]
    assert found["fix"].startswith("Update hivenode on this machine")
    assert found["addresses"][0]["protocols"] == "7-9"
    found = await examined(birch, "ash")
    assert found["fix"].startswith("Update hivenode on ash")


async def test_certificates_that_ended_while_nobody_could_renew_them(tmp_path: Path) -> None:
    ash, birch, cedar = await found_hive(tmp_path, extra=SHORT)
    try:
        await ash.stop()
        await birch.until("/v1/status", lambda status: any("turn it away" in text for text in status["health"]))
        await birch.until("/v1/peers", lambda peers: any(p["why"] == "expired" for p in peers["pending"]))
        code, said = await cli("doctor", home=birch.home)
        assert code == 5
        assert "This node's certificate ended on" in said
        found = await examined(birch, "cedar")
        assert "expired" in found["found"]
        assert "reaches ash: start it" in found["fix"]
        assert found["addresses"][0]["tcp"]
    finally:
        await asyncio.gather(*(machine.stop() for machine in (ash, birch, cedar)))


async def test_a_revoked_node_and_those_that_revoked_it(two: list[Odd]) -> None:
    ash, birch = two
    await ash.api("POST", "/v1/members/birch/revoke", {"reason": "sold"})
    await birch.until("/v1/status", lambda status: not status["healthy"])
    code, said = await cli("doctor", home=birch.home)
    assert code == 5
    assert "This node was revoked: sold" in said
    await birch.stop()
    await birch.start()  # what it knows of its revocation is on disk: it does not even try
    found = await examined(ash, "birch")
    assert "birch was revoked" in found["found"]
    assert "hivenode grant birch" in found["fix"]


async def test_a_lone_founder_is_told_how_to_invite(tmp_path: Path) -> None:
    lone = Machine(tmp_path, "lone")
    lone.configure("127.0.0.1", free_port())
    await lone.start()
    try:
        code, said = await cli("doctor", home=lone.home)
        assert code == 0
        assert "hivenode invite" in said
        assert "--role admin" not in said
    finally:
        await lone.stop()
