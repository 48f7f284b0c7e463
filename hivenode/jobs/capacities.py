"""What machines offer, from what they have measured of themselves."""

from __future__ import annotations

from hivenode.planning.cost import Costs
from hivenode.planning.profile import NodeProfile
from hivenode.spec.capacity import NodeCapacity


def capacity_of(profile: NodeProfile, me: str, costs: Costs | None = None) -> NodeCapacity:
    """`me`: the node that asks, to mark its own."""
    costs = costs or Costs()
    return NodeCapacity(
        node=profile.node,
        name=profile.label,
        flops=profile.speed * costs.efficiency,
        product_flops=profile.flops,
        memory_bytes=profile.memory_bytes,
        base_memory_bytes=costs.base_memory_bytes,
        cores=profile.cores,
        bandwidth=profile.bandwidth,
        running=profile.running,
        paused=profile.paused,
        self=profile.node == me,
        lines=len(profile.lines),
    )
