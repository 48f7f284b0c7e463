"""Estimators of scikit-learn fitted by two daemons, from the job file to the model in the catalogue, beside a fit of
the whole in one process."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, ExtraTreesClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from hivenode.data.reading import read
from hivenode.spec.data import DataSpec
from tests.cluster.machines import Machine, found_hive

JOBS = Path(__file__).parents[2] / "configs" / "jobs"
OVER_TWO = '[placement]\nstrategy = "{strategy}"\nmin_nodes = 2\n'

NAIVE = """
name = "naive"
[model]
source = "sklearn:GaussianNB"
params = { var_smoothing = 0.01 }
[training]
epochs = 1
batch_size = 2000
"""
BAGGED = """
name = "bagged"
[model]
source = "sklearn:BaggingClassifier"
params = { n_estimators = 40 }
estimators = [{ estimator = "DecisionTreeClassifier", max_depth = 8 }]
"""


FOREST = """
name = "forest"
[model]
source = "sklearn:RandomForestClassifier"
params = { n_estimators = 4000 }
[training]
learning_rate = 0.05
"""


def rows_of(part: str) -> tuple[Any, Any]:
    data = read(DataSpec())
    samples = getattr(data, part)
    inputs, labels = samples.take(np.arange(len(samples)))
    return inputs.reshape(len(inputs), -1), labels


def voting() -> Any:
    return VotingClassifier(
        [
            ("a", LogisticRegression(max_iter=300)),
            ("b", ExtraTreesClassifier(n_estimators=100, random_state=0)),
            ("c", GaussianNB(var_smoothing=0.01)),
        ],
        voting="soft",
    )


def pipeline() -> Any:
    return make_pipeline(StandardScaler(), PCA(n_components=30, random_state=0), LogisticRegression(max_iter=300))


def bagging() -> Any:
    return BaggingClassifier(DecisionTreeClassifier(max_depth=8, random_state=0), n_estimators=40, random_state=0)


async def submitted(machine: Machine, job: str, file: Path) -> dict[str, Any]:
    """By the command line, waited for; what it says in the end."""
    file.write_text(job)
    process = await asyncio.create_subprocess_exec(
        *machine.command(), "--home", str(machine.home), "submit", str(file), "--wait", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return dict(json.loads(out))


def ready(name: str, strategy: str) -> str:
    head = (JOBS / f"{name}.toml").read_text().partition("[placement]")[0]
    return head + OVER_TWO.format(strategy=strategy)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("job", "made", "least"), [
    (ready("digits_ensemble", "model_parallel"), voting, 1.0),
    pytest.param(NAIVE + OVER_TWO.format(strategy="data_parallel"), lambda: GaussianNB(var_smoothing=0.01), 0.99,
                 marks=pytest.mark.slow),
    pytest.param(BAGGED + OVER_TWO.format(strategy="model_parallel"), bagging, 1.0, marks=pytest.mark.slow),
    pytest.param((JOBS / "digits_pipeline.toml").read_text(), pipeline, 0.99, marks=pytest.mark.slow),
], ids=["voting", "naive", "bagging", "pipeline"])  # fmt: skip
async def test_what_two_nodes_fit_is_what_one_process_fits(
    tmp_path: Path, job: str, made: Callable[[], Any], least: float
) -> None:
    hive = await found_hive(tmp_path, ("ash", "birch"))
    try:
        detail = await submitted(hive[0], job, tmp_path / "job.toml")
        if "min_nodes" in job:
            assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch"]
        train, test = rows_of("train"), rows_of("test")
        whole = made().fit(*train)
        assert detail["summary"]["accuracy"] == pytest.approx(whole.score(*test), abs=1.5 / len(test[0]))
        name, _, version = detail["summary"]["model"].partition(":")
        await hive[1].until("/v1/models", lambda models: any(m["name"] == name and m["here"] for m in models))
        answer = await hive[1].api("POST", f"/v1/models/{name}/predict", {"inputs": test[0].tolist()})
        said = [int(answer["labels"][int(np.argmax(row))]) for row in answer["outputs"]]
        assert version == "1"
        assert np.mean(np.array(said) == whole.predict(test[0])) >= least
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_clusters_that_two_nodes_find_are_as_close_as_those_of_one_process(tmp_path: Path) -> None:
    hive = await found_hive(tmp_path, ("ash", "birch"))
    try:
        detail = await submitted(hive[0], ready("digits_clusters", "data_parallel"), tmp_path / "job.toml")
        assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch"]
        (train, _), (test, _) = rows_of("train"), rows_of("test")
        whole = MiniBatchKMeans(n_clusters=10, random_state=0, batch_size=128, n_init=3).fit(train)
        answer = await hive[1].api("POST", "/v1/models/digits_clusters/predict", {"inputs": test.tolist()})
        cluster = np.argmax(answer["outputs"], axis=1)

        def spread(found: np.ndarray) -> float:
            """Mean squared distance to the middle of one's cluster."""
            middles = {n: test[found == n].mean(axis=0) for n in np.unique(found)}
            return float(np.mean([np.sum((row - middles[n]) ** 2) for row, n in zip(test, found, strict=True)]))

        assert spread(cluster) <= 1.1 * spread(whole.predict(test))
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_forest_grows_on_after_all_were_killed(tmp_path: Path) -> None:
    hive = await found_hive(tmp_path, ("ash", "birch"))
    try:
        spec = tomllib.loads(FOREST + OVER_TWO.format(strategy="data_parallel"))
        job = await hive[0].api("POST", "/v1/jobs", {"spec": spec})
        assert job["unused"].startswith("RandomForestClassifier takes no notice of training.learning_rate;")
        path = f"/v1/jobs/{job['summary']['job']}"
        for machine in hive:
            await machine.until(path, lambda d: (d["checkpoint_step"] or 0) > 0, 90)
        await asyncio.gather(*(machine.kill() for machine in hive))
        await asyncio.gather(*(machine.start() for machine in hive))
        detail = await hive[0].until(path, lambda d: d["summary"]["state"] == "finished", 120)
        assert 0 < detail["attempts"][1]["resume_step"] < 400
        whole = RandomForestClassifier(n_estimators=400, random_state=0).fit(*rows_of("train"))
        assert detail["summary"]["accuracy"] == pytest.approx(whole.score(*rows_of("test")), abs=0.02)
        lines = (await hive[0].api("GET", path + "/logs"))["lines"]
        resumed = detail["attempts"][1]["resume_step"]
        assert any(line["event"].startswith(f"{resumed} of 400 units come from a checkpoint") for line in lines)
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))
