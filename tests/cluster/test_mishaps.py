"""Real machines whose disks and memory fail a job: what is used instead, and what is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivenode.errors import Corrupted
from hivenode.planning.profile import machine_key
from hivenode.training.tensorfiles import Parts
from tests.cluster.machines import Machine, form_hive, found_hive
from tests.shortage import memory_for


def digits(model: dict[str, Any], training: dict[str, Any], **placement: object) -> dict[str, Any]:
    return {
        "spec": {
            "name": "digits",
            "model": model,
            "data": {"source": "sklearn:digits"},
            "training": {"batch_size": 64, "learning_rate": 0.05, **training},
            "placement": placement,
        }
    }


async def stop(machines: list[Machine]) -> None:
    await asyncio.gather(*(machine.stop() for machine in machines))


def checkpoints(machine: Machine) -> Iterator[tuple[int, Path]]:
    """Those on a machine's disk, by step."""
    for path in machine.home.rglob("*"):
        if re.fullmatch("[0-9a-f]{64}", path.name) and path.is_file():
            try:
                said = Parts(path).metadata
            except Corrupted:
                continue
            if "step" in said:
                yield int(said["step"]), path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 0x55
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES = (flip, shorten, Path.unlink)


@pytest.mark.parametrize(("strategy", "names", "every"), [
    ("single_node", ("ash",), 200),
    pytest.param("data_parallel", ("ash", "birch"), 100, marks=pytest.mark.slow),
    pytest.param("pipeline_parallel", ("ash", "birch", "cedar"), 50, marks=pytest.mark.slow),
])  # fmt: skip
async def test_a_damaged_checkpoint_makes_way_for_the_one_before(
    tmp_path: Path, strategy: str, names: tuple[str, ...], every: int
) -> None:
    """All are killed while none is being written, and on each the latest checkpoint is damaged in another way."""
    hive = await found_hive(tmp_path, names)
    try:
        training = {"epochs": 2000, "checkpoint_every_steps": every}
        wanted = digits({"source": "zoo:cnn"}, training, strategy=strategy, min_nodes=len(names))
        submitted = await hive[0].api("POST", "/v1/jobs", wanted)
        path = f"/v1/jobs/{submitted['summary']['job']}"
        for machine in hive:
            await machine.until(path, lambda d: (d["checkpoint_step"] or 0) >= 2 * every)
        await asyncio.gather(*(machine.kill() for machine in hive))
        found = [(step, file, n) for n, machine in enumerate(hive) for step, file in checkpoints(machine)]
        steps = sorted({step for step, _, _ in found})
        for step, file, number in found:
            if step == steps[-1]:
                DAMAGES[number](file)
        await asyncio.gather(*(machine.start() for machine in hive))
        detail = await hive[0].until(path, lambda d: len(d["attempts"]) > 1 and d["summary"]["step"] > steps[-1], 90)
        attempt = detail["attempts"][1]
        assert attempt["resume_step"] == steps[-2]
        for step, _, number in found:
            if step == steps[-1]:
                what = "gone" if DAMAGES[number] is Path.unlink else "damaged"
                assert f"the checkpoint of step {step} on {names[number]} is {what}" in attempt["cause"]
    finally:
        await stop(hive)


PACKAGE = """
from torch import nn


def tower(input_shape, outputs):
    inputs = input_shape[1] * input_shape[2]
    wide = 40_000_000 // (inputs + outputs)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, wide), nn.Linear(wide, outputs))
"""


