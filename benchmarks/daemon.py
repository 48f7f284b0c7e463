"""What a daemon costs and how fast a hive reacts, measured on real daemons of this machine.

    python benchmarks/daemon.py [--json]

Prints each figure beside its target and the ratio between them (below 1 is better than the target).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cluster.machines import Machine, found_hive, settled

IDLE_SECONDS = 20.0
ROUNDS = 5


async def ready_seconds(root: Path) -> float:
    """Median time from exec to ready, of daemons whose home exists."""
    taken = []
    machine = Machine(root, "lone")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await machine.start()
        taken.append(time.perf_counter() - began)
        await machine.stop()
    return statistics.median(taken)


async def join_seconds(root: Path) -> float:
    """Median time from the start of a new machine with a token to its being a member in the founder's eyes."""
    founder = Machine(root, "founder")
    await founder.start()
    machines, taken = [founder], []
    for number in range(3):
        token = (await founder.api("POST", "/v1/invites", {"uses": 1}))["token"]
        joiner = Machine(root, f"joiner{number}")
        machines.append(joiner)
        began = time.perf_counter()
        await joiner.start("--join", token)
        await founder.until("/v1/status", lambda status, n=number: settled(status, n + 2))
        taken.append(time.perf_counter() - began)
    await asyncio.gather(*(machine.stop() for machine in machines))
    return statistics.median(taken)


async def idle(root: Path) -> tuple[float, float]:
    """Largest resident set in MB and largest share of a core in percent, of three idle members."""
    hive = await found_hive(root)
    await asyncio.sleep(5.0)  # the measurement itself: what they use once everything has settled
    processes = [psutil.Process(machine.process.pid) for machine in hive if machine.process]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    began = time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    seconds = time.perf_counter() - began
    shares = [(sum(p.cpu_times()[:2]) - b) / seconds * 100 for p, b in zip(processes, before, strict=True)]
    resident = [process.memory_info().rss / 1e6 for process in processes]
    await asyncio.gather(*(machine.stop() for machine in hive))
    return max(resident), max(shares)


async def recovery_seconds(root: Path) -> float:
    """From SIGKILL of the coordinator and its worker to the next training step of a survivor."""
    hive = await found_hive(root)
    status = await hive[0].api("GET", "/v1/status")
    name = next(member["name"] for member in status["members"] if member["coordinator"])
    victim = next(machine for machine in hive if machine.name == name)
    survivor = next(machine for machine in hive if machine is not victim)
    spec = {
        "name": "digits",
        "training": {"epochs": 200, "learning_rate": 0.1},
        "placement": {"min_nodes": 3},
    }
    job = (await survivor.api("POST", "/v1/jobs", {"spec": spec}))["summary"]["job"]
    path = f"/v1/jobs/{job}"
    detail = await survivor.until(path, lambda d: d["summary"]["step"] >= 50)
    await victim.kill()
    killed = time.perf_counter()
    reached = detail["summary"]["step"]

    def moved_on(detail: dict) -> bool:
        survivors = [w for w in detail["workers"] if w["name"] != victim.name and w["state"] == "running"]
        fewer = len(detail["attempts"][-1]["members"]) < 3
        return fewer and any(w["step"] > reached for w in survivors)

    await survivor.until(path, moved_on)
    taken = time.perf_counter() - killed
    await survivor.api("POST", f"{path}/cancel", {"reason": "measured"})
    await asyncio.gather(*(machine.stop() for machine in hive if machine is not victim))
    return taken


def help_seconds() -> float:
    """Median of `hivenode --help`, cold process."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hivenode.cli.main", "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


async def measure() -> list[tuple[str, float, float, str]]:
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        root = Path(folder)
        resident, share = await idle(root / "idle")
        return [
            ("daemon ready", await ready_seconds(root / "ready"), 1.0, "s"),
            ("idle resident set, 3 members", resident, 90.0, "MB"),
            ("idle share of a core, 3 members", share, 1.0, "%"),
            ("join to member", await join_seconds(root / "join"), 3.0, "s"),
            ("coordinator killed to next step", await recovery_seconds(root / "kill"), 8.0, "s"),
            ("hivenode --help", help_seconds(), 0.3, "s"),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = asyncio.run(measure())
    if arguments.json:
        print(json.dumps([dict(zip(("figure", "measured", "target", "unit"), row, strict=True)) for row in rows]))
        return
    for figure, measured, target, unit in rows:
        print(f"{figure:36} {measured:8.2f} {unit:3} target {target:6.2f} ratio {measured / target:5.2f}")


if __name__ == "__main__":
    main()
