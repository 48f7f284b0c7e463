"""Data that several nodes have some of, each its own: those train together, and no sample leaves where it lies."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, form_hive, free_port
from tests.cluster.test_declared import finished, pieces
from tests.cluster.test_doctor import Odd

SECRET = {"birch": range(40), "cedar": range(30, 90)}
"""Values of the first column, by node: the sets overlap a little, and their means and deviations differ."""


def rows(values: range) -> str:
    lines = (f"{n},{k},{'far' if n + k > 45 else 'near'}\n" for n in values for k in range(20))
    return "a,b,kind\n" + "".join(lines)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("model", "training"),
    [
        (
            {"source": "zoo:mlp", "params": {"hidden": 16}},
            {"sync": "local", "sync_every": 5, "outer_learning_rate": 1.0, "outer_momentum": 0.0},
        ),
        pytest.param({"source": "sklearn:SGDClassifier"}, {"sync": "local", "sync_every": 5}, marks=pytest.mark.slow),
    ],
    ids=["network", "estimator"],
)
async def test_nodes_that_have_the_data_train_together(
    tmp_path: Path, model: dict[str, object], training: dict[str, object]
) -> None:
    machines = [Machine(tmp_path, name) for name in ("ash", "birch", "cedar")]
    for machine in machines:
        extra = ""
        if machine.name in SECRET:
            (tmp_path / f"{machine.name}.csv").write_text(rows(SECRET[machine.name]))
            extra = f'[data.private.visits]\nsource = "csv:{tmp_path}/{machine.name}.csv"\n'
        machine.configure("127.0.0.1", free_port(), extra=extra)
    await form_hive(machines)
    ash = machines[0]
    try:
        spec = {
            "name": "visits",
            "model": model,
            "data": {"source": "private:visits"},
            "training": {"epochs": 30, "batch_size": 64, "learning_rate": 0.3, **training},
        }
        detail = await finished(ash, spec)
        (attempt,) = detail["attempts"]
        assert attempt["strategy"] == "data_parallel"
        assert sorted(attempt["members"]) == ["birch", "cedar"]
        assert detail["summary"]["accuracy"] > 0.95, "on what both have held out"
        lines = (await ash.api("GET", f"/v1/jobs/{detail['summary']['job']}/logs"))["lines"]
        told = {line["node"]: line["event"] for line in lines if "samples of" in line["event"]}
        assert told["birch"].startswith("800 samples")
        assert told["cedar"].startswith("1200 samples")
        # A value means the same whoever had it: raw ones are asked, of either node's range.
        asked = {"inputs": [[5, 5], [38, 3], [38, 15], [85, 5]]}
        answer = await ash.api("POST", "/v1/models/visits/predict", asked)
        guesses = [answer["labels"][row.index(max(row))] for row in answer["outputs"]]
        assert guesses == ["near", "near", "far", "far"]
        assert not any(pieces(machine) for machine in machines), "nobody holds what others could fetch"
        for machine in machines:
            others = [rows(values)[20:] for name, values in SECRET.items() if name != machine.name]
            for path in (path for path in machine.home.rglob("*") if path.is_file()):
                assert not any(secret.encode() in path.read_bytes() for secret in others), path
        status, refusal = await ash.ask("POST", "/v1/plan", {"spec": spec | {"placement": {"nodes": ["ash"]}}})
        assert status >= 400
        assert "private:visits" in refusal["error"]["message"]
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


@pytest.mark.slow
@pytest.mark.timeout(230)
async def test_a_node_with_data_of_its_own_is_lost_comes_back_and_all_go_on_after_all_were_killed(
    tmp_path: Path,
) -> None:
    names = ("ash", "birch", "cedar")
    secret = {name: 1000.0 + 0.123456789 * (n + 1) for n, name in enumerate(names)}
    machines = []
    for name in names:
        machine = Machine(tmp_path, name)
        lines = "".join(f"{secret[name] + n},{n % 20},{'odd' if n % 20 > 9 else 'even'}\n" for n in range(300))
        (tmp_path / f"{name}.csv").write_text("a,b,kind\n" + lines)
        extra = f'[data.private.visits]\nsource = "csv:{tmp_path}/{name}.csv"\n'
        machine.configure("127.0.0.1", free_port(), extra=extra)
        machines.append(machine)
    ash, _, cedar = machines
    await form_hive(machines)
    try:
        spec = {
            "name": "visits",
            "model": {"source": "zoo:mlp", "params": {"hidden": 16}},
            "data": {"source": "private:visits"},
            "training": {"epochs": 40_000, "batch_size": 90, "learning_rate": 0.05, "checkpoint_every_steps": 50},
            "placement": {"min_nodes": 3},
        }
        path = f"/v1/jobs/{(await ash.api('POST', '/v1/jobs', {'spec': spec}))['summary']['job']}"
        detail = await ash.until(path, lambda d: (d["checkpoint_step"] or 0) >= 50)
        assert sorted(detail["attempts"][0]["members"]) == sorted(names)
        epoch = detail["summary"]["steps"] / 40_000
        assert epoch == 8, "720 samples of all, in batches of 90"

        await cedar.kill()
        detail = await ash.until(path, lambda d: len(d["attempts"][0]["members"]) == 2)
        at = detail["summary"]["step"]
        assert "1 of 3 nodes lost" in detail["summary"]["reason"], detail["summary"]
        detail = await ash.until(path, lambda d: d["summary"]["step"] > at + 20)
        assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch"], "without its rows"
        await cedar.start()
        detail = await ash.until(path, lambda d: len(d["attempts"][0]["members"]) == 3, 90)
        at = detail["summary"]["step"]
        detail = await ash.until(path, lambda d: d["checkpoint_step"] > at)
        assert len(detail["attempts"]) == 1, "it came back into the run"
        logs = (await ash.api("GET", f"{path}/logs"))["lines"]
        assert any(line["event"] == "going on without lost workers: cedar" for line in logs)
        assert any(line["event"] == "going on with new workers: cedar" for line in logs)

        await asyncio.gather(*(machine.kill() for machine in machines))
        await asyncio.gather(*(machine.start() for machine in machines))
        resumed = await ash.until(path, lambda d: len(d["attempts"]) > 1 and d["summary"]["step"] > at + 50, 90)
        assert resumed["attempts"][1]["resume_step"] >= at
        assert resumed["summary"]["steps"] == detail["summary"]["steps"], "an epoch is as long as it was"
        await ash.api("POST", f"{path}/cancel", {})
        for machine in machines:
            others = [value for name, value in secret.items() if name != machine.name]
            shapes = [f"{v + n}" for v in others for n in range(40)]
            wanted = [s.encode() for s in shapes] + [struct.pack(f"<{k}", float(s)) for s in shapes for k in "fd"]
            for file in (file for file in machine.home.rglob("*") if file.is_file()):
                assert not any(part in file.read_bytes() for part in wanted), file
            assert not pieces(machine)
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


WAITS = """
import asyncio, os
import hivenode.jobs.lending as lending
read = lending.prepare
async def waits(*order):
    while not os.path.exists({gate!r}):
        await asyncio.sleep(0.1)
    return await read(*order)
