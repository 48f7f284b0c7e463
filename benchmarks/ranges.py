"""One of two workers has a quarter of a processor: samples/s by the shares of a plan that did not know, after the
ranges have moved in the same run, and in a run whose plan had the right shares from the start.

    python benchmarks/ranges.py
    python benchmarks/ranges.py --epochs 20 --json

Real workers on loopback, a small convolutional network on pictures, the gradient of every batch averaged over the
exchange. The slow one is stopped three quarters of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Log
from hivenode.spec.data import DataSpec
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from tests.worker.members import GOING, STOPPED, slowed
from tests.worker.test_jobs import Pieces
from tests.worker.test_ranges import Run

LAST = 5
"""Epochs that are measured of a run's end."""
MOVED = "From epoch "


def speeds(log: list[Log]) -> list[float]:
    """Of each epoch, samples/s of both."""
    return [float(line.fields["samples_per_second"] or 0.0) for line in log if line.event == "epoch"]


def pictures(folder: Path, epochs: int) -> JobSpec:
    random = np.random.default_rng(0)
    np.savez(folder / "a.npz", x=random.integers(0, 256, (2560, 32, 32), np.uint8), y=np.arange(2560) % 4)
    layers = [
        {"type": "conv", "outputs": 24},
        {"type": "conv", "outputs": 24},
        {"type": "average"},
        {"type": "dense"},
    ]
    return JobSpec(
        name="pictures",
        model=ModelSpec.model_validate({"source": "layers:", "layers": layers}),
        data=DataSpec(source=f"npz:{folder}/a.npz"),
        training=TrainingSpec(epochs=epochs, batch_size=256, learning_rate=0.01),
    )


async def measured(epochs: int) -> dict[str, float]:
    found: dict[str, float] = {}
    host = ForkWorkers()
    try:
        with tempfile.TemporaryDirectory() as folder:
            pieces = Pieces(pictures(Path(folder), epochs), Path(folder, "pieces"))
            for name, weights in (("moved", [0.5, 0.5]), ("right from the start", [1.0, GOING / (GOING + STOPPED)])):
                run = Run(pieces)
                await run.start(host, weights, Path(folder, name))
                with slowed(run.ready[1].pid):
                    await run.finish()
                log = run.members[0].all(Log)
                if name == "moved":
                    first = next(line.event for line in log if line.event.startswith(MOVED))
                    before = int(first.removeprefix(MOVED).partition(" ")[0]) - 1
                    found["as planned"] = statistics.median(speeds(log)[:before])
                found[name] = statistics.median(speeds(log)[-LAST:])
    finally:
        await host.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measured(options.epochs))
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in found.items():
        print(f"{name:22} {rate:8.0f} samples/s, {rate / found['as planned']:.2f} times as planned")


if __name__ == "__main__":
    main()
