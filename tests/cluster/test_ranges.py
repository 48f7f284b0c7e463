"""Ranges of shared data over real daemons: they move from a node that is slow, and to one that is back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.cluster.machines import Machine, found_hive
from tests.worker.members import slowed


def share_of(detail: Any, name: str) -> float:
    return next((w["share"] or 0.0 for w in detail["workers"] if w["name"] == name and w["state"] == "running"), 0.0)


def trainer(machine: Machine) -> int:
    """Its worker that trains."""
    return next(pid for pid in machine.worker_pids if psutil.Process(pid).name() == "hive-train")


@pytest.mark.slow
@pytest.mark.timeout(230)
async def test_ranges_move_from_a_slow_node_and_to_one_that_is_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=random.integers(0, 256, (1500, 16, 16), np.uint8), y=np.arange(1500) % 4)
    hive = await found_hive(tmp_path, ("ash", "birch"), "[jobs]\ncopies = 1\n")
    ash, birch = hive
    try:
        spec = {
            "name": "pictures",
            "model": {"source": "zoo:cnn", "params": {"channels": 24}},
            "data": {"source": f"npz:{tmp_path}/a.npz"},
            "training": {"epochs": 5000, "batch_size": 128, "learning_rate": 0.01},
            "placement": {"strategy": "data_parallel", "min_nodes": 2},
        }
        path = f"/v1/jobs/{(await ash.api('POST', '/v1/jobs', {'spec': spec}))['summary']['job']}"
        await ash.until(
            path, lambda d: share_of(d, "ash") > 0 and share_of(d, "birch") > 0 and d["summary"]["step"] > 5
        )
        with slowed(trainer(birch)):
            detail = await ash.until(path, lambda d: 0 < share_of(d, "birch") < 0.4, 90)
        assert share_of(detail, "ash") > 0.5
        lines = (await ash.api("GET", f"{path}/logs"))["lines"]
        told = [line["event"] for line in lines if line["node"] == "birch" and "this node trains on" in line["event"]]
        assert "times as long as it will" in told[0]
        await ash.until(path, lambda d: share_of(d, "birch") > 0.4, 90)  # when it is fast again

        await birch.kill()
        await ash.until(path, lambda d: d["attempts"][0]["members"] == ["ash"])
        await birch.start()
        detail = await ash.until(path, lambda d: share_of(d, "birch") > 0.2, 90)
        assert len(detail["attempts"]) == 1
        assert sorted(detail["attempts"][0]["members"]) == ["ash", "birch"]
        await ash.api("POST", f"{path}/cancel", {})
    finally:
        await asyncio.gather(*(machine.stop() for machine in hive))
