"""The memory check before anything is loaded: what the headers say against what may be taken."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil

from hivenode.errors import Exhausted

MIB = 1 << 20


def default_budget() -> int:
    """Bytes this process may still take: what its RLIMIT_DATA leaves, at most what the machine has free."""
    free = int(psutil.virtual_memory().available)
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return free
    return max(0, min(free, soft - _private_bytes()))


def check(wanted: int, budget: int, what: str, fix: str) -> None:
    """Raises:
    Exhausted: `what` takes more than the budget; says both numbers.
    """
    if wanted > budget:
        raise Exhausted(f"{what} takes {wanted / MIB:,.1f} MiB; the budget is {budget / MIB:,.1f} MiB.", fix=fix)


def _private_bytes() -> int:
    """Private writable memory of this process, which is what RLIMIT_DATA limits: VmData of proc(5)."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0
