"""Links that are bad rather than gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.network.hive import agreed, finished, quiet, same_everywhere, submit, three
from tests.network.lan import Lan

ONE_WAY_SECONDS = 15.0
DEAF_SECONDS = 8.0
"""Longer than an election's timeout, and than it takes to hold somebody dead."""
FLAPS = 8
FLAP_SECONDS = 2.0


async def test_a_slow_network_trains_and_disturbs_nobody(lan: Lan, tmp_path: Path) -> None:
    machines = await three(lan, tmp_path)
    for machine in machines:
        machine.host.limit("20mbit")
    async with quiet(machines):
        path = await submit(machines[1], 4, min_nodes=3)
        detail = await finished(machines[0], path)
    assert [(attempt["outcome"], len(attempt["members"])) for attempt in detail["attempts"]] == [("finished", 3)]
    await same_everywhere(machines, path)


@pytest.mark.slow
async def test_a_late_and_lossy_network_trains_and_kills_nobody(lan: Lan, tmp_path: Path) -> None:
    """As between continents: 80 ms each way, and three packets of a hundred are lost."""
    for host in lan.hosts.values():
        host.delay(0.08)
        host.lose(3)
    machines = await three(lan, tmp_path)
    path = await submit(machines[1], 2, min_nodes=3)
    detail = await finished(machines[0], path)
    assert [(attempt["outcome"], len(attempt["members"])) for attempt in detail["attempts"]] == [("finished", 3)]
    await same_everywhere(machines, path)
    for machine in machines:
        assert "dead" not in [state for _, state in machine.changes()]


async def test_a_member_that_cannot_hear_the_coordinator_disturbs_nobody(lan: Lan, tmp_path: Path) -> None:
    machines = await three(lan, tmp_path)
    name, _ = await agreed(machines)
    leader = next(machine for machine in machines if machine.name == name)
    deaf = next(machine for machine in machines if machine is not leader)
    async with quiet(machines):
        deaf.host.deafen(leader.host)
        await asyncio.sleep(DEAF_SECONDS)
        deaf.host.hear()


@pytest.mark.slow
async def test_a_coordinator_that_nobody_hears_is_replaced_once(lan: Lan, tmp_path: Path) -> None:
    machines = await three(lan, tmp_path)
    name, before = await agreed(machines)
    mute = next(machine for machine in machines if machine.name == name)
    others = [machine for machine in machines if machine is not mute]
    for machine in others:
        machine.host.deafen(mute.host)
    await asyncio.sleep(ONE_WAY_SECONDS)
    for machine in others:
        machine.host.hear()
    leader, after = await agreed(machines)
    assert leader != name
    assert before < after <= before + 2
    for machine in others:
        assert [state for member, state in machine.changes() if member == name].count("dead") == 1


@pytest.mark.slow
@pytest.mark.parametrize("role", ["coordinator", "follower"])
async def test_a_flapping_link_kills_nobody_and_elects_at_most_twice(lan: Lan, tmp_path: Path, role: str) -> None:
    machines = await three(lan, tmp_path)
    name, before = await agreed(machines)
    shaky = next(machine for machine in machines if (machine.name == name) == (role == "coordinator"))
    for _ in range(FLAPS):
        shaky.host.unplug()
        await asyncio.sleep(FLAP_SECONDS)
        shaky.host.plug()
        await asyncio.sleep(FLAP_SECONDS)
    _, after = await agreed(machines)
    assert before <= after <= before + 2
    for machine in machines:
        assert "dead" not in [state for _, state in machine.changes()]
