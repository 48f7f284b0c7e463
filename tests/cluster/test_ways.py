"""The jobs in configs/jobs that name a way or a framework, through real daemons: from the file to a prediction."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hivenode.cli.jobs import located
from hivenode.spec.job import read_job
from tests.cluster.machines import Machine, found_hive

JOBS = Path(__file__).parents[2] / "configs" / "jobs"
RIGHT = {"digits_local": 0.94, "digits_keras": 0.94, "digits_forest": 0.93, "digits_sgd": 0.9}


async def trained(machines: list[Machine], spec: dict[str, Any], strategy: str) -> Any:
    spec["placement"] = {"strategy": strategy}
    submitted = await machines[1].api("POST", "/v1/jobs", {"spec": spec})
    path = f"/v1/jobs/{submitted['summary']['job']}"
    detail = await machines[0].until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90)
    assert detail["summary"]["state"] == "finished", detail["summary"]
    return detail


@pytest.mark.parametrize(
    "names",
    [
        ("digits_local", "digits_forest"),
        pytest.param(("digits_keras", "digits_sgd"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
async def test_each_way_and_framework_from_file_to_prediction(tmp_path: Path, names: tuple[str, ...]) -> None:
    machines = await found_hive(tmp_path, ("ash", "birch"))
    digits = load_digits()
    try:
        for name in names:
            detail = await trained(machines, tomllib.loads((JOBS / f"{name}.toml").read_text()), "data_parallel")
            assert len(detail["attempts"][0]["members"]) == 2, name
            asked = {"inputs": (digits.data[:200] / 16).tolist()}
            answer = await machines[0].api("POST", f"/v1/models/{name}/predict", asked)
            guesses = [answer["labels"][int(np.argmax(row))] for row in answer["outputs"]]
            right = np.mean([guess == str(label) for guess, label in zip(guesses, digits.target[:200], strict=True)])
            assert right >= RIGHT[name], name
        await refused(machines[0])
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


@pytest.mark.slow
async def test_a_configuration_of_keras_from_file_to_prediction_and_on(tmp_path: Path) -> None:
    machines = await found_hive(tmp_path, ("ash", "birch"))
    digits = load_digits()
    job = located(read_job(JOBS / "keras_config.toml"), JOBS).model_dump(mode="json", exclude_unset=True)
    try:
        detail = await trained(machines, job, "data_parallel")
        assert len(detail["attempts"][0]["members"]) == 2
        assert detail["spec"]["model"]["source"] == "keras:config"
        assert detail["summary"]["accuracy"] > 0.9
        answer = await machines[0].api(
            "POST", "/v1/models/keras_config/predict", {"inputs": (digits.data[:200] / 16).tolist()}
        )
        guesses = [answer["labels"][int(np.argmax(row))] for row in answer["outputs"]]
        right = [guess == str(label) for guess, label in zip(guesses, digits.target[:200], strict=True)]
        assert np.mean(right) > 0.9
        onward = {"name": "onward", "model": {"source": "catalog:keras_config"}, "data": job["data"]}
        onward |= {"training": {"epochs": 1, "max_steps": 1, "learning_rate": 1e-6}}
        detail = await trained(machines, onward, "single_node")
        assert detail["summary"]["accuracy"] > 0.9, "one step goes on from where the model was"
        sly = tmp_path / "sly.json"
        sly.write_text('{"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": {}}]}}')
        for path in ("/v1/plan", "/v1/jobs"):
            asked = {"spec": {"name": "x", "model": {"source": f"keras:{sly}"}}}
            status, answer = await machines[0].ask("POST", path, asked)
            assert status == 400
            assert "Layer layer0 of the Keras configuration is a Lambda" in answer["error"]["message"]
    finally:
        await asyncio.gather(*(machine.stop() for machine in machines))


async def refused(machine: Machine) -> None:
    """What cannot run says why, before anything is started."""
    whole = {"model": {"source": "sklearn:LogisticRegression"}, "placement": {"strategy": "data_parallel"}}
    status, answer = await machine.ask("POST", "/v1/plan", {"spec": {"name": "x", **whole}})
    assert status == 400
    assert "fitted in one piece" in answer["error"]["message"]
    plan = await machine.api("POST", "/v1/plan", {"spec": {"name": "x", "framework": "keras"}})
    masked = {c["strategy"]: c["reason"] for c in plan["candidates"] if not c["feasible"]}
    assert "not cut into stages" in masked["pipeline_parallel"]
    status, answer = await machine.ask("POST", "/v1/plan", {"spec": {"name": "x", "model": {"source": "sklearn:SVM"}}})
    assert status == 400
    assert "There is no estimator sklearn:SVM" in answer["error"]["message"]


@pytest.mark.parametrize("name", RIGHT)
def test_job_files_are_valid(name: str) -> None:
    assert read_job(JOBS / f"{name}.toml").name == name
