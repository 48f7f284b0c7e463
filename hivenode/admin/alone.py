"""What the command line can find out where no daemon runs: the same rooms, without the endpoint."""

from __future__ import annotations

import asyncio
import platform
import tempfile
import time
from pathlib import Path

from hivenode.jobs import tracing
from hivenode.jobs.capacities import capacity_of
from hivenode.net.widths import Widths
from hivenode.planning.profile import DEFAULT_BANDWIDTH, NodeProfile, SelfProfile, cores, free_memory_bytes
from hivenode.spec.capacity import NodeCapacity
from hivenode.spec.tracing import TraceNumbers, TraceOrder


def this_machine(home: Path) -> NodeCapacity:
    """Of the machine this runs on: measured within a second, or as the daemon that runs in `home` at times has
    measured and remembered it."""
    with tempfile.TemporaryDirectory() as elsewhere:
        kept = home if home.is_dir() else Path(elsewhere)
        own = SelfProfile(kept / "profile.json")
        measured = asyncio.run(own.measure())
    widths, now = Widths(), time.time()
    widths.recall(own.lines, now)
    lines = {peer: bandwidth for peer, (bandwidth, _) in widths.known(now).items()}
    profile = NodeProfile(
        node="",
        flops=measured.flops,
        memory_bytes=free_memory_bytes(),
        cores=cores(),
        bandwidth=max(lines.values(), default=DEFAULT_BANDWIDTH),
        frameworks=(),
        lines=lines,
        name=platform.node() or "this machine",
    )
    return capacity_of(profile, "")


def trace(order: TraceOrder) -> TraceNumbers:
    """Raises HiveError: why it could not be traced."""
    return asyncio.run(tracing.trace(order))
