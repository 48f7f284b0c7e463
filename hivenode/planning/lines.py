"""Several lines of stages that share every batch: data parallelism over pipelines.

Nodes are put into classes of like ones, as many in each as there are lines; the layers are cut over the classes as over
single nodes, each class counting as its slowest and smallest member, so that the same cut serves every line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from hivenode.planning.cost import Costs, exchange_time
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Workload


@dataclass(frozen=True, slots=True)
class Lines:
    """A way to put nodes into lines.

    Attributes:
        count: lines.
        nodes: one for each class, with its first member's id and the least that any member has.
        cluster: the worst links between classes.
        members: of each class, by that id, one for each line; the fastest lines first.
        within: the longest round trip, seconds, and least bandwidth, bytes/s, between members of a class.
    """

    count: int
    nodes: tuple[NodeProfile, ...]
    cluster: ClusterView
    members: dict[str, tuple[NodeProfile, ...]]
    within: dict[str, tuple[float, float]]

    @classmethod
    def single(cls, nodes: Sequence[NodeProfile], cluster: ClusterView) -> Lines:
        """One line of any of these nodes."""
        return cls(1, tuple(nodes), cluster, {node.node: (node,) for node in nodes}, {})

    def part(self, workload: Workload) -> Workload:
        """What one line has to do in a step, where all do the same."""
        if self.count == 1:
            return workload
        return replace(workload, batch_size=math.ceil(workload.batch / self.count), exchanging=True)

    def nodes_of(self, line: Sequence[NodeProfile]) -> list[tuple[NodeProfile, ...]]:
        """The nodes of each line, given the classes along one."""
        return list(zip(*(self.members[each.node] for each in line), strict=True))

    def exchange_seconds(self, stage: NodeProfile, gradient_bytes: int, costs: Costs) -> float:
        """In which the members of a class average a gradient."""
        if self.count == 1:
            return 0.0
        return exchange_time(self.count, gradient_bytes, *self.within[stage.node], costs)


def several(nodes: Sequence[NodeProfile], cluster: ClusterView, stages: int) -> Iterator[Lines]:
    """Ways to make two lines or more, of 2 to `stages` nodes: the most lines of each length, like nodes by speed and,
    where that makes another order, by memory."""
    counts = {len(nodes) // length for length in range(2, stages + 1)}
    orders = [
        sorted(nodes, key=lambda node: (-node.speed, -node.memory_bytes, node.node)),
        sorted(nodes, key=lambda node: (-node.memory_bytes, -node.speed, node.node)),
    ]
    if orders[0] == orders[1]:
        del orders[1]
    for count, order in product(sorted(count for count in counts if count > 1), orders):
        yield _grouped(order, count, cluster)


def _grouped(order: Sequence[NodeProfile], count: int, cluster: ClusterView) -> Lines:
    classes = [tuple(order[at : at + count]) for at in range(0, len(order) - count + 1, count)]
    members = {group[0].node: tuple(sorted(group, key=lambda node: (-node.speed, node.node))) for group in classes}
    slowest = tuple(
        replace(
            group[0],
            flops=min(node.speed for node in group),
            running=0,
            memory_bytes=min(node.memory_bytes for node in group),
            bandwidth=min(node.bandwidth for node in group),
            lines={
                other[0].node: min(cluster.bandwidth(x.node, y.node) for x, y in product(group, other))
                for other in classes
                if other is not group
            },
        )
        for group in classes
    )
    far = {
        (a[0].node, b[0].node): max(cluster.latency(x.node, y.node) for x, y in product(a, b))
        for a, b in combinations(classes, 2)
    }
    within = {
        group[0].node: (
            max(cluster.latency(x.node, y.node) for x, y in combinations(group, 2)),
            min(cluster.bandwidth(x.node, y.node) for x, y in combinations(group, 2)),
        )
        for group in classes
    }
    return Lines(count, slowest, ClusterView(slowest, far), members, within)