async def test_a_worker_that_runs_out_of_memory_is_planned_for_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner takes ash for the faster one, and the model for a small one, since it says so; ash learns better."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "towers.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    room = {"ash": 700, "birch": 1600}
    hive = [
        Machine(tmp_path, name, f'memory_bytes = {room[name] << 20}\n[jobs]\nallowed_packages = ["towers"]\n')
        for name in room
    ]
    for machine, flops in zip(hive, (1e12, 1e9), strict=True):
        (machine.home / "profile.json").write_bytes(
            msgspec.json.encode({"speeds": {f"{machine_key()} / 1 threads": flops}})
        )
    try:
        await form_hive(hive)
        model = {"source": "python:towers:tower", "parameters": 1000}
        wanted = digits(model, {"epochs": 1, "max_steps": 2}, strategy="single_node")
        submitted = await hive[0].api("POST", "/v1/jobs", wanted)
        path = f"/v1/jobs/{submitted['summary']['job']}"
        detail = await hive[0].until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90)
        assert detail["summary"]["state"] == "finished", detail
        first, second = detail["attempts"]
        assert (first["nodes"], second["nodes"]) == (["ash"], ["birch"])
        assert re.search(r"ran out of memory: it held \d+ MiB.*its limit is 700 MiB", second["cause"])
        assert detail["plan"]["shares"][0]["memory_bytes"] > room["ash"] << 20
    finally:
        await stop(hive)


@pytest.mark.slow
async def test_what_nobody_has_the_memory_for_fails_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "towers.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    machine = Machine(tmp_path, "ash", f'memory_bytes = {700 << 20}\n[jobs]\nallowed_packages = ["towers"]\n')
    try:
        await machine.start()
        wanted = digits({"source": "python:towers:tower", "parameters": 1000}, {"epochs": 1})
        submitted = await machine.api("POST", "/v1/jobs", wanted)
        path = f"/v1/jobs/{submitted['summary']['job']}"
        detail = await machine.until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90)
        assert detail["summary"]["state"] == "failed"
        assert re.search(
            r"Memory ran out on ash, where \d+ MiB were planned and \d+ MiB or more are needed. .*"
            r"single_node: needs [\d.]+ GiB of memory on one node; the most is 0.68 GiB on ash",
            detail["summary"]["error"],
        )
    finally:
        await machine.stop()


async def test_a_worker_that_the_kernel_kills_is_planned_for_in_stages(tmp_path: Path) -> None:
    """By the planner's account the model fits on one node, and so it would, if that node had the memory it offers; half
    of the model does fit, but that is only known then."""
    hive = [Machine(tmp_path, name, f"memory_bytes = {800 << 20}\n") for name in ("ash", "birch")]
    for machine in hive:
        (machine.home / "profile.json").write_bytes(
            msgspec.json.encode({"speeds": {f"{machine_key()} / 1 threads": 1e13}})
        )
    try:
        await form_hive(hive)
        warm = digits({"source": "zoo:logistic"}, {"max_steps": 1}, strategy="data_parallel", min_nodes=2)
        submitted = await hive[0].api("POST", "/v1/jobs", warm)
        await hive[0].until(
            f"/v1/jobs/{submitted['summary']['job']}", lambda d: d["summary"]["state"] == "finished", 90
        )
        with ExitStack() as shortage:
            allowances = [shortage.enter_context(memory_for(machine.worker_pids, 300 << 20)) for machine in hive]
            model = {"source": "zoo:mlp", "params": {"hidden": 3464, "depth": 3}}
            training = {"epochs": 1, "max_steps": 3, "batch_size": 2, "optimizer": "adam", "learning_rate": 0.001}
            wanted = digits(model, training)
            wanted["spec"]["data"]["test_fraction"] = 0.01
            submitted = await hive[0].api("POST", "/v1/jobs", wanted)
            path = f"/v1/jobs/{submitted['summary']['job']}"
            await hive[0].until(path, lambda d: d["attempts"] and d["attempts"][0]["outcome"] == "lost", 90)
            for allow in allowances:
                allow(2 << 30)
            detail = await hive[0].until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 90)
            assert detail["summary"]["state"] == "finished", detail
            first, second = detail["attempts"]
            assert (first["strategy"], len(first["nodes"])) == ("single_node", 1)
            assert second["strategy"] in ("model_parallel", "pipeline_parallel")
            assert len(second["nodes"]) == 2
            told = r"was killed by the kernel, which had run out of memory, when it held \d+ MiB; \d+ MiB were planned"
            assert re.search(told, second["cause"])
            await stop(hive)
    finally:
        await stop(hive)
