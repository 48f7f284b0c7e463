"""How long it takes to know a model file, beside the libraries that wrote it and scanners that vet it.

    python benchmarks/identify.py [--peers DIR] [--json]

Files are sparse: 100 GB take a megabyte of disk. Each figure is the best of some warm runs, in processor time of the
process that reads, imports left out: the files are in the cache, nothing waits, and the machine may be shared. The cold
command is measured from exec to exit, by the clock and in processor time, with the most memory it held. torch is the
one this runs with; onnx, gguf and picklescan are looked for in the virtual environment DIR (default:
benchmarks/results/peers), which is made and filled with pip if it is not there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from identify_files import gguf_file, onnx_file, safetensors_file, torch_file

from hivenode.models.identify import identify

GB = 1_000_000_000
PEERS = Path(__file__).parent / "results" / "peers"
PACKAGES = ["onnx", "gguf", "picklescan", "modelscan", "fickling"]
MANY = 1_000


class Row(NamedTuple):
    """One figure: seconds here, the bar, bytes read and those beyond the headers, the command's most memory in bytes,
    and what a peer took or why it could not."""

    what: str
    seconds: float
    bar: float
    read: int
    beyond: int
    memory: int
    peer: str
    took: float | str


def measure(path: Path, *, times: int = 15) -> tuple[float, int]:
    """The best of some warm runs in seconds of processor time, and the bytes read."""
    spans = []
    for _ in range(times):
        start = time.process_time()
        report = identify(path)
        spans.append(time.process_time() - start)
        assert report.error is None, report.error
    return min(spans), report.bytes_read or 0


def peer_python(folder: Path) -> Path | None:
    """The interpreter that has the peers; made if it is not there. None if pip cannot fetch them."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=False)
        if done.returncode:
            shutil.rmtree(folder)
            return None
    return python


def peer(python: Path | None, setup: str, call: str, path: Path) -> float | str:
    """The best of three warm runs of a peer in its own process (one, if it is slow), or why there is none. Imports are
    not counted."""
    if python is None:
        return "not installed"
    script = (
        f"import sys, time\n{setup}\npath = sys.argv[1]\nspans = []\nfor _ in range(3):\n"
        f"    start = time.process_time()\n    {call}\n    spans.append(time.process_time() - start)\n"
        "    if spans[0] > 2:\n        break\n"
        "print(min(spans))"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "more than a minute"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["ended"])[-1][:60]
    return float(done.stdout.split()[-1])


def rows(folder: Path, python: Path | None) -> list[Row]:
    own = Path(sys.executable)
    loads = ("import torch", "torch.load(path, mmap=True, weights_only=True)")
    scans = ("from picklescan.scanner import scan_file_path", "scan_file_path(path)")
    opens = (
        "from safetensors import safe_open",
        "[f.get_slice(n).get_shape() for f in [safe_open(path, 'pt')] for n in f.keys()]",
    )
    made: list[Row] = []

    def row(what: str, path: Path, header: int, bar: float, peers: list[tuple[str, Path | None, str, str]]) -> None:
        seconds, read = measure(path)
        most = cold(path, times=1).memory
        for name, interpreter, setup, call in peers:
            took = peer(interpreter, setup, call, path)
            made.append(Row(what, seconds, bar, read, max(0, read - header), most, name, took))

    for size, tensors, bar in ((10, 300, 0.005), (100, 1000, 0.05)):
        path = folder / f"{size}.safetensors"
        header = safetensors_file(path, size * GB, tensors)
        row(f"safetensors, {size} GB, {tensors} tensors", path, header, bar, [("safetensors: shapes", own, *opens)])
    for size, tensors, bar in ((10, 300, 0.02), (100, 1000, 0.05)):
        path = folder / f"{size}.pt"
        header = torch_file(path, size * GB, tensors)
        row(f"torch zip, {size} GB, {tensors} tensors", path, header, bar, [
            ("torch.load(mmap)", own, *loads), ("picklescan", python, *scans),
        ])  # fmt: skip
    path = folder / "weights.onnx"
    header = onnx_file(path)
    row("ONNX, 1.5 GB", path, header, 0.01, [("onnx.load", python, "import onnx", "onnx.load(path)")])
    reads = ("import gguf", "gguf.GGUFReader(path)")
    path = folder / "vocabulary.gguf"
    header = gguf_file(path, merges=0)
    row("GGUF, 128k tokens", path, header, 0.05, [("gguf", python, *reads)])
    header = gguf_file(path)
    row("GGUF, 128k tokens, 280k merges", path, header, 0.05, [("gguf", python, *reads)])
    return made


class Cold(NamedTuple):
    """One run of the command: seconds by the clock, seconds of processor, the most memory in bytes."""

    seconds: float
    processor: float
    memory: int


LAUNCH = """
import json, os, subprocess, sys, time
runs = []
for _ in range(int(sys.argv[1])):
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    runs.append((time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss << 10))
print(json.dumps(min(runs, key=lambda run: run[1])))
"""
"""Small, since a child is charged with the memory of the process that starts it."""


def cold(path: Path, *, times: int = 7) -> Cold:
    """`hivenode identify PATH`, from exec to exit; the best of some."""
    command = [sys.executable, "-m", "hivenode.cli.main", "identify", str(path), "--json"]
    launch = [sys.executable, "-c", LAUNCH, str(times), *command]
    done = subprocess.run(launch, check=True, stdout=subprocess.PIPE)
    return Cold(*json.loads(done.stdout))


def many(folder: Path) -> float:
    """A folder of a thousand checkpoints through the command, once, by the clock."""
    place = folder / "many"
    place.mkdir()
    torch.save(torch.nn.LSTM(8, 8, 2).state_dict(), place / "0.pt")
    for number in range(1, MANY):
        shutil.copy(place / "0.pt", place / f"{number}.pt")
    return cold(place, times=1).seconds


def shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value * 1e3:,.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    chosen = parser.parse_args()
    python = peer_python(chosen.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = rows(folder, python)
        small = folder / "small.pt"
        torch.save(torch.nn.LSTM(8, 8, 2).state_dict(), small)
        assert identify(small).model == "lstm"
        command, thousand = cold(small), many(folder)
    if chosen.json:
        print(
            json.dumps({"files": [row._asdict() for row in measured], "cold": command._asdict(), "thousand": thousand})
        )
        return
    print("| file | here | bar | ratio | read | beyond headers | memory | peer | it took | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in measured:
        ratio = f"{row.seconds / row.took:.4f}" if isinstance(row.took, float) else "-"
        print(
            f"| {row.what} | {shown(row.seconds)} | {shown(row.bar)} | {row.seconds / row.bar:.2f} | {row.read:,} | "
            f"{row.beyond:,} | {row.memory >> 20} MiB | {row.peer} | {shown(row.took)} | {ratio} |"
        )
    print(f"The command, cold: {shown(command.seconds)} by the clock, {shown(command.processor)} of processor (bar: "
          f"200 ms, ratio {command.processor / 0.2:.2f}), {command.memory >> 20} MiB (bar: 50)")  # fmt: skip
    print(f"The command, {MANY:,} files: {thousand:.2f} s")


if __name__ == "__main__":
    main()
