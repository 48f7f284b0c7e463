"""What is learned of a job's appetite when its workers run out of memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hivenode.jobs.ledger import Job
from hivenode.net.messages import Standing
from hivenode.planning.cost import Costs
from hivenode.spec.events import Shortage

LEAST = 1.1
"""By which an estimate that was too low is raised at least."""
MOST = 1000.0


def seen(standings: Mapping[str, object]) -> tuple[Shortage, ...]:
    """Of the nodes of an attempt, as they told."""
    return tuple(
        Shortage(node, told.needed_bytes)
        for node, told in sorted(standings.items())
        if isinstance(told, Standing) and told.needed_bytes
    )


def memory_factor(job: Job, costs: Costs | None = None) -> float:
    """What its workers need over what the cost model says, besides what every worker takes: each attempt was planned
    with the factor of those before it, and had too little by what was seen then."""
    base = (costs or Costs()).base_memory_bytes
    factor = 1.0
    for attempt in sorted(job.attempts.values(), key=lambda each: (each.planned, each.number)):
        planned = {share.node: share.memory_bytes for share in attempt.plan.shares}
        found = [
            (short.needed_bytes - base) / max(planned[short.node] - base, 1)
            for short in (attempt.ended.shortages if attempt.ended else ())
            if short.node in planned
        ]
        if found:
            factor = min(MOST, factor * max(LEAST, *found))
    return factor


def told(job: Job, name: Callable[[str], str]) -> str:
    """The latest of them, in a sentence; "" when there was none."""
    for attempt in sorted(job.attempts.values(), key=lambda each: (each.planned, each.number), reverse=True):
        for short in attempt.ended.shortages if attempt.ended else ():
            planned = next((share.memory_bytes for share in attempt.plan.shares if share.node == short.node), 0)
            return (
                f"Memory ran out on {name(short.node)}, where {planned >> 20} MiB were planned and "
                f"{short.needed_bytes >> 20} MiB or more are needed."
            )
    return ""
