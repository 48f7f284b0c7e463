"""What a daemon's memory does while its worker averages and keeps vectors of two very different lengths.

    python benchmarks/daemon_rss.py [--nodes 2] [--json]

Real daemons on loopback train a network by all of them, with a checkpoint every second step, so that the state goes
through each daemon's blob store and over its bulk connections. Counted is the daemon's process alone, not the
workers', from before the job until every daemon holds the model: the kernel's own high-water mark of the resident set
(VmHWM). Each size has daemons of its own, which have done a small job before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.machines import Machine, found_hive

HIDDEN = (2000, 5700)
"""Width of three layers: 8 and 65 million parameters."""
SMALL = 64
STEPS = 8


def resident(pid: int, kind: str) -> float:
    """`VmRSS`, or since `forget` at most, `VmHWM`; MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind + ":")).split()[1]) * 1024 / 1e6


def forget(pid: int) -> None:
    """The high-water mark begins anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def train(machines: list[Machine], name: str, hidden: int) -> None:
    """Until all hold the model."""
    spec = {
        "name": name,
        "model": {"source": "zoo:mlp", "params": {"hidden": hidden, "depth": 3}},
        "data": {"source": "sklearn:digits"},
        "training": {"epochs": 1, "max_steps": STEPS, "batch_size": 64, "checkpoint_every_steps": 2},
        "placement": {"strategy": "data_parallel", "min_nodes": len(machines)},
    }
    job = (await machines[0].api("POST", "/v1/jobs", {"spec": spec}))["summary"]["job"]
    path = f"/v1/jobs/{job}"
    detail: dict[str, Any] = await machines[0].until(
        path, lambda found: found["summary"]["state"] in ("finished", "failed"), 150.0
    )
    assert detail["summary"]["state"] == "finished", detail["summary"]
    members = [len(attempt["members"]) for attempt in detail["attempts"]]
    assert members[-1] == len(machines), (
        f"{name} was not trained by all to the end ({members}): members of each attempt"
    )
    for machine in machines:
        await machine.until("/v1/models", lambda models: any(m["name"] == name and m["here"] for m in models))


async def measure(nodes: int, hidden: int) -> list[dict[str, float]]:
    """By daemon, MB."""
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        machines = await found_hive(Path(folder), tuple(f"node{number}" for number in range(nodes)))
        try:
            await train(machines, "small", SMALL)
            pids = [machine.process.pid for machine in machines if machine.process is not None]
            before = [resident(pid, "VmRSS") for pid in pids]
            for pid in pids:
                forget(pid)
            await train(machines, "large", hidden)
            after = [(resident(pid, "VmHWM"), resident(pid, "VmRSS")) for pid in pids]
        finally:
            await asyncio.gather(*(machine.stop() for machine in machines))
    return [{"before": start, "peak": peak, "after": end} for start, (peak, end) in zip(before, after, strict=True)]


def vector(hidden: int) -> float:
    """Megabytes of three layers of that width between the 64 pixels and ten classes."""
    return 4 * (64 * hidden + 2 * hidden**2 + 10 * hidden + 3 * hidden + 10) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {vector(hidden): asyncio.run(measure(options.nodes, hidden)) for hidden in HIDDEN}
    if options.json:
        print(json.dumps([{"vector": megabytes, "daemons": row} for megabytes, row in rows.items()]))
        return
    grown = []
    for megabytes, row in rows.items():
        grown.append(max(daemon["peak"] - daemon["before"] for daemon in row))
        each = "  ".join(f"{one['before']:.1f} -> {one['peak']:.1f} -> {one['after']:.1f}" for one in row)
        print(f"vector {megabytes:6.1f} MB: before, peak, after of each daemon (MB): {each}; at most {grown[-1]:+.1f}")
    more, beyond = max(rows) - min(rows), grown[-1] - grown[0]
    print(f"{more:.0f} MB more of a vector, {beyond:+.1f} MB more of a daemon: {beyond / more:.3f} of it")


if __name__ == "__main__":
    main()
