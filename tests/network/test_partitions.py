"""Networks that split, and daemons that stop and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.network.hive import agreed, coordinator, counter, finished, same_everywhere, submit, three, training
from tests.network.lan import Lan


async def test_both_sides_of_a_split_finish_the_job_and_it_is_finished_once(lan: Lan, tmp_path: Path) -> None:
    machines = await three(lan, tmp_path)
    name, before = await agreed(machines)
    cut = next(machine for machine in machines if machine.name == name)
    pair = [machine for machine in machines if machine is not cut]
    path = await submit(pair[0], 40, strategy="data_parallel", min_nodes=3)
    await training(pair[0], path, 40)

    cut.host.unplug()
    for machine in pair:
        status = await machine.until("/v1/status", lambda status: coordinator(status) not in ("", name))
        assert counter(status) > before
    apart = await asyncio.gather(*(finished(machine, path) for machine in machines))
    assert coordinator(await cut.api("GET", "/v1/status")) == name, "it went on alone"
    assert [detail["attempts"][0]["members"] for detail in apart] == [
        [name] if machine is cut else apart[machines.index(pair[0])]["attempts"][0]["members"] for machine in machines
    ]
    cut.host.plug()

    leader, after = await agreed(machines)
    assert leader != name, "the higher epoch stands"
    assert before < after <= before + 2
    ending, models = await same_everywhere(machines, path)
    assert [attempt["outcome"] for attempt in ending["attempts"]] == ["finished"]
    assert len(models) == 1
    assert ending["summary"]["accuracy"] > 0.9


async def test_a_stopped_coordinator_is_replaced_and_follows_when_it_returns(lan: Lan, tmp_path: Path) -> None:
    machines = await three(lan, tmp_path)
    name, before = await agreed(machines)
    stopped = next(machine for machine in machines if machine.name == name)
    others = [machine for machine in machines if machine is not stopped]
    path = await submit(others[0], 60, strategy="data_parallel", min_nodes=3)
    await training(others[0], path, 20)

    stopped.pause()
    for machine in others:
        await machine.until("/v1/status", lambda status: coordinator(status) not in ("", name))
    await asyncio.sleep(6)  # so long that it is given up, and its own orders are due when it returns
    stopped.go_on()

    leader, after = await agreed(machines)
    assert leader != name
    assert before < after <= before + 2
    ending, models = await same_everywhere(machines, path)
    assert [(attempt["outcome"], attempt["cause"]) for attempt in ending["attempts"]] == [("finished", "first plan")]
    assert ending["attempts"][0]["adopted"], "the new coordinator took over what was running"
    assert all(int(epoch.split(".")[0]) > before for epoch in ending["attempts"][0]["adopted"]), "nobody else did"
    assert len(models) == 1
    assert await agreed(machines) == (leader, after)
