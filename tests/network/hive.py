"""What the network tests look at: coordinators, epochs, jobs and models as every member sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.cluster.machines import form_hive, settled
from tests.network.lan import Lan, NetworkMachine


async def three(lan: Lan, root: Path) -> list[NetworkMachine]:
    """A hive of all hosts, discovery off."""
    machines = [lan.machine(root, name) for name in lan.hosts]
    await form_hive(machines)
    await agreed(machines)
    return machines


async def agreed(machines: Sequence[NetworkMachine], seconds: float = 60.0) -> tuple[str, int]:
    """Wait until all are alive in each other's eyes, linked, and follow one epoch: its node's name and counter."""

    def together(status: Any) -> bool:
        return settled(status, len(machines)) and all(member["linked"] for member in status["members"])

    async with asyncio.timeout(seconds):
        while True:
            statuses = [await machine.until("/v1/status", together, seconds) for machine in machines]
            if len({(status["coordinator"], status["epoch"]) for status in statuses}) == 1:
                return coordinator(statuses[0]), counter(statuses[0])
            await asyncio.sleep(0.1)


def coordinator(status: Any) -> str:
    return next((member["name"] for member in status["members"] if member["coordinator"]), "")


def counter(status: Any) -> int:
    return int(status["epoch"].split(".")[0])


def job(epochs: int, **placement: object) -> dict[str, Any]:
    """`POST /v1/jobs`: digits, about 23 steps an epoch."""
    return {
        "spec": {
            "name": "digits",
            "training": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.1, "checkpoint_every_steps": 20},
            "placement": placement,
        }
    }


async def submit(machine: NetworkMachine, epochs: int, **placement: object) -> str:
    """Returns the path of the job."""
    answer = await machine.api("POST", "/v1/jobs", job(epochs, **placement))
    return f"/v1/jobs/{answer['summary']['job']}"


async def training(machine: NetworkMachine, path: str, step: int) -> None:
    await machine.until(path, lambda d: d["summary"]["state"] == "running" and d["summary"]["step"] >= step)


async def finished(machine: NetworkMachine, path: str) -> Any:
    return await machine.until(path, lambda d: d["summary"]["state"] == "finished", 90)


def ending(detail: Any) -> dict[str, Any]:
    """What the ledger says of a job: the same on every node."""
    kept = ("state", "attempt", "submitted_at", "ended_at", "model", "accuracy", "loss", "error")
    return {
        "summary": {key: detail["summary"][key] for key in kept},
        "attempts": detail["attempts"],
    }


def model_list(models: Any) -> list[tuple[Any, ...]]:
    return [(m["name"], m["version"], m["job"], tuple(m["blob"]), m["created_at"]) for m in models]


async def same_everywhere(machines: Sequence[NetworkMachine], path: str) -> tuple[Any, Any]:
    """Wait until every ledger says the same of the job and all list the same models; returns both."""
    async with asyncio.timeout(60):
        while True:
            endings = [ending(await finished(machine, path)) for machine in machines]
            models = [model_list(await machine.api("GET", "/v1/models")) for machine in machines]
            if all(each == endings[0] for each in endings) and all(each == models[0] for each in models):
                return endings[0], models[0]
            await asyncio.sleep(0.2)


@asynccontextmanager
async def quiet(machines: Sequence[NetworkMachine]) -> AsyncIterator[None]:
    """Nobody changes state in anybody's eyes, and nobody is elected, meanwhile."""
    marks = [len(machine.lines) for machine in machines]
    before = await agreed(machines)
    yield
    assert await agreed(machines) == before
    assert [machine.changes(mark) for machine, mark in zip(machines, marks, strict=True)] == [[] for _ in machines]
