"""Data and models that only some nodes have, or that come from a file, over real daemons."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import Machine, form_hive, free_port

PACKAGE = """
from torch import nn


def tower(input_shape, outputs, width):
    (inputs,) = input_shape
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, outputs))
"""
ROWS = "a,b,kind\n" + "".join(f"{n % 40},{n * 7 % 30},{'far' if n % 40 > 20 else 'near'}\n" for n in range(1200))


@pytest.fixture
async def hive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Machine]]:
    """ash submits; birch has private data and an allowed package; cedar is lost."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "towers.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    (tmp_path / "secret.csv").write_text(ROWS)
    machines = [Machine(tmp_path, name) for name in ("ash", "birch", "cedar")]
    private = f'[data.private.visits]\nsource = "csv:{tmp_path}/secret.csv"\n'
    for machine in machines:
        extra = "[jobs]\ncopies = 1\n"
        if machine.name == "birch":
            extra += 'allowed_packages = ["towers"]\n' + private
        machine.configure("127.0.0.1", free_port(), extra=extra)
    await form_hive(machines)
    yield machines
    for machine in machines:
        await machine.stop()


async def finished(machine: Machine, spec: dict[str, Any]) -> dict[str, Any]:
    submitted = await machine.api("POST", "/v1/jobs", {"spec": spec})
    return await ended_well(machine, f"/v1/jobs/{submitted['summary']['job']}")


async def ended_well(machine: Machine, path: str) -> dict[str, Any]:
    ended = await machine.until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90.0)
    assert ended["summary"]["state"] == "finished", ended["summary"]
    return ended


