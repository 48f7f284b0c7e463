"""How many threads a worker computes with."""

from __future__ import annotations

THREAD_FLOPS = 2e8
"""Work worth one more thread: some 20 ms of it."""


def useful_threads(flops: float, limit: int) -> int:
    """As many threads as work of `flops` at a time can feed, within the limit: on a busy machine, threads that wait for
    each other in small steps are many times slower than one."""
    return max(1, min(limit, int(flops / THREAD_FLOPS)))
