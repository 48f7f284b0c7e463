"""How far training together is from training alone: the largest difference between weights after 20 steps of SGD.

    python benchmarks/equivalence.py [--models mlp cnn ...] [--steps 20] [--json]

Real workers on this machine, the same seed: one alone, then two by data_parallel with a gradient averaged every step,
two and three stages by model_parallel with whole batches, and two by pipeline_parallel with four small batches a step.
Expected are 1e-5. A model with batch normalisation is not trained by small batches, and by data_parallel each node
normalises its own part of a batch, as with DDP: what that comes to is shown, and not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hivenode.jobs.workers import ForkWorkers
from hivenode.spec.data import DataSpec
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from tests.worker.members import attempt, difference, finish
from tests.worker.test_staged import LAYERS, staged, start

TARGET = 1e-5
BATCH, SMALL_BATCHES = 32, 4
TEXT = "sklearn:descriptions"
TRAINED = "trained"
"""How far the weights moved by training alone, between its first step and its last."""
OWN_PARTS = "data_parallel, each normalising its part"


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its data, and the layers with which the second of two stages, and the others of three, begin."""

    model: ModelSpec
    middle: int
    thirds: tuple[int, int]
    data: str = "sklearn:digits"
    layers: int = 99
    normalised: bool = False


def _bert() -> ModelSpec:
    config: dict[str, Any] = {
        "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return ModelSpec(source="hf:config", config=config)


CASES = {
    "mlp": Case(ModelSpec(source="zoo:mlp", params={"hidden": 128, "depth": 4}), 2, (2, 4)),
    "cnn": Case(ModelSpec(source="zoo:cnn"), 3, (2, 4), layers=LAYERS),
    "resnet18": Case(ModelSpec(source="zoo:resnet18", params={"width": 16}), 6, (4, 8), normalised=True),
    "gpt": Case(ModelSpec(source="zoo:gpt", params={"width": 64, "layers": 4}), 3, (2, 4), TEXT),
    "lstm": Case(ModelSpec(source="zoo:lstm", params={"width": 64}), 2, (1, 2)),
    "vit": Case(ModelSpec(source="zoo:vit", params={"width": 64, "layers": 4, "patch": 2}), 3, (2, 4)),
    "bert": Case(_bert(), 3, (2, 4), "sklearn:digit_tokens"),
}


async def measure(host: ForkWorkers, case: Case, steps: int, root: Path) -> dict[str, float]:
    """Largest differences from training alone, by strategy."""
    training = TrainingSpec(max_steps=steps, batch_size=BATCH, learning_rate=0.01, seed=1)
    job = JobSpec(name="equivalence", model=case.model, data=DataSpec(source=case.data), training=training)
    (alone,) = await finish(await attempt(host, job, [1.0], root / "alone"))
    (began,) = await finish(await attempt(host, _steps(job, 1), [1.0], root / "began"))
    cuts = {
        "model_parallel, 2 stages": ((case.middle,), 1),
        "model_parallel, 3 stages": (case.thirds, 1),
        **({} if case.normalised else {"pipeline_parallel, 2 stages": ((case.middle,), SMALL_BATCHES)}),
    }
    found = {TRAINED: difference(began.path, alone.path)}
    pair = await finish(await attempt(host, job, [0.5, 0.5], root / "pair"))
    found[OWN_PARTS if case.normalised else "data_parallel, 2 nodes"] = difference(alone.path, pair[0].path)
    for name, (firsts, small) in cuts.items():
        made = await finish(await start(host, job, staged(firsts, small, case.layers), root / name))
        found[name] = difference(alone.path, made[0].path)
    return found


def _steps(job: JobSpec, steps: int) -> JobSpec:
    return job.model_copy(update={"training": job.training.model_copy(update={"max_steps": steps})})


async def measure_all(names: list[str], steps: int) -> dict[str, dict[str, float]]:
    host = ForkWorkers()
    found = {}
    try:
        with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
            for name in names:
                found[name] = await measure(host, CASES[name], steps, Path(folder) / name)
    finally:
        await host.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure_all(options.models, options.steps))
    worst = max(value for each in found.values() for name, value in each.items() if name not in (TRAINED, OWN_PARTS))
    if options.json:
        print(json.dumps({"differences": found, "worst": worst, "target": TARGET}))
        return
    for model, each in found.items():
        print(f"{model}: weights moved by up to {each[TRAINED]:.2g} between steps 1 and {options.steps}")
        for name, value in each.items():
            if name != TRAINED:
                print(f"    {name:<41} {value:.2g}")
    print(f"worst {worst:.2g}, target {TARGET:.0e}")


if __name__ == "__main__":
    main()
