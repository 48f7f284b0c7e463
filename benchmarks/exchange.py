"""Averaging a vector among workers on this machine: our exchange over TLS against gloo in plaintext, same run.

    python benchmarks/exchange.py                       # 4 workers, 32 million float32 each
    python benchmarks/exchange.py --floats 8000000 --rounds 7

Prints the seconds of one all-reduce (the slowest worker's, median over rounds) of each, their ratio, and how long
after the SIGKILL of one worker in the midst of a round the others hold the result of a round without it. Gloo has no
such figure: its survivors get an error, or wait for a timeout. All share the cores of one machine, so the encryption
of every worker competes with the arithmetic of all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from multiprocessing.connection import Connection

import numpy as np

from hivenode.net.local import Peer
from hivenode.training.exchange import Exchange, Seat, ViewChanged, WorkerKey


def name(rank: int) -> str:
    return f"worker{rank}".ljust(32, "0")


def our_worker(rank: int, floats: int, pipe: Connection) -> None:
    """Answers 'round' with the seconds it took, and the moment it was done."""
    with Exchange(Seat(name(rank), rank, "127.0.0.1"), WorkerKey.create()) as exchange:
        pipe.send((exchange.port, exchange.certificate))
        exchange.connect(pipe.recv())
        vector = np.random.default_rng(rank).standard_normal(floats, np.float32)
        pipe.send(None)
        while pipe.recv() == "round":
            start = time.monotonic()
            while True:
                try:
                    exchange.all_reduce(vector, 1.0)
                    break
                except ViewChanged:
                    continue
            pipe.send((time.monotonic() - start, time.monotonic()))
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
        pipe.send((time.monotonic() - start, time.monotonic()))
    dist.destroy_process_group()


def rounds(pipes: list[Connection], count: int) -> list[float]:
    """Seconds of the slowest worker, round by round; the first, which touches fresh memory, is left out."""
    seconds = []
    for _ in range(count + 1):
        for pipe in pipes:
            pipe.send("round")
        seconds.append(max(pipe.recv()[0] for pipe in pipes))
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--floats", type=int, default=32_000_000, help="length of each worker's vector")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")

    def start(target: object, *args: object) -> tuple[list[multiprocessing.process.BaseProcess], list[Connection]]:
        processes, pipes = [], []
        for rank in range(options.workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=target, args=(rank, *args, theirs), daemon=True)  # type: ignore[arg-type]
            process.start()
            processes.append(process)
            pipes.append(ours)
        return processes, pipes

    with tempfile.TemporaryDirectory() as directory:
        processes, pipes = start(gloo_worker, options.workers, options.floats, os.path.join(directory, "store"))
        for pipe in pipes:
            pipe.recv()
        gloo = rounds(pipes, options.rounds)
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join(10)

    processes, pipes = start(our_worker, options.floats)
    endpoints = [pipe.recv() for pipe in pipes]
    peers = [Peer(name(rank), rank, "127.0.0.1", *endpoint) for rank, endpoint in enumerate(endpoints)]
    for pipe in pipes:
        pipe.send(peers)
    for pipe in pipes:
        pipe.recv()
    ours = rounds(pipes, options.rounds)

    for pipe in pipes:
        pipe.send("round")
    time.sleep(statistics.median(ours) / 2)
    victim = processes[-1].pid
    assert victim is not None
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    done = [pipe.recv()[1] for pipe in pipes[:-1]]
    for pipe in pipes[:-1]:
        pipe.send("end")
    for process in processes[:-1]:
        process.join(10)

    megabytes = options.floats * 4 / 1e6
    print(f"{options.workers} workers, {options.floats:,} float32 ({megabytes:.0f} MB) each, {os.cpu_count()} cores")
    for label, seconds in (("gloo, plaintext", gloo), ("hivenode, TLS 1.3", ours)):
        print(f"{label:18} {statistics.median(seconds):.3f} s  (from {min(seconds):.3f} to {max(seconds):.3f})")
    print(f"ratio              {statistics.median(ours) / statistics.median(gloo):.2f}")
    print(f"one killed in mid-round: survivors done {max(done) - killed:.3f} s after")


if __name__ == "__main__":
    main()
