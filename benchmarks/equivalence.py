"""How far training together is from training alone: the largest difference between weights after 20 steps of SGD.

    python benchmarks/equivalence.py [--models mlp cnn ...] [--steps 20] [--json]

Real workers on this machine, the same seed: one alone, then two by data_parallel with a gradient averaged every step,
two and three stages by model_parallel with whole batches, and two by pipeline_parallel with four small batches a step.
Expected are 1e-5. A model with batch normalisation is not trained by small batches. At ResNet's edges (ReLU) a rounding
error grows a thousandfold within ten steps: what rounding every first weight up or down by chance comes to by itself,
on one machine, is measured beside it (the largest of five draws), and its data_parallel is held against that.
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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hivenode.data.loading import load
from hivenode.data.partition import Batches
from hivenode.jobs.workers import ForkWorkers
from hivenode.models.declared import layers_of
from hivenode.spec.data import DataSpec
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.torch_framework import TorchModel, from_layers
from tests.worker.members import attempt, difference, finish
from tests.worker.test_data_parallel import SMOOTH
from tests.worker.test_staged import LAYERS, staged, start

TARGET = 1e-5
BATCH, SMALL_BATCHES = 32, 4
TEXT = "sklearn:descriptions"
TRAINED = "trained"
"""How far the weights moved by training alone, between its first step and its last."""
STEEP, ROUNDED, DRAWS = "data_parallel, 2 nodes (grown)", "one node, its first weights rounded otherwise", 5


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its data, and the layers with which the second of two stages, and the others of three, begin."""

    model: ModelSpec
    middle: int
    thirds: tuple[int, int]
    data: str = "sklearn:digits"
    layers: int = 99
    normalised: bool = False
    steep: bool = False
    """Rounding errors grow in it."""


def _bert() -> ModelSpec:
    config: dict[str, Any] = {
        "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return ModelSpec(source="hf:config", config=config)


CASES = {
    "mlp": Case(ModelSpec(source="zoo:mlp", params={"hidden": 128, "depth": 4}), 2, (2, 4)),
    "cnn": Case(ModelSpec(source="zoo:cnn"), 3, (2, 4), layers=LAYERS),
    "batch_norm": Case(ModelSpec(source="layers:", layers=SMOOTH), 2, (1, 3), normalised=True),
    "resnet18": Case(ModelSpec(source="zoo:resnet18", params={"width": 16}), 6, (4, 8), normalised=True, steep=True),
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
    found[STEEP if case.steep else "data_parallel, 2 nodes"] = difference(alone.path, pair[0].path)
    if case.steep:
        found[ROUNDED] = max(rounded(job, draw) for draw in range(DRAWS))
    for name, (firsts, small) in cuts.items():
        made = await finish(await start(host, job, staged(firsts, small, case.layers), root / name))
        found[name] = difference(alone.path, made[0].path)
    return found


def rounded(job: JobSpec, draw: int) -> float:
    """How far training alone comes from itself, statistics included, if every first weight is rounded up or down."""
    data = load(job.data)
    layers = layers_of(job.model, data.info)
    assert layers is not None
    spec, made = job.training, []
    batches = Batches(len(data.train), spec.batch_size, spec.seed)
    for by in (0.0, np.finfo(np.float32).eps):
        built = from_layers(layers, spec.seed)
        signs = np.random.default_rng(draw).choice((-1.0, 1.0), built.start.size)
        weights, gradient = (built.start * (1.0 + by * signs)).astype(np.float32), np.zeros_like(built.start)
        model = TorchModel(built, data.info.task, weights, built.buffers.copy(), gradient, 1)
        for step in range(spec.max_steps or 0):
            model.backward(*data.train.take(batches.of_step(batches.order(step // batches.steps_per_epoch), step)))
            weights -= np.float32(spec.learning_rate) * gradient
        made.append(np.concatenate([weights, model.buffers]))
    return float(np.abs(made[0] - made[1]).max())


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
    worst = max(
        value for each in found.values() for name, value in each.items() if name not in (TRAINED, STEEP, ROUNDED)
    )
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
