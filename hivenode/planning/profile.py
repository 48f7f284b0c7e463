"""What the planner knows of the machines: each one's measurements, and the links between them."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import psutil

from hivenode.errors import Unavailable
from hivenode.logs import get_logger

DEFAULT_ROUND_TRIP_SECONDS = 0.02
"""Assumed between two nodes that nobody has measured, not even by way of a third: a home line within a country."""
DEFAULT_BANDWIDTH = 12.5e6
"""Bytes/s assumed of a node that states none: 100 Mbit/s."""
GUESSED_FLOPS = 5e9
"""FLOP/s a thread assumed of a machine whose probe fails."""

log = get_logger("planning")


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """One machine, as it measured itself."""

    node: str
    flops: float
    """Effective float32 FLOP/s of one worker that has the machine to itself."""
    memory_bytes: int
    """Free for a worker now."""
    cores: int
    bandwidth: float
    """Bytes/s to a peer."""
    frameworks: tuple[str, ...]
    running: int = 0
    """Assignments it is working on; they share its speed."""
    paused: str = ""
    """Why it takes no work now; empty when it does."""
    name: str = ""
    """Its name for people."""
    offers: tuple[str, ...] = ()
    """What it has that not every node has: `private:NAME`, `hf:NAME`, `python:PACKAGE`."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """What it would offer, and a sentence on what is wrong with it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what jobs may need and is installed there."""
    bf16: bool = False
    """Its processor has instructions for products of bfloat16."""
    fp16: bool = False
    """Likewise of float16."""
    address: str = ""
    """Where its workers listen for others'."""
    trusted: tuple[str, ...] = ()
    """Subnets on which its owner lets workers speak in plaintext."""

    @property
    def label(self) -> str:
        return self.name or self.node[:8]

    @property
    def speed(self) -> float:
        """FLOP/s that one more worker would get."""
        return self.flops / (1 + max(0, self.running))


@dataclass(frozen=True)
class ClusterView:
    """The machines and the links between them at one moment.

    Args:
        profiles: one per node.
        latencies: measured round trips between pairs of node ids, seconds; either direction, or both.
    """

    profiles: tuple[NodeProfile, ...]
    latencies: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @cached_property
    def _neighbours(self) -> dict[str, dict[str, float]]:
        known: dict[str, dict[str, float]] = {}
        for (a, b), seconds in self.latencies.items():
            if a == b or not math.isfinite(seconds) or seconds < 0:
                continue
            back = self.latencies.get((b, a), seconds)
            both = (seconds + back) / 2 if math.isfinite(back) and back >= 0 else seconds
            known.setdefault(a, {})[b] = both
            known.setdefault(b, {})[a] = both
        return known

    @cached_property
    def _bandwidths(self) -> dict[str, float]:
        return {p.node: p.bandwidth if p.bandwidth > 0 else DEFAULT_BANDWIDTH for p in self.profiles}

    def latency(self, a: str, b: str) -> float:
        """Round trip in seconds: measured; else the shortest way by one third node that both were measured to (an
        upper bound where the triangle inequality holds); else `DEFAULT_ROUND_TRIP_SECONDS`."""
        if a == b:
            return 0.0
        near, far = self._neighbours.get(a, {}), self._neighbours.get(b, {})
        if b in near:
            return near[b]
        if len(near) > len(far):
            near, far = far, near
        return min(
            (seconds + far[third] for third, seconds in near.items() if third in far),
            default=DEFAULT_ROUND_TRIP_SECONDS,
        )

    def bandwidth(self, a: str, b: str) -> float:
        """Bytes/s between two nodes: that of the slower end."""
        return min(self._bandwidths.get(a, DEFAULT_BANDWIDTH), self._bandwidths.get(b, DEFAULT_BANDWIDTH))


# --- probes of this machine ------------------------------------------------------------------------------------


def cores() -> int:
    """Processor cores this process may use: its affinity and, on Linux, its control group's quota; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else psutil.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
        count = min(count, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, count)


def free_memory_bytes() -> int:
    """Bytes a new process could use without swapping: what the system has, within this control group's limit."""
    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(0, free)


def _cgroup(name: str) -> str:
    """A file of this process's control group (v2), or "" where there is none."""
    try:
        line = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()[-1]
        return Path("/sys/fs/cgroup", line.split("::")[-1].lstrip("/"), name).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError, IndexError):
        return ""  # another system, or no such limit


