"""Two workers on this machine, gradients averaged after every step: samples/s of PyTorch's DDP, of ours by the exchange
and of ours by torch.distributed.

    python benchmarks/data_parallel.py
    python benchmarks/data_parallel.py --workers 3 --steps 60 --rounds 5 --json

The same small GPT, batches, optimizer and threads as in low_bandwidth.py, over loopback: DDP over gloo in plaintext;
the exchange under TLS with fp32; torch.distributed as the engine, in plaintext. Each runs several times, in turns;
medians, and their ratios to DDP's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile

from low_bandwidth import Task, ddp, lines, ours, together


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    task = Task(options.width, options.layers, 4, options.batch, 0.001, options.steps)
    speeds: dict[str, list[float]] = {"ddp": [], "exchange": [], "engine": []}
    parameters = 0
    with lines(options.workers, "none") as places:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as directory:
                store = os.path.join(directory, "store")
                found = together(places, ddp, task, store, options.steps, meet=False)
            parameters = found.parameters
            speeds["ddp"].append(found.samples_per_second)
            for label, engine in (("exchange", "exchange"), ("engine", "torch")):
                way = {"codec": "fp32", "engine": engine}
                found = together(places, ours, task, way, -1.0, options.steps, meet=True)
                speeds[label].append(found.samples_per_second)
    medians = {label: statistics.median(taken) for label, taken in speeds.items()}
    ratios = {label: medians[label] / medians["ddp"] for label in medians if label != "ddp"}
    if options.json:
        print(json.dumps({"parameters": parameters, "samples_per_second": speeds, "ratios": ratios}))
        return
    model = f"GPT of {parameters:,} parameters, batches of {options.batch}"
    print(f"{options.workers} workers, {model}, {os.cpu_count()} cores")
    for label, taken in speeds.items():
        times = f"  {ratios[label]:.2f} of DDP" if label in ratios else ""
        spread = f"from {min(taken):.1f} to {max(taken):.1f}"
        print(f"{label:8} {medians[label]:8.1f} samples/s  ({spread}){times}")


if __name__ == "__main__":
    main()
