"""Averaging a vector among workers on this machine: our exchange over TLS beside gloo in plaintext and hivemind with
its fp16, in one run.

    python benchmarks/exchange.py                             # 4 workers, 32 million float32 each
    python benchmarks/exchange.py --floats 8000000 --rounds 7 --without hivemind
    python benchmarks/exchange.py --table --plot scaling.svg  # 2 to 8 workers, 1 MB to 1 GB, as memory allows
    python benchmarks/exchange.py --mosaic                    # hivemind's own benchmark of averaging, and ours for it

Prints the seconds of one all-reduce (the slowest worker's, median over rounds) of each and their ratios, what a worker
holds at its peak beyond its vector, and how long after the SIGKILL and the SIGSTOP of one worker in the midst of a
round the others hold the result of one without it. Gloo has no such figure: its survivors get an error, or wait for a
timeout. All share the cores of one machine, so the encryption of every worker competes with the arithmetic of all. And
so does whatever else runs: beside every figure stands the share of the processors that others had meanwhile. With more
than a few hundredths of it a figure says little.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from exchange_peers import Done, Watch, gloo, hivemind_python, hivemind_seconds, ours

SIZES = (250_000, 2_500_000, 25_000_000, 250_000_000)
WORKERS = (2, 4, 8)
MOSAIC = {"peers": 16, "rounds": 5, "floats": 2_380_000}


def compare(workers: int, floats: int, rounds: int, passes: int, without: list[str]) -> dict[str, object]:
    taken: dict[str, list[float]] = {}
    disturbed: dict[str, float] = {}

    def told(label: str, seconds: list[float], others: float) -> None:
        taken.setdefault(label, []).extend(seconds)
        disturbed[label] = max(disturbed.get(label, 0.0), others)
        row = " ".join(f"{value:.3f}" for value in seconds)
        print(f"{label}: {row}  (others had {others:.0%} of the processors)", file=sys.stderr, flush=True)

    held = 0.0
    # In turn, and again: a machine that others use too changes while one measures.
    for _ in range(passes):
        with gloo(workers, floats) as crew:
            watch = Watch()
            told("gloo", crew.seconds(rounds), watch.others())
        for codec in ("fp32", "fp16", "int8"):
            with ours(workers, floats, codec) as crew:
                watch = Watch()
                told(codec, crew.seconds(rounds), watch.others())
                if codec == "fp32":
                    peaks = [done.peak for done in crew.round()]
                    held = max(peak - before for peak, before in zip(peaks, crew.before, strict=True))
    if "hivemind" not in without:
        told("hivemind", *hivemind_seconds(workers, floats, min(rounds, 3)))
    medians = {label: statistics.median(seconds) for label, seconds in taken.items()}
    return {
        "workers": workers,
        "floats": floats,
        "seconds": medians,
        "spread": {label: (min(seconds), max(seconds)) for label, seconds in taken.items()},
        "others": disturbed,
        "held_beyond_vector": held / (4 * floats),
    }


def interrupt(workers: int, floats: int, how: signal.Signals) -> tuple[float, float]:
    """Seconds from the signal to the last survivor's result, and the seconds of an undisturbed round."""
    with ours(workers, floats) as crew:
        # For longer than links remember how busy the start was: of that depends what silence means.
        usual, until = 0.0, time.monotonic() + 20.0
        while time.monotonic() < until:
            usual = statistics.median(crew.seconds(5))
        for pipe in crew.pipes:
            pipe.send("round")
        time.sleep(usual / 2)
        victim = crew.processes[-1].pid
        assert victim is not None
        moment = time.monotonic()
        os.kill(victim, how)
        done: list[Done] = [pipe.recv() for pipe in crew.pipes[:-1]]
        while any(each.contributors == workers for each in done):  # it had been done already
            moment = time.monotonic()
            for pipe in crew.pipes[:-1]:
                pipe.send("round")
            done = [pipe.recv() for pipe in crew.pipes[:-1]]
        os.kill(victim, signal.SIGKILL)
        crew.processes[-1].join()
        return max(each.at for each in done) - moment, usual


def available() -> int:
    """Bytes of memory that nobody uses."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def scaling(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for workers in WORKERS:
        for floats in SIZES:
            if workers * floats * 4 * 3.5 > 0.7 * available():
                continue
            tries = rounds if floats < SIZES[-2] else 3
            with gloo(workers, floats) as crew:
                theirs = statistics.median(crew.seconds(tries))
            row: dict[str, object] = {"workers": workers, "megabytes": floats * 4 / 1e6, "gloo": theirs}
            for codec in ("fp32", "fp16"):
                with ours(workers, floats, codec) as crew:
                    row[codec] = statistics.median(crew.seconds(tries))
            rows.append(row)
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    return rows


def mosaic() -> dict[str, object]:
    script = str(Path(__file__).with_name("hivemind_peers.py"))
    with ours(MOSAIC["peers"], MOSAIC["floats"], "fp16") as crew:
        start = time.monotonic()
        for _ in range(MOSAIC["rounds"]):
            crew.round()
        mine = time.monotonic() - start
    line = subprocess.run([hivemind_python(), script, "mosaic"], stdout=subprocess.PIPE, text=True, timeout=400).stdout
    theirs = json.loads(line.splitlines()[-1])
    return {"hivenode": mine, "hivemind": theirs["seconds"], "steps": theirs["steps"], "of": theirs["of"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--floats", type=int, default=32_000_000, help="length of each worker's vector")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=2, help="how often each has its turn")
    parser.add_argument("--without", nargs="*", default=[], choices=["hivemind"])
    parser.add_argument("--table", action="store_true", help="over numbers of workers and sizes")
    parser.add_argument("--plot", type=Path, help="write the table as a picture (SVG)")
    parser.add_argument("--mosaic", action="store_true", help="16 peers, 5 rounds of 2.38 million numbers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.mosaic:
        found = mosaic()
        print(json.dumps(found) if options.json else "  ".join(f"{key} {value}" for key, value in found.items()))
        return
    if options.table or options.plot:
        rows = scaling(options.rounds)
        if options.plot:
            from exchange_plot import draw

            options.plot.write_text(draw(rows))
        if options.json:
            print(json.dumps(rows))
        return
    result = compare(options.workers, options.floats, options.rounds, options.passes, options.without)
    for label, how in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
        result[label], result["undisturbed"] = interrupt(options.workers, options.floats, how)
    if options.json:
        print(json.dumps(result))
        return
    megabytes = options.floats * 4 / 1e6
    print(f"{options.workers} workers, {options.floats:,} float32 ({megabytes:.0f} MB) each, {os.cpu_count()} cores")
    seconds, spread, others = result["seconds"], result["spread"], result["others"]
    assert isinstance(seconds, dict)
    assert isinstance(spread, dict)
    assert isinstance(others, dict)
    for label, value in seconds.items():
        low, high = spread[label]
        ratio = f"{value / seconds['gloo']:.2f} x gloo"
        print(f"{label:10} {value:.3f} s  (from {low:.3f} to {high:.3f})   {ratio}   others had {others[label]:.0%}")
    print(f"a worker holds {result['held_beyond_vector']:.2f} x the vector beyond it")
    for label in ("killed", "frozen"):
        print(f"one {label} in mid-round: survivors done {result[label]:.3f} s after")


if __name__ == "__main__":
    main()
