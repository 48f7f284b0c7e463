"""The memory that each stage of a model takes, beside what the plan says is its share, and the whole model on one node.

    python benchmarks/stage_memory.py [--stages 1 2 3] [--models mlp gpt gpt2 cnn resnet18 lstm] [--json]

Real daemons, one worker each. Measured is the most anonymous memory that a worker has at any time of a job, checkpoints
and evaluation included, sampled every few milliseconds (RssAnon, proc(5)), over what a worker has in the same place of
the same job with a model of next to nothing: the framework, and what is imported to cut a model. The plan's share is
what it expects of weights, gradients, optimizer, activations and data of that stage, besides what it allows every
worker to begin with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hivenode.planning.cost import Costs
from tests.cluster.machines import Machine, found_hive

TARGET = 1.2
LEAST_BYTES = 32 << 20
"""A smaller share is not judged by the target: a few MiB of libraries and messages are more than that of it."""
SAMPLE_SECONDS = 0.004
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {
        "model": {"source": "zoo:mlp", "params": {"hidden": 2048, "depth": 7}},
        "training": {"batch_size": 64},
    },
    "gpt": {
        "model": {"source": "zoo:gpt", "params": {"width": 384, "layers": 8, "heads": 6}},
        "data": {"source": "sklearn:descriptions", "length": 64},
        "training": {"batch_size": 32},
    },
    "gpt2": {
        "model": {
            "source": "hf:config",
            "config": {"model_type": "gpt2", "n_embd": 384, "n_layer": 8, "n_head": 6, "n_positions": 64},
        },
        "data": {"source": "sklearn:descriptions", "length": 64},
        "training": {"batch_size": 32},
    },
    "cnn": {
        "model": {"source": "zoo:cnn", "params": {"channels": 512, "hidden": 2048, "blocks": 3}},
        "training": {"batch_size": 64},
    },
    "resnet18": {"model": {"source": "zoo:resnet18"}, "training": {"batch_size": 32}},
    "lstm": {"model": {"source": "zoo:lstm", "params": {"width": 1024, "layers": 2}}, "training": {"batch_size": 32}},
}
TINY: dict[str, dict[str, int]] = {
    "mlp": {"hidden": 8},
    "gpt": {"width": 6},
    "gpt2": {"n_embd": 6},
    "cnn": {"channels": 4, "hidden": 8},
    "resnet18": {"width": 4},
    "lstm": {"width": 8},
}
WHOLE_BATCHES = ("resnet18",)
"""With batch normalisation, so by model_parallel."""


def job(name: str, stages: int, *, tiny: bool = False) -> dict[str, Any]:
    parts = MODELS[name]
    if tiny:
        model = parts["model"]
        given = "config" if "config" in model else "params"
        parts = {**parts, "model": {**model, given: {**model.get(given, {}), **TINY[name]}}}
    training = {"epochs": 1, "max_steps": 4, "checkpoint_every_steps": 2, "optimizer": "adam", "learning_rate": 0.001}
    divided = "model_parallel" if name in WHOLE_BATCHES else "pipeline_parallel"
    strategy = "single_node" if stages == 1 else divided
    return {
        **parts,
        "name": name,
        "data": {"test_fraction": 0.05, **parts.get("data", {})},
        "training": {**training, **parts["training"]},
        "placement": {"strategy": strategy, "min_nodes": stages, "max_nodes": stages},
    }


def anonymous(pid: int) -> int:
    """Bytes; 0 where the process is gone."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Sampler:
    """The most that a worker of each machine has over its server, until stopped."""

    def __init__(self, machines: list[Machine]) -> None:
        self.most = dict.fromkeys((machine.name for machine in machines), 0)
        self._daemons = {machine.name: machine.process.pid for machine in machines if machine.process is not None}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for name, daemon in self._daemons.items():
                for server in children(daemon):
                    for worker in children(server):
                        self.most[name] = max(self.most[name], anonymous(worker) - anonymous(server))

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return self.most


async def peaks(hive: list[Machine], spec: dict[str, Any]) -> tuple[Any, list[tuple[dict[str, Any], int]]]:
    """The job's end, and by stage its share of the plan and the most that its worker took over its server."""
    ids = {(await machine.api("GET", "/v1/status"))["node"]: machine.name for machine in hive}
    sampler = Sampler(hive)
    try:
        detail = await finished(hive[0], spec)
    finally:
        most = await asyncio.to_thread(sampler.stop)
    shares = sorted(detail["plan"]["shares"], key=lambda share: int(share["rank"]))
    return detail, [(share, most[ids[share["node"]]]) for share in shares]


async def finished(machine: Machine, spec: dict[str, Any]) -> Any:
    submitted = await machine.api("POST", "/v1/jobs", {"spec": spec})
    path = f"/v1/jobs/{submitted['summary']['job']}"
    detail = await machine.until(path, lambda d: d["summary"]["state"] in ("finished", "failed"), 200)
    assert detail["summary"]["state"] == "finished", detail["summary"]
    return detail


async def measure(models: list[str], counts: list[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        names = ("ash", "birch", "cedar", "dogwood")[: max(counts)]
        hive = await found_hive(Path(folder), names, f"memory_bytes = {6 << 30}\n")
        try:
            for name in models:
                for stages in counts:
                    _, idle = await peaks(hive, job(name, stages, tiny=True))
                    detail, whole = await peaks(hive, job(name, stages))
                    for (_, before), (share, most) in zip(idle, whole, strict=True):
                        planned, taken = share["memory_bytes"] - Costs().base_memory_bytes, most - before
                        found.append(
                            {
                                "model": name,
                                "stages": stages,
                                "stage": share["rank"],
                                "small_batches": detail["plan"]["micro_batches"],
                                "layers": share["layer_range"],
                                "idle_bytes": before,
                                "planned_bytes": planned,
                                "taken_bytes": taken,
                                "ratio": taken / planned,
                            }
                        )
        finally:
            await asyncio.gather(*(machine.stop() for machine in hive))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3], help="1: the whole model too")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.models, options.stages))
    if options.json:
        print(json.dumps(found))
        return
    print("model     stages  stage  layers    planned     taken  taken/planned  taken/whole model's")
    for each in found:
        whole = [other["taken_bytes"] for other in found if other["model"] == each["model"] and other["stages"] == 1]
        part = f"{each['taken_bytes'] / whole[0]:.2f}" if whole else ""
        span = "all" if each["layers"] is None else "{}-{}".format(each["layers"][0], each["layers"][1] - 1)
        print(
            f"{each['model']:<9} {each['stages']:>6} {each['stage']:>6}  {span:<6} "
            f"{each['planned_bytes'] / 2**20:6.0f} MiB {each['taken_bytes'] / 2**20:6.0f} MiB "
            f"{each['ratio']:>13.2f}  {part:>19}"
        )
    judged = [each["ratio"] for each in found if each["stages"] > 1 and each["planned_bytes"] >= LEAST_BYTES]
    if judged:
        print(f"worst stage {max(judged):.2f}, target {TARGET}")


if __name__ == "__main__":
    main()
