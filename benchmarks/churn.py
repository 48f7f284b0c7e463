"""Averaging among workers that come and go: not one round may be wrong or hang.

    python benchmarks/churn.py --minutes 10

Every few seconds a worker is started (probability 0.6, up to 8) or killed (0.4, down to 3). Workers average vectors
without a pause; a new one takes over the state of the others and takes part. Each checks every round against the
mean of those announced as contributors, to the last bit, and reports a digest of its state, which must be the same on
all. A round is hung when none is done by anybody for so long, whatever happened. Exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import numpy as np

from hivenode.errors import HiveError
from hivenode.net.local import Peer
from hivenode.training.exchange import Exchange, Seat, ViewChanged, WorkerKey

FEWEST, MOST = 3, 8
HUNG_SECONDS = 20.0


def name(rank: int) -> str:
    return f"{rank:032d}"


def contribution(rank: int, number: int) -> np.float32:
    return np.float32(((rank * 7919 + number * 104_729) % 1009) / 7.0)


def weight(rank: int, number: int) -> float:
    return float(1 + (rank + number) % 3)


def mean_of(ranks: list[int], number: int) -> np.float32:
    """In the order and precision of the exchange."""
    if len(ranks) == 1:
        return contribution(ranks[0], number)
    total, result = np.float32(0.0), np.float32(0.0)
    for index, rank in enumerate(ranks):
        share = np.float32(weight(rank, number))
        total = np.float32(total + share)
        part = np.float32(contribution(rank, number) * share)
        result = part if index == 0 else np.float32(result + part)
    return np.float32(result / total)


def worker(rank: int, floats: int, pipe: Connection) -> None:
    with Exchange(Seat(name(rank), rank, "127.0.0.1"), WorkerKey.create()) as exchange:
        pipe.send(("at", exchange.port, exchange.certificate))
        joins, peers = pipe.recv()
        number, state = np.zeros(1, np.int64), np.zeros(floats, np.float32)
        try:
            if joins:
                _, given = exchange.join(peers, floats + 2, seconds=HUNG_SECONDS)
                number[0], state[:] = given[:2].view(np.int64)[0], given[2:]
            else:
                exchange.connect(peers)
        except HiveError as error:
            pipe.send(("apart", str(error)))
            return
        pipe.send(("in", int(number[0])))

        def listen() -> None:
            while True:
                try:
                    exchange.admit(pipe.recv())
                except (EOFError, OSError):
                    return

        threading.Thread(target=listen, daemon=True).start()
        try:
            while True:
                average(exchange, rank, number, state, pipe.send)
        except HiveError as error:
            pipe.send(("apart", str(error)))


def average(
    exchange: Exchange,
    rank: int,
    number: np.ndarray,
    state: np.ndarray,
    say: Callable[[tuple[object, ...]], None],
) -> None:
    following = int(number[0]) + 1
    vector = np.full(state.size, contribution(rank, following), np.float32)
    start = time.monotonic()
    try:
        reduced = exchange.all_reduce(vector, weight(rank, following), state=lambda: [number, state])
    except ViewChanged:
        return
    ranks = [int(node.removeprefix("worker").rstrip("0") or 0) for node in reduced.contributors]
    right = reduced.round == following and bool((vector == mean_of(ranks, following)).all())
    number[0] = following
    state += vector
    digest = hashlib.blake2b(state.data, digest_size=8).hexdigest()
    say(("round", following, ranks, right, digest, time.monotonic() - start, reduced.late is not None))


@dataclass
class Hive:
    floats: int
    rng: random.Random
    spawn: multiprocessing.context.SpawnContext
    processes: dict[int, BaseProcess] = field(default_factory=dict)
    pipes: dict[int, Connection] = field(default_factory=dict)
    peers: dict[int, Peer] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)
    started: dict[int, float] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("started", "killed", "joined", "apart", "late"), 0)
    )
    last_round: float = field(default_factory=time.monotonic)
    pauses: list[float] = field(default_factory=list)
    ranks: int = 1

    def start(self) -> int:
        """One more process. Ranks whose names would end in the padding are left out."""
        rank = self.ranks
        self.ranks += 1 if (self.ranks + 1) % 10 else 2
        here, there = self.spawn.Pipe()
        process = self.spawn.Process(target=worker, args=(rank, self.floats, there), daemon=True)
        process.start()
        there.close()
        self.processes[rank], self.pipes[rank], self.started[rank] = process, here, time.monotonic()
        self.counts["started"] += 1
        return rank

    def first(self, count: int) -> None:
        ranks = [self.start() for _ in range(count)]
        for rank in ranks:
            self.placed(rank, self.pipes[rank].recv())
        for rank in ranks:
            self.pipes[rank].send((False, list(self.peers.values())))

    def placed(self, rank: int, message: tuple[str, int, str]) -> None:
        self.peers[rank] = Peer(name(rank), rank, "127.0.0.1", message[1], message[2])

    def hear(self, seconds: float) -> None:
        """Whatever they say, for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            by_pipe = {pipe: rank for rank, pipe in self.pipes.items()}
            for pipe in wait(list(by_pipe), min(left, 0.5)):
                rank = by_pipe[pipe]  # type: ignore[index]
                try:
                    self.heard(rank, self.pipes[rank].recv())
                except (EOFError, OSError):
                    self.forget(rank)
            if time.monotonic() - self.last_round > HUNG_SECONDS:
                self.wrong.append(f"no round for {HUNG_SECONDS:.0f} s, with workers {sorted(self.inside)}")
                self.last_round = time.monotonic()

    def heard(self, rank: int, message: tuple[object, ...]) -> None:
        match message:
            case ("at", int(port), str(certificate)):
                self.placed(rank, ("at", port, certificate))
                self.pipes[rank].send((True, [self.peers[r] for r in self.inside] + [self.peers[rank]]))
                for other in self.inside:
                    self.pipes[other].send(self.peers[rank])
            case ("in", int(number)):
                self.inside.add(rank)
                self.counts["joined"] += number > 0
            case ("apart", str(reason)):
                self.counts["apart"] += 1
                print(f"worker {rank} is out after {time.monotonic() - self.started[rank]:.1f} s: {reason}", flush=True)
            case ("round", int(number), list(ranks), bool(right), str(digest), float(seconds), bool(late)):
                moment = time.monotonic()
                if number not in self.digests:
                    self.pauses.append(moment - self.last_round)
                    self.last_round = moment
                if not right:
                    self.wrong.append(f"round {number}: worker {rank} has another mean than that of {ranks}")
                if self.digests.setdefault(number, digest) != digest:
                    self.wrong.append(f"round {number}: worker {rank} holds another state than others")
                self.seconds.append(seconds)
                self.counts["late"] += late

    def forget(self, rank: int) -> None:
        self.inside.discard(rank)
        self.pipes.pop(rank).close()
        self.processes.pop(rank).join()

    def kill(self) -> None:
        rank = self.rng.choice(sorted(self.inside))
        process = self.processes[rank]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        self.inside.discard(rank)
        self.counts["killed"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--floats", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    hive = Hive(options.floats, random.Random(options.seed), multiprocessing.get_context("spawn"))
    hive.first(FEWEST)
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end and not hive.wrong:
        hive.hear(hive.rng.uniform(1.0, 4.0))
        if hive.rng.random() < 0.6 and len(hive.processes) < MOST:
            hive.start()
        elif len(hive.inside) > FEWEST:
            hive.kill()
        elif len(hive.processes) < MOST:
            hive.start()
    for process in hive.processes.values():
        process.kill()
    found = {
        "rounds": len(hive.digests),
        "results": len(hive.seconds),
        "median_seconds": statistics.median(hive.seconds),
        "longest_pause": max(hive.pauses[1:]),
        **hive.counts,
        "wrong": hive.wrong,
    }
    print(json.dumps(found) if options.json else "\n".join(f"{key:16} {value}" for key, value in found.items()))
    if hive.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
