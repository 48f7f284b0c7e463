"""Peers that average vectors on this machine, ours and others', each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil

from hivenode.net.local import Peer
from hivenode.training.exchange import Exchange, Seat, ViewChanged, WorkerKey
from hivenode.training.exchange.codecs import CODECS

HIVEMIND = "hivemind==1.1.12"


def name(rank: int) -> str:
    return f"{rank:032d}"


@dataclass(frozen=True)
class Done:
    """One round of one peer: seconds, when it ended, who contributed, and its peak memory in bytes."""

    seconds: float
    at: float
    contributors: int
    peak: int


def busy() -> float:
    """Seconds that all processors together have worked, or were taken from this machine (proc(5), stat)."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def own() -> float:
    """Seconds of it that this process and all below it have had, as long as those live."""
    total, this = 0.0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


class Watch:
    """From now on: whom the processors work for."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), busy(), own()

    def others(self) -> float:
        """Share of all processors' time that went to others than this process and all below it."""
        spent = busy() - self._busy - (own() - self._own)
        return max(0.0, spent / (time.monotonic() - self._began) / (os.cpu_count() or 1))


def our_worker(rank: int, floats: int, codec: str, pipe: Connection) -> None:
    import torch  # as a worker of a torch job has

    torch.set_num_threads(1)
    with Exchange(Seat(name(rank), rank, "127.0.0.1"), WorkerKey.create()) as exchange:
        pipe.send((exchange.port, exchange.certificate))
        exchange.connect(pipe.recv())
        vector = np.random.default_rng(rank).standard_normal(floats, np.float32)
        chosen = None if codec == "fp32" else CODECS[codec]
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        while pipe.recv() == "round":
            start = time.monotonic()
            while True:
                try:
                    reduced = exchange.all_reduce(vector, 1.0, chosen)
                    break
                except ViewChanged:
                    continue
            moment = time.monotonic()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send(Done(moment - start, moment, len(reduced.contributors), peak))
        exchange.barrier()


def gloo_worker(rank: int, size: int, floats: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    vector = torch.from_numpy(np.random.default_rng(rank).standard_normal(floats, np.float32))
    dist.barrier()
    pipe.send(None)
    while pipe.recv() == "round":
        start = time.monotonic()
        dist.all_reduce(vector)
        vector /= size
        moment = time.monotonic()
        pipe.send(Done(moment - start, moment, size, 0))
    dist.destroy_process_group()


@dataclass
class Crew:
    """Workers that wait for the word, and their memory before the first round."""

    processes: list[BaseProcess]
    pipes: list[Connection]
    before: list[int]

    def round(self) -> list[Done]:
        for pipe in self.pipes:
            pipe.send("round")
        return [pipe.recv() for pipe in self.pipes]

    def seconds(self, count: int) -> list[float]:
        """Of the slowest worker, round by round; the first, which touches fresh memory, is left out."""
        return [max(done.seconds for done in self.round()) for _ in range(count + 1)][1:]


@contextmanager
def ours(workers: int, floats: int, codec: str = "fp32") -> Iterator[Crew]:
    spawn = multiprocessing.get_context("spawn")
    processes, pipes = list[BaseProcess](), list[Connection]()
    for rank in range(workers):
        here, there = spawn.Pipe()
        process = spawn.Process(target=our_worker, args=(rank, floats, codec, there), daemon=True)
        process.start()
        processes.append(process)
        pipes.append(here)
    endpoints = [pipe.recv() for pipe in pipes]
    peers = [Peer(name(rank), rank, "127.0.0.1", *endpoint) for rank, endpoint in enumerate(endpoints)]
    for pipe in pipes:
        pipe.send(peers)
    crew = Crew(processes, pipes, [pipe.recv() for pipe in pipes])
    yield crew
    end(crew)


@contextmanager
def gloo(workers: int, floats: int) -> Iterator[Crew]:
    spawn = multiprocessing.get_context("spawn")
    processes, pipes = list[BaseProcess](), list[Connection]()
    with tempfile.TemporaryDirectory() as directory:
        for rank in range(workers):
            here, there = spawn.Pipe()
            args = (rank, workers, floats, os.path.join(directory, "store"), there)
            process = spawn.Process(target=gloo_worker, args=args, daemon=True)
            process.start()
            processes.append(process)
            pipes.append(here)
        crew = Crew(processes, pipes, [0 for pipe in pipes if pipe.recv() is None])
        yield crew
        end(crew)


def end(crew: Crew) -> None:
    for process, pipe in zip(crew.processes, crew.pipes, strict=True):
        if process.is_alive():
            pipe.send("end")
    for process in crew.processes:
        process.join(20)
        process.kill()


def hivemind_python() -> str:
    """An interpreter that has hivemind and everything this one has; made once, beside other temporary files."""
    home = Path(tempfile.gettempdir()) / f"hivenode-benchmarks-{os.getuid()}" / HIVEMIND
    python = home / "bin" / "python"
    if not (home / "whole").exists():
        print(f"making an environment with {HIVEMIND} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        site = next((home / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", HIVEMIND], check=True)
        (home / "whole").touch()
    return str(python)


def hivemind_seconds(workers: int, floats: int, rounds: int) -> tuple[list[float], float]:
    """Of the slowest peer, round by round, all-reduce alone; the first is left out. And what `Watch` says."""
    script = str(Path(__file__).with_name("hivemind_peers.py"))
    peers: list[subprocess.Popen[str]] = []
    known: list[str] = []

    def tell(peer: subprocess.Popen[str], text: str) -> None:
        assert peer.stdin is not None
        peer.stdin.write(text + "\n")
        peer.stdin.flush()

    def hear(peer: subprocess.Popen[str]) -> dict[str, object]:
        assert peer.stdout is not None
        return json.loads(peer.stdout.readline())  # type: ignore[no-any-return]

    try:
        for rank in range(workers):
            words = ["pair", "--rank", str(rank), "--size", str(workers), "--floats", str(floats)]
            peers.append(
                subprocess.Popen(
                    [hivemind_python(), script, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            tell(peers[-1], json.dumps(known))
            known += hear(peers[-1])["addresses"]  # type: ignore[arg-type]
        seconds, watch = list[float](), Watch()
        for _ in range(rounds + 1):
            for word in ("round", "go"):
                for peer in peers:
                    tell(peer, word)
                answers = [hear(peer) for peer in peers]
            seconds.append(max(float(str(answer["seconds"])) for answer in answers))
            assert all(answer["group"] == workers for answer in answers), "hivemind averaged in smaller groups"
        others = watch.others()
        for peer in peers:
            tell(peer, "end")
        return seconds[1:], others
    finally:
        stop(peers)


def stop(peers: Sequence[subprocess.Popen[str]]) -> None:
    for peer in peers:
        try:
            peer.wait(10)
        except subprocess.TimeoutExpired:
            peer.kill()
            peer.wait()
