"""Each ready job of configs/jobs, whole, as a person would run it: `hivenode up`, `hivenode submit FILE --wait`.

    python benchmarks/ready_jobs.py                        # all of them, on one daemon with the default settings
    python benchmarks/ready_jobs.py vit t5 --json          # some
    python benchmarks/ready_jobs.py --nodes 3 --memory 600 wide_mlp    # a model that fits on none of three nodes

Seconds are by the clock from the start of the command to its end, that of the command line (half a second), of a
framework that no job has used before, planning, checkpoints and the catalogue included; the bar is a minute. Where
`--memory` (MiB a worker) is given, each job is first asked for on one node, and what is said to that is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hivenode.cli.jobs import located
from hivenode.spec.job import read_job
from tests.cluster.machines import Machine, form_hive, free_port

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "jobs"
JOBS = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
BAR_SECONDS = 60.0
SETTINGS = """
[node]
name = "{name}"
[network]
listen = "127.0.0.1"
port = {port}
discovery = false
[admin]
port = 0
[worker]
memory_bytes = {memory}
"""


def machines(root: Path, count: int, memory: int) -> list[Machine]:
    """Homes with the default settings but for ports, and `memory` bytes a worker (0: the default)."""
    made = [Machine(root, f"node{number + 1}") for number in range(count)]
    for machine in made:
        settings = SETTINGS.format(name=machine.name, port=free_port(), memory=memory)
        (machine.home / "hivenode.toml").write_text(settings)
    return made


async def refusal(machine: Machine, path: Path) -> str:
    """What is said to the job on one node; "" if it would run."""
    spec = located(read_job(path), path.parent).model_dump(mode="json", exclude_unset=True)
    spec["placement"] = {"strategy": "single_node"}
    status, answer = await machine.ask("POST", "/v1/plan", {"spec": spec})
    return answer["error"]["message"] if status >= 400 else ""


async def ran(machine: Machine, path: Path) -> dict[str, Any]:
    """One job, from the command to its end. Raises RuntimeError with what the command said when it failed."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *machine.command(), "--home", str(machine.home), "submit", str(path), "--wait", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, said = await process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"{path.name}: {said.decode()[-2000:]}")
    detail = json.loads(told)
    summary, attempt = detail["summary"], detail["attempts"][-1]
    return {
        "job": path.stem,
        "strategy": attempt["strategy"],
        "nodes": len(attempt["nodes"]),
        "seconds": seconds,
        "ratio": seconds / BAR_SECONDS,
        "steps": summary["step"],
        "loss": summary["loss"],
        "accuracy": summary["accuracy"],
    }


async def measure(paths: list[Path], nodes: int, memory: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        hive = machines(Path(folder), nodes, memory)
        try:
            await form_hive(hive)
            for path in paths:
                alone = await refusal(hive[0], path) if memory else ""
                found.append(await ran(hive[0], path) | ({"single_node": alone} if memory else {}))
                print(line(found[-1]), file=sys.stderr, flush=True)
        finally:
            await asyncio.gather(*(machine.stop() for machine in hive))
    return found


def line(row: dict[str, Any]) -> str:
    accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    return (
        f"| {row['job']} | {row['strategy']}, {row['nodes']} | {row['seconds']:.1f} s | {row['steps']} | "
        f"{row['loss']:.3f} | {accuracy} | {row['ratio']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="names of files in configs/jobs; all of them if none")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--memory", type=int, default=0, metavar="MIB", help="that a worker may take")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := [name for name in options.jobs if name not in JOBS]:
        parser.error(f"there is no job {', '.join(unknown)}; there are {', '.join(JOBS)}")
    paths = [JOBS[name] for name in options.jobs or JOBS]
    found = asyncio.run(measure(paths, options.nodes, options.memory << 20))
    if options.json:
        print(json.dumps(found))
        return
    print("| job | strategy, nodes | submission to end | steps | loss | accuracy | of a minute |\n" + "|---" * 7 + "|")
    for row in found:
        print(line(row))
        if row.get("single_node"):
            print(f"on one node: {row['single_node']}")


if __name__ == "__main__":
    main()
