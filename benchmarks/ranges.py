"""One of two workers has a quarter of a processor: samples/s while ranges stay as planned, once they have moved, and
with the shares that would have been right from the start.

    python benchmarks/ranges.py
    python benchmarks/ranges.py --epochs 30 --json

Real workers on loopback, a CNN on digits, steps of a tenth of a second, a step for every batch. The slow one is stopped
three quarters of the time. Where every worker holds all data nothing moves between steps of every batch: that is what
stays as planned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Log, Ready
from tests.worker.members import GOING, STOPPED, attempt, finish, slowed, spec
from tests.worker.test_jobs import Pieces
from tests.worker.test_ranges import Run

LAST = 5
"""Epochs that are measured."""


def speed(log: list[Log]) -> float:
    """Median of the last epochs, samples/s of both."""
    told = [float(line.fields["samples_per_second"] or 0.0) for line in log if line.event == "epoch"]
    return statistics.median(told[-LAST:])


async def measured(epochs: int) -> dict[str, float]:
    job = spec(params={"channels": 96}, epochs=epochs, batch_size=512, learning_rate=0.02)
    right = [1.0, GOING / (GOING + STOPPED)]
    found: dict[str, float] = {}
    host = ForkWorkers()
    try:
        with tempfile.TemporaryDirectory() as folder:
            pieces = Pieces(job, Path(folder, "pieces"))
            members = await attempt(host, job, [0.5, 0.5], Path(folder, "stay"))
            with slowed((await members[1].expect(Ready)).pid):
                await finish(members)
            found["as planned"] = speed(members[0].all(Log))
            for name, weights in (("moved", [0.5, 0.5]), ("right from the start", right)):
                run = Run(pieces)
                await run.start(host, weights, Path(folder, name))
                with slowed(run.ready[1].pid):
                    await run.finish()
                found[name] = speed(run.members[0].all(Log))
    finally:
        await host.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measured(options.epochs))
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in found.items():
        print(f"{name:22} {rate:8.0f} samples/s, {rate / found['as planned']:.2f} of what it is as planned")


if __name__ == "__main__":
    main()