def machine_key() -> str:
    """Names this kind of machine: processor model and usable cores. A speed measured under one key holds under it."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the platform's own name will do
    return f"{model} x{cores()}"


_INSTRUCTIONS: Mapping[str, frozenset[str]] = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "fp16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""For products of such numbers (AVX-512, AMX, Arm's), as Linux spells them."""


def half_precisions() -> frozenset[str]:
    """Which of bf16 and fp16 this processor has instructions for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()  # not Linux
    words = next((line.split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    return frozenset(name for name, flags in _INSTRUCTIONS.items() if not flags.isdisjoint(words))


async def measure_flops(*, threads: int, timeout_seconds: float = 30.0) -> float:
    """Effective float32 FLOP/s of this machine with `threads` threads, by a short matrix product in a process of
    its own, so that neither the loop waits nor the daemon imports anything.

    Raises:
        Unavailable: the probe failed or took too long.
    """
    count = str(max(1, threads))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": count, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    # Popen and a thread, not asyncio's subprocesses: those can hang when cancelled while they start.
    process = subprocess.Popen(  # noqa: ASYNC220  # starting is quick, waiting is done in a thread
        [sys.executable, "-m", "hivenode.planning.probe"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_seconds):
            out, err = await asyncio.to_thread(process.communicate)
    except TimeoutError:
        raise Unavailable(
            f"Measuring this machine's speed took longer than {timeout_seconds:.0f} s.",
            fix="Start again when the machine is less busy.",
        ) from None
    finally:
        process.kill()
        process.wait()
    try:
        flops = float(msgspec.json.decode(out, type=dict[str, float])["flops"])
    except (msgspec.DecodeError, KeyError):
        flops = 0.0
    if process.returncode or not math.isfinite(flops) or flops <= 0:
        last = err.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise Unavailable(
            f"This machine's speed could not be measured: {last[0][:200]}.",
            fix="Run `python -m hivenode.planning.probe` to see why.",
        )
    return flops


@dataclass(frozen=True, slots=True)
class Measured:
    """What `SelfProfile` found."""

    flops: float
    """Effective float32 FLOP/s of one worker."""
    bandwidth: float
    """Bytes/s to a peer: the configured guess."""
    guessed: bool = False
    """The probe failed, so `flops` is `GUESSED_FLOPS` a thread."""


class SelfProfile:
    """This machine's own speed, measured once and remembered in a file until the processor, its cores or the number
    of threads change.

    Args:
        path: the cache; an unreadable one is measured anew, one that cannot be written is done without.
        threads: of one worker; None takes all usable cores.
        bandwidth: bytes/s to a peer.
    """

    def __init__(self, path: Path, *, threads: int | None = None, bandwidth: float = DEFAULT_BANDWIDTH) -> None:
        self._path = path
        self._threads = threads or cores()
        self._bandwidth = bandwidth
        self._current: Measured | None = None

    @property
    def current(self) -> Measured | None:
        """None until `measure` is done."""
        return self._current

    async def measure(self) -> Measured:
        """From the cache, else by the probe. A probe that fails is logged and gives a cautious guess, so that the
        machine can still take part; the guess is not cached. Nor is what a busy machine is taken for: there threads
        that wait for each other may take a hundred times as long, while one is hardly disturbed."""
        key = f"{machine_key()} / {self._threads} threads"
        flops = self._read().get(key, 0.0)
        guessed = False
        if not (math.isfinite(flops) and flops > 0):
            try:
                flops = await measure_flops(threads=self._threads)
                alone = await measure_flops(threads=1) if self._threads > 1 else flops
            except Unavailable as error:
                flops, guessed = GUESSED_FLOPS * self._threads, True
                log.warning("speed guessed", flops=flops, reason=str(error))
            else:
                if flops >= alone:
                    self._write({key: flops})
                else:
                    log.warning("speed measured on a busy machine, again at the next start", flops=alone)
                    flops = alone
        self._current = Measured(flops, self._bandwidth, guessed)
        return self._current

    def _read(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.DecodeError):
            return {}

    def _write(self, known: dict[str, float]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(known))
            fresh.replace(self._path)
        except OSError as error:
            log.warning("speed not remembered", path=str(self._path), reason=str(error))
