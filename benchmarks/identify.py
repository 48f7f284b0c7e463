"""How long it takes to know a model file, beside the libraries that wrote it and scanners that vet it.

    python benchmarks/identify.py [--peers DIR]

Files are sparse: 100 GB take a megabyte of disk. Each figure is the best of some warm runs, in processor time of the
process that reads, imports left out: the files are in the cache, nothing waits, and the machine may be shared. torch is
the one this runs with; onnx, gguf and picklescan are looked for in the virtual environment DIR (default:
benchmarks/results/peers), which is made and filled with pip if it is not there.
"""

from __future__ import annotations

import argparse
import binascii
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import venv
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from identify_graphs import gguf_file, memory, onnx_file

from hivenode.models.identify import identify

GB = 1_000_000_000
PEERS = Path(__file__).parent / "results" / "peers"
PACKAGES = ["onnx", "gguf", "picklescan", "modelscan", "fickling"]
MANY = 1_000


def safetensors_file(path: Path, size: int, tensors: int) -> None:
    """Float16 matrices of `size` bytes in all, as a transformer names them."""
    side = int((size / tensors / 2) ** 0.5)
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names(tensors):
        fields[name] = {"dtype": "F16", "shape": [side, side], "data_offsets": [at, at + side * side * 2]}
        at += side * side * 2
    header = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)


def names(count: int) -> list[str]:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")  # fmt: skip
    return [f"model.layers.{place // 9}.{parts[place % 9]}.weight" for place in range(count)]


class _Storage:
    """Stands for a storage in the pickle below."""

    def __init__(self, key: int, elements: int) -> None:
        self.id = ("storage", torch.HalfStorage, str(key), "cpu", elements)


class _Tensor:
    """Is pickled as torch pickles a tensor."""

    def __init__(self, key: int, side: int) -> None:
        self.storage, self.side = _Storage(key, side * side), side

    def __reduce__(self) -> tuple[object, ...]:
        shape = (self.side, self.side)
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, (self.side, 1), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.id if isinstance(value, _Storage) else None


def torch_file(path: Path, size: int, tensors: int) -> None:
    """A zip checkpoint as torch.save writes it: storages are holes, aligned to 64 bytes, all in zip64."""
    side = int((size / tensors / 2) ** 0.5)
    scratch = path.with_suffix(".pkl")
    with scratch.open("wb") as file:
        _Pickler(file, 2).dump(OrderedDict((name, _Tensor(key, side)) for key, name in enumerate(names(tensors))))
    entries: list[tuple[str, bytes | int]] = [("m/data.pkl", scratch.read_bytes()), ("m/byteorder", b"little")]
    entries += [(f"m/data/{key}", side * side * 2) for key in range(tensors)]
    entries += [("m/version", b"3\n")]
    scratch.unlink()
    directory = []
    with path.open("wb") as file:
        for name, data in entries:
            length = data if isinstance(data, int) else len(data)
            crc = 0 if isinstance(data, int) else binascii.crc32(data)
            place, raw = file.tell(), name.encode()
            padding = -(place + 30 + len(raw) + 4) % 64
            head = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, length, length, len(raw), 4 + padding)
            file.write(head + raw + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
            if isinstance(data, int):
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(data)
            wide = struct.pack("<2H3Q", 1, 24, length, length, place)
            most = 0xFFFFFFFF
            fixed = (45, 45, 0, 0, 0, 0, crc, most, most, len(raw), 28, 0, 0, 0, 0, most)
            directory.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", *fixed) + raw + wide)
        start, whole = file.tell(), b"".join(directory)
        count = len(entries)
        file.write(whole)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(whole), start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


class Row(NamedTuple):
    """One figure: seconds here, the bar, and what a peer took or why it could not."""

    what: str
    seconds: float
    bar: float
    read: int
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
    """The best of three warm runs of a peer in its own process, or why there is none. Imports are not counted."""
    if python is None:
        return "not installed"
    script = (
        f"import sys, time\n{setup}\npath = sys.argv[1]\nspans = []\nfor _ in range(3):\n"
        f"    start = time.process_time()\n    {call}\n    spans.append(time.process_time() - start)\n"
        "print(min(spans))"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "more than two minutes"
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

    def row(what: str, path: Path, bar: float, peers: list[tuple[str, Path | None, str, str]]) -> None:
        seconds, read = measure(path)
        most = memory(path)
        for name, interpreter, setup, call in peers:
            made.append(Row(what, seconds, bar, read, most, name, peer(interpreter, setup, call, path)))

    for size, tensors, bar in ((10, 300, 0.005), (100, 1000, 0.05)):
        path = folder / f"{size}.safetensors"
        safetensors_file(path, size * GB, tensors)
        row(f"safetensors, {size} GB, {tensors} tensors", path, bar, [("safetensors: shapes", own, *opens)])
    for size, tensors, bar in ((10, 300, 0.02), (100, 1000, 0.05)):
        path = folder / f"{size}.pt"
        torch_file(path, size * GB, tensors)
        row(f"torch zip, {size} GB, {tensors} tensors", path, bar, [
            ("torch.load(mmap)", own, *loads), ("picklescan", python, *scans),
        ])  # fmt: skip
    path = folder / "weights.onnx"
    onnx_file(path)
    row("ONNX, 1.5 GB", path, 0.01, [("onnx.load", python, "import onnx", "onnx.load(path)")])
    path = folder / "vocabulary.gguf"
    gguf_file(path)
    row("GGUF, 128k tokens", path, 0.05, [("gguf", python, "import gguf", "gguf.GGUFReader(path)")])
    return made


def cold(path: Path) -> float:
    """`hivenode identify FILE`, from exec to exit; the best of five."""
    command = [sys.executable, "-m", "hivenode.cli.main", "identify", str(path), "--json"]
    spans = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spans.append(time.perf_counter() - start)
    return min(spans)


def many(folder: Path) -> float:
    """A folder of a thousand checkpoints through the command, once."""
    place = folder / "many"
    place.mkdir()
    torch.save(torch.nn.LSTM(8, 8, 2).state_dict(), place / "0.pt")
    for number in range(1, MANY):
        shutil.copy(place / "0.pt", place / f"{number}.pt")
    return cold_once(place)


def cold_once(path: Path) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "hivenode.cli.main", "identify", str(path), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS)
    chosen = parser.parse_args()
    python = peer_python(chosen.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| file | here | bar | ratio | bytes read | memory | peer | it took | ratio |")
        print("|---|---|---|---|---|---|---|---|---|")
        for row in rows(folder, python):
            took = f"{row.took * 1e3:,.1f} ms" if isinstance(row.took, float) else row.took
            ratio = f"{row.seconds / row.took:.4f}" if isinstance(row.took, float) else "-"
            print(
                f"| {row.what} | {row.seconds * 1e3:.2f} ms | {row.bar * 1e3:.0f} ms | {row.seconds / row.bar:.2f} | "
                f"{row.read:,} | {row.memory / 1e6:.1f} MB | {row.peer} | {took} | {ratio} |"
            )
        small = folder / "small.pt"
        torch.save(torch.nn.LSTM(8, 8, 2).state_dict(), small)
        assert identify(small).model == "lstm"
        seconds = cold(small)
        print(f"| the command, cold | {seconds * 1e3:.0f} ms | 200 ms | {seconds / 0.2:.2f} | | | | | |")
        seconds = many(folder)
        print(f"| the command, {MANY} files | {seconds:.2f} s | | | | | | | |")


if __name__ == "__main__":
    main()
