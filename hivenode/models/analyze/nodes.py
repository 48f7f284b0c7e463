"""Which machines a model fits, for what, and how long each would take."""

from __future__ import annotations

from collections.abc import Sequence

from hivenode.models.analyze.quantities import Analysis, Fit, Method, Quantity, Together
from hivenode.spec.capacity import NodeCapacity

SLOWEST = 4.0
"""Seconds above the value by this factor are still within the range: small operations reach less of a machine."""


def place(analysis: Analysis, nodes: Sequence[NodeCapacity], source: str) -> None:
    """Fill in `nodes` and `together`. `source`: where the measurements come from, for people."""
    analysis.nodes_from = source
    analysis.nodes = tuple(_fit(analysis, node) for node in nodes)
    wanted = (("inference", analysis.inference_memory), ("training", analysis.training_memory))
    analysis.together = tuple(_together(purpose, need, nodes) for purpose, need in wanted if need is not None and nodes)


def _fit(analysis: Analysis, node: NodeCapacity) -> Fit:
    def fits(need: Quantity | None) -> bool | None:
        return None if need is None else need.value <= node.room_bytes

    return Fit(
        node=node.node,
        name=node.name,
        room_bytes=node.room_bytes,
        inference=fits(analysis.inference_memory),
        training=fits(analysis.training_memory),
        inference_seconds=_seconds(analysis.inference_flops, node),
        step_seconds=_seconds(analysis.step_flops, node),
        self=node.self,
        paused=node.paused,
    )


def _seconds(flops: Quantity | None, node: NodeCapacity) -> Quantity | None:
    """From the part of the matrix product's speed that models are seen to reach; at best they reach all of it."""
    if flops is None or node.flops <= 0 or node.product_flops <= 0:
        return None
    return Quantity(
        flops.value / node.flops,
        flops.low / node.product_flops,
        SLOWEST * flops.high / node.flops,
        "s",
        Method.rule,
        f"FLOPs over {node.flops / 1e9:.0f} GFLOP/s, measured by a matrix product and what models reach of it",
    )


def _together(purpose: str, need: Quantity, nodes: Sequence[NodeCapacity]) -> Together:
    ranked = sorted((node for node in nodes if not node.paused), key=lambda node: (-node.room_bytes, node.node))
    offered, names = 0, []
    for node in ranked:
        if node.room_bytes == 0:
            break
        offered += node.room_bytes
        names.append(node.name)
        if offered >= need.value:
            return Together(purpose, len(names), tuple(names), round(need.value), offered)
    return Together(purpose, 0, (), round(need.value), offered)
