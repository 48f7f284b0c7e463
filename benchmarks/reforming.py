"""One of three workers is killed in mid-step: seconds until the others average again, by each engine.

    python benchmarks/reforming.py
    python benchmarks/reforming.py --times 5 --json

Real workers on loopback, a small GPT. From SIGKILL to the survivors' word that they go on without it: by the exchange,
once they have agreed on who is left; by torch.distributed, once their new processes have met over gloo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Log, ViewChanged, WorkerProgress
from hivenode.spec.values import Engine
from tests.worker.members import attempt, spec


async def measure(host: ForkWorkers, engine: Engine, directory: Path) -> float:
    job = spec(
        model="zoo:gpt", source="sklearn:descriptions", params={"width": 128, "layers": 2}, epochs=1000, batch_size=24
    )
    members = await attempt(host, job, [0.4, 0.3, 0.3], directory, engine=engine)
    await members[0].expect(WorkerProgress, 2)
    heard = len(members[0].all(Log))
    began = time.monotonic()
    members[2].handle.kill()
    if engine is Engine.torch:
        while (await members[0].expect(Log, heard + 1)).event != "averaging by torch.distributed":
            heard += 1
    else:
        await members[0].expect(ViewChanged)
    seconds = time.monotonic() - began
    for member in members:
        member.handle.kill()
        await member.exit()
    return seconds


async def measured(times: int) -> dict[str, list[float]]:
    host = ForkWorkers()
    found: dict[str, list[float]] = {}
    try:
        for engine in (Engine.exchange, Engine.torch):
            with tempfile.TemporaryDirectory() as directory:
                found[engine.value] = [
                    await measure(host, engine, Path(directory) / str(number)) for number in range(times)
                ]
    finally:
        await host.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measured(options.times))
    if options.json:
        print(json.dumps(found))
        return
    for engine, seconds in found.items():
        print(f"{engine:8} {statistics.median(seconds):6.2f} s  (from {min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
