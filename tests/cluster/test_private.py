"""Data that several nodes have some of, each its own: those train together, and no sample leaves where it lies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, form_hive, free_port
from tests.cluster.test_declared import finished, pieces

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
