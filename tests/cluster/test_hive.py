"""The whole path with real processes, sockets and files: machines join, train, die and come back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.machines import Machine, found_hive, settled


def job(epochs: int, **placement: object) -> dict[str, Any]:
    return {
        "spec": {
            "name": "digits",
            "model": {"source": "zoo:cnn"},
            "data": {"source": "sklearn:digits"},
            "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.1, "checkpoint_every_steps": 20},
            "placement": placement,
        }
    }


@pytest.fixture
async def hive(tmp_path: Path):
    machines = await found_hive(tmp_path)
    yield machines
    await asyncio.gather(*(machine.stop() for machine in machines))


async def coordinator_of(machines: list[Machine]) -> Machine:
    status = await machines[0].api("GET", "/v1/status")
    name = next(member["name"] for member in status["members"] if member["coordinator"])
    return next(machine for machine in machines if machine.name == name)


async def model_on(machine: Machine) -> dict[str, Any]:
    models = await machine.until("/v1/models", lambda models: bool(models) and models[0]["here"])
    return models[0]


async def test_the_coordinators_machine_dies_and_the_job_goes_on(hive: list[Machine]) -> None:
    victim = await coordinator_of(hive)
    survivors = [machine for machine in hive if machine is not victim]
    before = await survivors[0].api("GET", "/v1/status")
    submitted = await survivors[0].api("POST", "/v1/jobs", job(100, strategy="data_parallel", min_nodes=3))
    path = f"/v1/jobs/{submitted['summary']['job']}"
    await survivors[1].until(path, lambda d: d["summary"]["state"] == "running" and d["summary"]["step"] >= 40)

    await victim.kill()
    detail = await survivors[0].until(path, lambda d: d["summary"]["state"] == "finished", 90)

    after = await survivors[0].until("/v1/status", lambda s: s["coordinator"] not in ("", before["coordinator"]))
    assert int(after["epoch"].split(".")[0]) > int(before["epoch"].split(".")[0])
    assert len(detail["attempts"]) == 1, "the attempt was adopted, not started again"
    assert detail["attempts"][0]["adopted"]
    assert sorted(detail["attempts"][0]["members"]) == sorted(machine.name for machine in survivors)
    assert detail["summary"]["accuracy"] > 0.9
    models = [await model_on(machine) for machine in survivors]
    assert models[0]["blob"] == models[1]["blob"]
    prediction = await survivors[1].api("POST", "/v1/models/digits/predict", {"inputs": [[0.0] * 64]})
    assert len(prediction["outputs"][0]) == 10
    logs = await survivors[0].api("GET", f"{path}/logs")
    assert {line["node"] for line in logs["lines"]} >= {machine.name for machine in survivors}
    assert victim.name in logs["missing"]


async def test_every_daemon_is_killed_and_the_job_goes_on_from_its_checkpoint(hive: list[Machine]) -> None:
    wanted = job(14, strategy="data_parallel", min_nodes=3)
    wanted["spec"]["training"]["codec"] = "int8"
    submitted = await hive[1].api("POST", "/v1/jobs", wanted)
    path = f"/v1/jobs/{submitted['summary']['job']}"
    await asyncio.gather(*(machine.until(path, lambda d: (d["checkpoint_step"] or 0) >= 40) for machine in hive))

    for machine in hive:
        await machine.kill()
    owed = [machine.home / "owed" / submitted["summary"]["job"] for machine in hive]
    assert all(list(place.iterdir()) for place in owed)
    await asyncio.gather(*(machine.start() for machine in hive))

    detail = await hive[2].until(path, lambda d: d["summary"]["state"] == "finished", 90)
    assert [attempt["outcome"] for attempt in detail["attempts"]] == ["lost", "finished"]
    step = detail["attempts"][1]["resume_step"]
    assert step >= 40
    assert detail["summary"]["accuracy"] > 0.9
    logs = await hive[2].api("GET", f"{path}/logs")
    assert f"What this node still owed as of step {step} is taken up again." in [
        line["event"] for line in logs["lines"]
    ]
    while any(place.exists() for place in owed):
        await asyncio.sleep(0.05)  # they are removed beside the rest


@pytest.mark.slow
@pytest.mark.parametrize("placement", [
    {"strategy": "data_parallel", "nodes": ["ash", "birch"], "min_nodes": 2},
    {"strategy": "single_node", "nodes": ["birch"]},
], ids=["every step", "one node"])  # fmt: skip
async def test_what_goes_on_after_all_were_killed_is_the_uninterrupted_run_to_the_bit(
    hive: list[Machine], placement: dict[str, object]
) -> None:
    wanted = job(40, **placement)
    wanted["spec"]["training"] |= {"momentum": 0.9, "learning_rate": 0.01, "schedule": "cosine"}
    straight = await hive[0].api("POST", "/v1/jobs", wanted)
    path = f"/v1/jobs/{straight['summary']['job']}"
    detail = await hive[0].until(path, lambda d: d["summary"]["state"] == "finished", 90)
    assert len(detail["attempts"]) == 1

    wanted["spec"]["name"] = "again"
    path = f"/v1/jobs/{(await hive[0].api('POST', '/v1/jobs', wanted))['summary']['job']}"
    await asyncio.gather(*(machine.until(path, lambda d: (d["checkpoint_step"] or 0) >= 40) for machine in hive))
    for machine in hive:
        await machine.kill()
    await asyncio.gather(*(machine.start() for machine in hive))
    detail = await hive[0].until(path, lambda d: d["summary"]["state"] == "finished", 90)
    first, second = detail["attempts"]
    assert first["nodes"] == second["nodes"]
    assert 40 <= second["resume_step"] < detail["summary"]["steps"]
    blobs = {model["name"]: model["blob"] for model in await hive[0].api("GET", "/v1/models")}
    assert blobs["again"] == blobs["digits"]


async def test_a_killed_worker_costs_nothing_but_its_share(hive: list[Machine]) -> None:
    submitted = await hive[0].api("POST", "/v1/jobs", job(14, strategy="data_parallel", min_nodes=3))
    path = f"/v1/jobs/{submitted['summary']['job']}"
    await hive[0].until(path, lambda d: d["summary"]["state"] == "running" and d["summary"]["step"] >= 20)
    coordinator = await coordinator_of(hive)
    victim = next(machine for machine in hive if machine is not coordinator)
    leaves = [pid for pid in victim.worker_pids if not psutil.Process(pid).children()]
    for pid in leaves:
        psutil.Process(pid).kill()
    detail = await hive[0].until(path, lambda d: d["summary"]["state"] == "finished", 90)
    assert len(detail["attempts"][0]["members"]) == 2
    assert (await hive[0].api("GET", "/v1/status"))["members"]
    assert settled(await victim.api("GET", "/v1/status"), 3), "its daemon lives on"


async def test_a_machine_that_comes_back_takes_part_in_a_job_that_runs(hive: list[Machine]) -> None:
    coordinator = await coordinator_of(hive)
    late = next(machine for machine in hive if machine is not coordinator)
    await late.kill()
    await coordinator.until(
        "/v1/status", lambda s: next(m["state"] for m in s["members"] if m["name"] == late.name) != "alive"
    )
    submitted = await coordinator.api("POST", "/v1/jobs", job(100, strategy="data_parallel", min_nodes=2))
    path = f"/v1/jobs/{submitted['summary']['job']}"
    await coordinator.until(path, lambda d: d["summary"]["state"] == "running" and d["summary"]["step"] >= 20)
    await late.start()
    everybody = sorted(machine.name for machine in hive)
    await coordinator.until(path, lambda d: sorted(d["attempts"][0]["members"]) == everybody, 60)
    detail = await late.until(path, lambda d: d["summary"]["state"] == "finished", 90)
    assert len(detail["attempts"]) == 1, "it went on all the while"
    assert sorted(detail["attempts"][0]["members"]) == everybody
    assert detail["summary"]["accuracy"] > 0.9
    models = [await model_on(machine) for machine in hive]
    assert models[0]["blob"] == models[1]["blob"] == models[2]["blob"]


async def test_a_cancelled_job_leaves_no_worker(hive: list[Machine]) -> None:
    submitted = await hive[0].api("POST", "/v1/jobs", job(500, min_nodes=3))
    path = f"/v1/jobs/{submitted['summary']['job']}"
    await hive[1].until(path, lambda d: d["summary"]["state"] == "running" and d["summary"]["step"] >= 5)
    await hive[2].api("POST", f"{path}/cancel", {"reason": "enough"})
    for machine in hive:
        await machine.until(path, lambda d: d["summary"]["state"] == "cancelled")
        await machine.until(path, lambda d: all(w["state"] != "running" for w in d["workers"]))
    status, answer = await hive[0].ask("POST", f"{path}/cancel", {"reason": "again"})
    assert status == 409
    assert "already cancelled" in answer["error"]["message"]


async def test_analyze_tells_what_each_node_of_the_hive_would_take(hive: list[Machine]) -> None:
    """The command as a person runs it, over what the daemons have really measured."""
    job = str(Path(__file__).parents[2] / "configs" / "jobs" / "digits.toml")
    process = await asyncio.create_subprocess_exec(
        *hive[1].command(), "--home", str(hive[1].home), "analyze", job, "--no-trace", "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    found = json.loads(out)
    assert process.returncode == 0
    assert {node["name"]: node["self"] for node in found["nodes"]} == {
        machine.name: machine is hive[1] for machine in hive
    }
    for node in found["nodes"]:
        assert node["training"]
        assert node["room_bytes"] > 0
        assert 0 < node["step_seconds"]["low"] < node["step_seconds"]["value"] < node["step_seconds"]["high"]