def pieces(machine: Machine) -> set[str]:
    """Digests of the pieces of data that a machine holds."""
    held: set[str] = set()
    for path in machine.home.glob("hives/*/blobs/**/*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # they come and go
            if path.parent.name != "partial" and path.read_bytes()[8:18] == b'{"inputs":':
                held.add(path.name)
    return held


@pytest.mark.timeout(300)
async def test_files_private_data_packages_and_the_catalogue(hive: list[Machine], tmp_path: Path) -> None:
    ash, birch, cedar = hive
    (tmp_path / "rows.csv").write_text(ROWS)
    training = {"epochs": 4, "batch_size": 32, "learning_rate": 0.1}
    shared = {"source": f"csv:{tmp_path}/rows.csv"}
    model = {"source": "zoo:mlp", "params": {"hidden": 16}}

    both = {"strategy": "data_parallel", "nodes": ["birch", "cedar"], "min_nodes": 2}
    long = training | {"epochs": 80}
    spec = {"name": "rows", "model": model, "data": shared, "training": long, "placement": both}
    path = f"/v1/jobs/{(await ash.api('POST', '/v1/jobs', {'spec': spec}))['summary']['job']}"
    await ash.until(path, lambda d: d["summary"]["state"] == "running")
    every, some, others = pieces(ash), pieces(birch), pieces(cedar)
    assert some | others == every
    assert len(some & others) <= 4, "but for the pieces at the seams, each has only its own range"
    assert some != every != others
    await cedar.kill()
    await ash.until(path, lambda d: pieces(birch) == every or d["summary"]["state"] == "finished")
    ended = await ended_well(ash, path)
    assert len(ended["attempts"]) == 1, "birch went on alone, on what it then fetched"
    assert ended["summary"]["accuracy"] > 0.9
    assert ended["spec"]["data"]["shared"]["origin"] == "csv:rows.csv"
    private = {"source": "private:visits"}
    spec = {"name": "visits", "model": model, "data": private, "training": training}
    planned = await ash.api("POST", "/v1/plan", {"spec": spec})
    assert [share["node"] for share in planned["shares"]] == [await identity(birch)]
    assert (await finished(ash, spec))["summary"]["accuracy"] > 0.9
    logs = await ash.api("GET", "/v1/jobs/visits/logs")
    told = " ".join(str(line["event"]) for line in logs["lines"])
    assert "1200 samples of 2 numbers, for classification: 960 to train on, 240 held out." in told
    assert "2 classes: near 630, far 570." in told
    assert not pieces(birch), "nothing of the data was moved, and nothing is kept of the job before"
    status, answer = await ash.ask("POST", "/v1/plan", {"spec": spec | {"data": {"source": "private:visit"}}})
    assert status == 503
    assert "No node that answers has private:visit" in answer["error"]["message"]
    assert answer["error"]["fix"].startswith("Did you mean 'private:visits'?")
    federated = spec | {"placement": {"strategy": "federated"}}
    status, answer = await ash.ask("POST", "/v1/plan", {"spec": federated})
    assert status == 400
    assert 'data_parallel with data.source = "private:NAME"' in answer["error"]["message"]

    tower = {"source": "python:towers:tower", "params": {"width": 8}, "parameters": 50}
    spec = {"name": "tower", "model": tower, "data": shared, "training": training}
    assert (await finished(ash, spec))["plan"]["shares"][0]["node"] == await identity(birch)
    answer = await birch.api("POST", "/v1/models/tower/predict", {"inputs": [[39, 0], [1, 0]]})
    assert [max(zip(row, answer["labels"], strict=True))[1] for row in answer["outputs"]] == ["far", "near"]
    status, answer = await ash.ask("POST", "/v1/models/tower/predict", {"inputs": [[39, 0]]})
    assert "has not allowed" in answer["error"]["message"]

    short = {"epochs": 1, "max_steps": 1, "batch_size": 32, "learning_rate": 0.0001}
    onward = {"name": "onward", "model": {"source": "catalog:rows@1"}, "data": shared, "training": short}
    assert (await finished(ash, onward))["summary"]["accuracy"] > 0.9, "one step goes on from where the model was"
    cut = onward | {"name": "cut", "placement": {"strategy": "pipeline_parallel"}}
    ended = await finished(ash, cut)
    assert (ended["attempts"][0]["strategy"], ended["summary"]["accuracy"] > 0.9) == ("pipeline_parallel", True)
    adapted = onward | {"model": {"source": "catalog:rows", "lora": {"rank": 2}}}
    status, answer = await ash.ask("POST", "/v1/jobs", {"spec": adapted})
    assert status == 400
    assert "lora adapts hf: models" in answer["error"]["message"]
    status, answer = await ash.ask("POST", "/v1/jobs", {"spec": onward | {"model": {"source": "catalog:row"}}})
    assert status == 404
    assert "There is no model row" in answer["error"]["message"]

    def trees(name: str, source: str, **params: int) -> dict[str, Any]:
        return {"name": name, "model": {"source": source, "params": params}, "data": shared}

    few, many = (trees("trees", "sklearn:RandomForestClassifier", n_estimators=count) for count in (12, 30))
    await finished(ash, few)
    await finished(ash, trees("grown", "catalog:trees", n_estimators=30))
    await finished(ash, many | {"name": "once"})
    blobs = {each["name"]: each["blob"] for each in await ash.api("GET", "/v1/models")}
    assert blobs["grown"] == blobs["once"], "the bytes of one grown at once"
    status, answer = await ash.ask("POST", "/v1/jobs", {"spec": trees("no", "catalog:trees")})
    assert status == 400
    assert "trees:1 is a RandomForestClassifier of 12 trees" in answer["error"]["message"]

    (tmp_path / "rows.csv").write_text(ROWS + "1,x,far\n")
    status, answer = await ash.ask("POST", "/v1/jobs", {"spec": {"name": "bad", "model": model, "data": shared}})
    assert status == 400
    assert "line 1202, column 'b': 'x' is not a number" in answer["error"]["message"]


async def identity(machine: Machine) -> str:
    return str((await machine.api("GET", "/v1/status"))["node"])
