"""Strategies that divide the layers: model_parallel, one batch at a time through nodes near each other, and
pipeline_parallel, small batches that follow each other through nodes anywhere.

With one batch at a time no work overlaps, but each stage pays its fixed cost once a step and keeps one batch's
activations; small batches overlap the stages and pay the fixed cost for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hivenode.planning.breakdown import fractions
from hivenode.planning.cost import Costs, Estimate, Masked, gib, human
from hivenode.planning.layers import Cut, Problem, cut
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Layer, Workload
from hivenode.spec.values import Share, Strategy

BLOCKS = 24
"""Layers are joined into at most so many blocks before they are cut, to bound the time of the search."""


def model_parallel(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """Consecutive layers on `least` to `most` nodes of one island, each batch whole."""
    strategy = Strategy.model_parallel
    if masked := _too_few_layers(strategy, workload, least):
        return masked
    islands: dict[tuple[str, ...], list[NodeProfile]] = {}
    for seed in _ranked(nodes)[:4]:
        island = [node for node in nodes if cluster.latency(seed.node, node.node) <= costs.island_seconds]
        # Near to one node is not near to each other: keep those that are, fastest first.
        close: list[NodeProfile] = []
        for node in [seed, *(n for n in _ranked(island) if n is not seed)]:
            if all(cluster.latency(node.node, other.node) <= costs.island_seconds for other in close):
                close.append(node)
        if len(close) >= least:
            islands.setdefault(tuple(sorted(node.node for node in close)), close)
    if not islands:
        return Masked(
            strategy,
            f"needs {least} nodes within {costs.island_seconds * 1000:.0f} ms of each other, and there are not so many",
        )
    found = [_cut(workload, island, cluster, least, most, 1, costs) for island in islands.values()]
    return _result(strategy, workload, found, 1, nodes, costs)


def pipeline_parallel(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """Consecutive layers on `least` to `most` nodes, batches cut into the best number of small ones (2 or more)."""
    strategy = Strategy.pipeline_parallel
    if masked := _too_few_layers(strategy, workload, least):
        return masked
    divisors = [m for m in range(2, min(workload.batch, costs.micro_batches) + 1) if workload.batch % m == 0]
    if not divisors:
        return Masked(strategy, f"a batch of {workload.batch} cannot be cut into equal smaller ones")
    quick = [(m, _cut(workload, nodes, cluster, least, most, m, costs, solves=2)) for m in divisors]
    fits = [(made[1].seconds, m) for m, made in quick if made is not None]
    m = min(fits)[1] if fits else max(divisors)
    return _result(strategy, workload, [_cut(workload, nodes, cluster, least, most, m, costs)], m, nodes, costs)


def _ranked(nodes: Sequence[NodeProfile]) -> list[NodeProfile]:
    return sorted(nodes, key=lambda node: (-node.speed, node.node))


def _too_few_layers(strategy: Strategy, workload: Workload, least: int) -> Masked | None:
    if len(workload.layers) >= least:
        return None
    return Masked(strategy, f"the model's {len(workload.layers)} layers cannot be divided over {least} nodes")


def blocks(layers: Sequence[Layer], most: int = BLOCKS) -> list[tuple[int, int]]:
    """Consecutive layers joined, the cheapest neighbours first, until there are at most `most` blocks."""
    ranges = [(i, i + 1) for i in range(len(layers))]
    weight = [layer.flops for layer in layers]
    while len(ranges) > most:
        at = min(range(len(ranges) - 1), key=lambda j: (weight[j] + weight[j + 1], j))
        ranges[at : at + 2] = [(ranges[at][0], ranges[at + 1][1])]
        weight[at : at + 2] = [weight[at] + weight[at + 1]]
    return ranges


_Made = tuple[Sequence[NodeProfile], Cut, tuple[tuple[int, int], ...]]


def _cut(
    workload: Workload,
    nodes: Sequence[NodeProfile],
    cluster: ClusterView,
    least: int,
    most: int,
    micro_batches: int,
    costs: Costs,
    solves: int = 12,
) -> _Made | None:
    """Nodes considered, their cut, and its ranges in layers (the cut's own are in blocks)."""
    most = min(most, costs.stages, len(workload.layers))
    if most < least:
        return None
    size = workload.batch / micro_batches
    joined = blocks(workload.layers)
    if len(joined) < least:
        joined = [(i, i + 1) for i in range(len(workload.layers))]
    used = _considered(nodes, max(least, costs.stages))
    speeds = [node.speed * costs.efficiency for node in used]
    flops = [math.fsum(layer.flops for layer in workload.layers[a:b]) for a, b in joined]
    parameters = [sum(layer.parameters for layer in workload.layers[a:b]) for a, b in joined]
    own = costs.base_memory_bytes + workload.data_bytes
    outputs = [workload.layers[b - 1].activation_bytes for _, b in joined]
    kept = [sum(layer.activation_bytes for layer in workload.layers[a:b]) for a, b in joined]
    problem = Problem(
        seconds=tuple(
            tuple(
                (work * size + costs.update_flops * count / micro_batches) / speed
                for work, count in zip(flops, parameters, strict=True)
            )
            for speed in speeds
        ),
        fixed_seconds=(costs.step_seconds,) * len(used),
        state_bytes=tuple(workload.bytes_per_parameter * count for count in parameters),
        kept_bytes=tuple(math.ceil(each * size) for each in kept),
        output_bytes=tuple(math.ceil(each * size) for each in outputs),
        memory_bytes=tuple(max(0, node.memory_bytes - own) for node in used),
        delay=tuple(tuple(cluster.latency(a.node, b.node) for b in used) for a in used),
        bandwidth=tuple(tuple(cluster.bandwidth(a.node, b.node) for b in used) for a in used),
        micro_batches=micro_batches,
    )
    made = cut(problem, least=least, most=most, solves=solves)
    if made is None:
        return None
    return used, made, tuple((joined[a][0], joined[b - 1][1]) for a, b in made.ranges)


def _considered(nodes: Sequence[NodeProfile], most: int) -> list[NodeProfile]:
    """The fastest, and in the last places those with the most memory: a model too large for one node needs them."""
    ranked = _ranked(nodes)
    fast = ranked[: max(1, most - most // 4)]
    roomy = sorted(ranked, key=lambda node: (-node.memory_bytes, node.node))
    return _ranked([*fast, *[node for node in roomy if node not in fast][: most - len(fast)]])


def _result(
    strategy: Strategy,
    workload: Workload,
    found: Sequence[_Made | None],
    micro_batches: int,
    nodes: Sequence[NodeProfile],
    costs: Costs,
) -> Estimate | Masked:
    made = min((each for each in found if each is not None), key=lambda each: each[1].seconds, default=None)
    if made is None:
        need = workload.parameters * workload.bytes_per_parameter
        room = sum(max(0, node.memory_bytes - costs.base_memory_bytes - workload.data_bytes) for node in nodes)
        return Masked(
            strategy,
            f"no cut of the layers fits: the model needs {gib(need)} and activations, "
            f"{len(nodes)} nodes have {gib(room)} together",
        )
    used, best, ranges = made
    work = [max(1.0, math.fsum(layer.flops for layer in workload.layers[a:b])) for a, b in ranges]
    shares = []
    for rank, (place, (a, b), weight) in enumerate(zip(best.nodes, ranges, fractions(work), strict=True)):
        layers = workload.layers[a:b]
        state = workload.bytes_per_parameter * sum(layer.parameters for layer in layers)
        kept = min(micro_batches, len(ranges) - rank) * sum(layer.activation_bytes for layer in layers)
        node = used[place]
        speed = node.speed * costs.efficiency
        compute = workload.batch * math.fsum(layer.flops for layer in layers) / speed
        shares.append(
            Share(
                node=node.node,
                rank=rank,
                weight=weight,
                step_seconds=compute
                + micro_batches * costs.step_seconds
                + costs.update_flops * sum(layer.parameters for layer in layers) / speed,
                memory_bytes=costs.base_memory_bytes
                + workload.data_bytes
                + state
                + math.ceil(kept * workload.batch / micro_batches),
                layer_range=(a, b),
            )
        )
    how = "whole batches" if micro_batches == 1 else f"{micro_batches} small batches a step"
    return Estimate(
        strategy,
        workload.steps * best.seconds,
        tuple(shares),
        f"{workload.steps} steps of {human(best.seconds)} on {len(ranges)} stages, {how}",
    )
