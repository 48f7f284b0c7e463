"""Two workers on this machine, gradients averaged after every step: samples/s over our exchange against PyTorch's DDP.

    python benchmarks/data_parallel.py
    python benchmarks/data_parallel.py --workers 3 --steps 60 --rounds 5 --json

The same small GPT, batches, optimizer and threads as in low_bandwidth.py, over loopback: ours under TLS with fp32, DDP
over gloo in plaintext. Each runs several times, in turns; medians, and the ratio of the medians.
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
    task = Task(options.width, options.layers, options.batch, 0.001, options.steps)
    speeds: dict[str, list[float]] = {"ddp": [], "ours": []}
    parameters = 0
    with lines(options.workers, "none") as places:
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as directory:
                store = os.path.join(directory, "store")
                course, samples, parameters = together(places, ddp, task, store, options.steps, meet=False)
            speeds["ddp"].append(samples / course[-1][0])
            course, samples, _ = together(places, ours, task, {"codec": "fp32"}, -1.0, options.steps, meet=True)
            speeds["ours"].append(samples / course[-1][0])
    medians = {label: statistics.median(found) for label, found in speeds.items()}
    ratio = medians["ours"] / medians["ddp"]
    if options.json:
        print(json.dumps({"parameters": parameters, "samples_per_second": speeds, "ratio": ratio}))
        return
    model = f"GPT of {parameters:,} parameters, batches of {options.batch}"
    print(f"{options.workers} workers, {model}, {os.cpu_count()} cores")
    for label, found in speeds.items():
        print(f"{label:5} {medians[label]:8.1f} samples/s  (from {min(found):.1f} to {max(found):.1f})")
    print(f"ratio {ratio:8.2f}")


if __name__ == "__main__":
    main()
