"""A random forest grown by two workers and put together, against scikit-learn with n_jobs=2 in one process.

    python benchmarks/forest.py                  # 400 trees on the digits
    python benchmarks/forest.py --trees 1000 --rounds 5 --json

Ours counts from the word to begin to the last worker's finished model, exchange and file included. In turns; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hivenode.data.loading import load
from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Finished
from hivenode.spec.data import DataSpec
from tests.worker.members import attempt, spec


def scikit_learn(trees: int, jobs: int) -> float:
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    data = load(DataSpec())
    inputs, labels = data.train.take(np.arange(len(data.train)))
    began = time.perf_counter()
    RandomForestClassifier(trees, n_jobs=jobs, random_state=0).fit(inputs.reshape(len(inputs), -1), labels)
    return time.perf_counter() - began


async def ours(host: ForkWorkers, trees: int, workers: int) -> float:
    job = spec("sklearn:RandomForestClassifier", params={"n_estimators": trees})
    with tempfile.TemporaryDirectory() as directory:
        members = await attempt(host, job, [1 / workers] * workers, Path(directory))
        finished = [await member.expect(Finished) for member in members]
        for member in members:
            await member.exit()
    return max(done.seconds for done in finished)


async def measure(trees: int, workers: int, rounds: int) -> dict[str, list[float]]:
    host = ForkWorkers()
    seconds: dict[str, list[float]] = {"scikit-learn": [], "ours": []}
    try:
        for number in range(rounds + 1):
            theirs, mine = scikit_learn(trees, workers), await ours(host, trees, workers)
            if number:  # the first warms up
                seconds["scikit-learn"].append(theirs)
                seconds["ours"].append(mine)
    finally:
        await host.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trees", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds = asyncio.run(measure(options.trees, options.workers, options.rounds))
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["scikit-learn"])
    if options.json:
        print(json.dumps({"seconds": seconds, "ratio": ratio}))
        return
    print(f"{options.trees} trees on the digits, {options.workers} workers, {os.cpu_count()} cores")
    for label, found in seconds.items():
        print(f"{label:13} {statistics.median(found):.2f} s  (from {min(found):.2f} to {max(found):.2f})")
    print(f"ratio         {ratio:.2f}")


if __name__ == "__main__":
    main()