lending.prepare = waits
"""


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_a_node_that_does_not_get_to_its_data_is_left_out_and_joins_when_it_has_read_them(tmp_path: Path) -> None:
    machines = [Odd(tmp_path, name) for name in ("ash", "birch", "cedar")]
    for number, machine in enumerate(machines):
        (tmp_path / f"{machine.name}.csv").write_text(rows(range(number * 10, number * 10 + 40)))
        private = f'[data.private.visits]\nsource = "csv:{tmp_path}/{machine.name}.csv"\n'
        machine.configure("127.0.0.1", free_port(), extra=private + "[jobs]\nreading_seconds = 4.0\n")
    gate = tmp_path / "gate"
    machines[2].change = WAITS.format(gate=str(gate))
    await form_hive(machines)
    ash = machines[0]
    try:
        spec = {
            "name": "visits",
            "model": {"source": "zoo:mlp", "params": {"hidden": 16}},
            "data": {"source": "private:visits"},
            "training": {"epochs": 100_000, "batch_size": 64, "learning_rate": 0.05},
        }
        path = f"/v1/jobs/{(await ash.api('POST', '/v1/jobs', {'spec': spec}))['summary']['job']}"
        await ash.until(path, lambda d: "private:visits on cedar is still being read" in d["summary"]["reason"])
        detail = await ash.until(path, lambda d: d["summary"]["step"] > 10)
        assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch"]
        assert detail["plan"]["reason"].endswith("It goes without cedar, still reading private:visits after 4 s.")
        gate.touch()
        detail = await ash.until(path, lambda d: len(d["attempts"][0]["members"]) == 3, 90)
        at = detail["summary"]["step"]
        detail = await ash.until(path, lambda d: d["summary"]["step"] > at + 10)
        assert len(detail["attempts"]) == 1
        assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch", "cedar"]
        await ash.api("POST", f"{path}/cancel", {})
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))
