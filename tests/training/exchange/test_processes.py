"""Workers as processes, over TLS on loopback: killed, frozen, and counted to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.training.exchange.peer import contribution


class Worker:
    def __init__(self, rank: int, silence: float) -> None:
        self.rank, self.node = rank, f"node{rank}".ljust(32, "x")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.exchange.peer", self.node, str(rank), str(silence)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._reports.put(json.loads(line))

    def tell(self, command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        return self._reports.get(timeout=30)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def group_of(size: int, silence: float = 3.0) -> Iterator[list[Worker]]:
    workers = [Worker(rank, silence) for rank in range(size)]
    try:
        peers = []
        for worker in workers:
            hello = worker.hear()
            peers.append(
                {
                    "node": worker.node,
                    "rank": worker.rank,
                    "host": "127.0.0.1",
                    "port": hello["port"],
                    "certificate": hello["certificate"],
                }
            )
        for worker in workers:
            worker.tell(peers)
        for worker in workers:
            assert worker.hear()["members"] == [each.node for each in workers]
        yield workers
    finally:
        for worker in workers:
            worker.end()


def reduce(workers: list[Worker], number: int, count: int, weights: list[float], **more: object) -> None:
    for worker in workers:
        worker.tell({"do": "reduce", "number": number, "count": count, "weights": weights, **more})


def expected(ranks: list[int], number: int, count: int, weights: list[float]) -> str:
    total = np.float32(sum(weights[rank] for rank in ranks))
    mean = np.zeros(count, np.float32)
    for index, rank in enumerate(ranks):
        part = contribution(rank, number, len(ranks), count) * np.float32(weights[rank])
        mean = part if index == 0 else mean + part
    mean = mean / total if total else np.zeros(count, np.float32)
    return hashlib.sha256(mean.astype(np.float32).tobytes()).hexdigest()


def test_mean_of_three_is_right_to_the_last_bit() -> None:
    with group_of(3) as workers:
        cases = [(1, [1.0, 1.0, 1.0]), (2, [3.0, 0.0, 5.0]), (70_001, [8.0, 8.0, 3.0]), (999_999, [0.0, 0.0, 0.0])]
        for number, (count, weights) in enumerate(cases):
            reduce(workers, number, count, weights)
            reports = [worker.hear() for worker in workers]
            assert {report["digest"] for report in reports} == {expected([0, 1, 2], number, count, weights)}
            assert {report["total"] for report in reports} == {sum(weights)}
        for worker in workers:
            worker.tell({"do": "close"})
        assert [worker.process.wait(20) for worker in workers] == [0, 0, 0]


@pytest.mark.parametrize("victim", [0, 3])
def test_killed_while_the_others_wait_for_it(victim: int) -> None:
    with group_of(4) as workers:
        survivors = [worker for worker in workers if worker.rank != victim]
        weights = [1.0, 2.0, 3.0, 4.0]
        reduce(survivors, 1, 10_000, weights)
        workers[victim].signal(signal.SIGKILL)
        for worker in survivors:
            report = worker.hear()
            assert report["changed"] == [each.node for each in survivors]
            assert report["lost"] == [workers[victim].node]
        reduce(survivors, 2, 10_000, weights)
        ranks = [worker.rank for worker in survivors]
        digest = expected(ranks, 2, 10_000, weights)
        assert [worker.hear()["digest"] for worker in survivors] == [digest] * 3


def go_on(workers: list[Worker], number: int, count: int, weights: list[float]) -> list[str]:
    """Each calls again for as long as it is told that the view has changed; their digests. Who had to fetch the last
    result was told with it, who had it already is told at its next call."""

    def persist(worker: Worker) -> str:
        while True:
            reduce([worker], number, count, weights)
            report = worker.hear()
            if "changed" not in report:
                return str(report["digest"])
            assert report["changed"] == [each.node for each in workers]

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(persist, workers))


def test_killed_in_the_midst_of_a_transfer() -> None:
    """Wherever the kill falls, the round is done for all survivors, with one result, or void for all."""
    with group_of(3) as workers:
        survivors, weights = workers[:2], [1.0, 1.0, 1.0]
        reduce(workers, 1, 8_000_000, weights)
        workers[2].signal(signal.SIGKILL)
        assert len({worker.hear().get("digest") for worker in survivors}) == 1
        assert set(go_on(survivors, 2, 1000, weights)) == {expected([0, 1], 2, 1000, weights)}


def test_frozen_worker_is_left_out_and_learns_of_it() -> None:
    with group_of(3, silence=1.0) as workers:
        frozen, survivors, weights = workers[1], [workers[0], workers[2]], [1.0, 1.0, 1.0]
        reduce(workers, 1, 8_000_000, weights)
        frozen.signal(signal.SIGSTOP)
        assert len({worker.hear().get("digest") for worker in survivors}) == 1
        assert set(go_on(survivors, 2, 1000, weights)) == {expected([0, 2], 2, 1000, weights)}
        frozen.signal(signal.SIGCONT)
        report = frozen.hear()
        if "digest" in report:
            reduce([frozen], 2, 1000, weights)
            report = frozen.hear()
        assert report["error"] == "Excluded"
        assert set(go_on(survivors, 3, 1000, weights)) == {expected([0, 2], 3, 1000, weights)}


def test_two_killed_at_once_leave_one_that_goes_on() -> None:
    with group_of(3) as workers:
        reduce(workers[1:2], 1, 100, [1.0, 1.0, 1.0])
        for rank in (0, 2):
            workers[rank].signal(signal.SIGKILL)
        while len((report := workers[1].hear())["changed"]) > 1:
            reduce(workers[1:2], 1, 100, [1.0, 1.0, 1.0])
        assert report["changed"] == [workers[1].node]
        reduce(workers[1:2], 2, 100, [1.0, 1.0, 1.0])
        assert workers[1].hear()["contributors"] == [workers[1].node]
