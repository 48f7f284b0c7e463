"""Strategies that divide the layers: model_parallel, one batch at a time through nodes near each other, and
pipeline_parallel, small batches that follow each other through nodes anywhere.

With one batch at a time no work overlaps, but each stage pays its fixed cost once a step and keeps one batch's
activations; small batches overlap the stages and pay the fixed cost for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hivenode.planning.breakdown import fractions
from hivenode.planning.cost import Costs, Estimate, Masked, gib, human
from hivenode.planning.layers import Cut, Problem, cut, measure
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Layer, Workload
from hivenode.spec.values import Share, Strategy

BLOCKS = 20
"""Layers are joined into at most so many blocks before they are cut, to bound the time of the search."""
SOLVES = 24
"""Orders of the nodes that are tried where there are too many to try all."""
TRIED_BATCHES = 8
"""Small batches of the first cut."""


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
    return _result(strategy, workload, found, nodes, costs)


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
    # One cut shows well enough what the number of small batches does; the layers are then cut for the best number.
    tried = min(divisors, key=lambda m: abs(m - TRIED_BATCHES))
    for m in dict.fromkeys((tried, divisors[-1])):
        quick = _cut(workload, nodes, cluster, least, most, m, costs, quick=True)
        if quick is not None:
            break
    if quick is None:
        return _result(strategy, workload, [], nodes, costs)
    best = min(divisors, key=lambda m: _seconds_with(m, quick, workload, cluster, costs))
    found = [quick, _cut(workload, nodes, cluster, least, most, best, costs)]
    return _result(strategy, workload, found, nodes, costs)


def _small_batch_seconds(costs: Costs) -> float:
    return costs.step_seconds + 4 * costs.message_seconds


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


@dataclass(frozen=True, slots=True)
class _Made:
    """A cut of `blocks` over `nodes`."""

    nodes: Sequence[NodeProfile]
    blocks: Sequence[tuple[int, int]]
    micro_batches: int
    cut: Cut

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """In layers."""
        return [(self.blocks[a][0], self.blocks[b - 1][1]) for a, b in self.cut.ranges]


def _cut(
    workload: Workload,
    nodes: Sequence[NodeProfile],
    cluster: ClusterView,
    least: int,
    most: int,
    micro_batches: int,
    costs: Costs,
    *,
    quick: bool = False,
) -> _Made | None:
    most = min(most, costs.stages, len(workload.layers))
    if most < least:
        return None
    used = _considered(nodes, max(least, costs.stages))
    joined = blocks(workload.layers, max(BLOCKS, least))
    problem = _problem(workload, used, joined, cluster, micro_batches, costs)
    # Trying all orders of eight nodes takes about 20 ms; a single order is enough for a first look.
    made = cut(problem, least=least, most=most, exact_nodes=0 if quick else 8, solves=1 if quick else SOLVES)
    return None if made is None else _Made(used, joined, micro_batches, made)


def _seconds_with(m: int, made: _Made, workload: Workload, cluster: ClusterView, costs: Costs) -> float:
    """Of one step of the same cut with another number of small batches; infinite where it does not fit."""
    problem = _problem(workload, made.nodes, made.blocks, cluster, m, costs)
    stages = len(made.cut.nodes)
    if not all(
        problem.fits(node, a, b, stages - place)
        for place, (node, (a, b)) in enumerate(zip(made.cut.nodes, made.cut.ranges, strict=True))
    ):
        return math.inf
    return measure(problem, made.cut.nodes, made.cut.ranges).seconds


def _problem(
    workload: Workload,
    nodes: Sequence[NodeProfile],
    joined: Sequence[tuple[int, int]],
    cluster: ClusterView,
    micro_batches: int,
    costs: Costs,
) -> Problem:
    size = workload.batch / micro_batches
    parts = [workload.layers[a:b] for a, b in joined]
    parameters = [sum(layer.parameters for layer in part) for part in parts]
    flops = [
        size * math.fsum(layer.flops for layer in part) + costs.update_flops(workload, count) / micro_batches
        for part, count in zip(parts, parameters, strict=True)
    ]
    own = costs.base_memory_bytes + workload.data_bytes
    return Problem(
        seconds=tuple(tuple(work / (node.speed * costs.efficiency) for work in flops) for node in nodes),
        # A small batch is dispatched forward and back, and comes and goes as a message both times.
        fixed_seconds=(_small_batch_seconds(costs),) * len(nodes),
        state_bytes=tuple(workload.bytes_per_parameter * count for count in parameters),
        kept_bytes=tuple(math.ceil(size * sum(layer.activation_bytes for layer in part)) for part in parts),
        output_bytes=tuple(math.ceil(size * part[-1].activation_bytes) for part in parts),
        memory_bytes=tuple(max(0, node.memory_bytes - own) for node in nodes),
        delay=tuple(tuple(cluster.latency(a.node, b.node) for b in nodes) for a in nodes),
        bandwidth=tuple(tuple(cluster.bandwidth(a.node, b.node) for b in nodes) for a in nodes),
        micro_batches=micro_batches,
    )


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
    nodes: Sequence[NodeProfile],
    costs: Costs,
) -> Estimate | Masked:
    made = min((each for each in found if each is not None), key=lambda each: each.cut.seconds, default=None)
    own = costs.base_memory_bytes + workload.data_bytes
    if made is None:
        need = workload.parameters * workload.bytes_per_parameter
        room = sum(max(0, node.memory_bytes - own) for node in nodes)
        return Masked(
            strategy,
            f"no cut of the layers fits in memory: the model needs {gib(need)} and its activations, "
            f"{len(nodes)} nodes have {gib(room)} together besides what each worker takes",
        )
    ranges, m = made.ranges, made.micro_batches
    parts = [workload.layers[a:b] for a, b in ranges]
    weights = fractions([max(1.0, math.fsum(layer.flops for layer in part)) for part in parts])
    shares = []
    for rank, (part, span, weight) in enumerate(zip(parts, ranges, weights, strict=True)):
        node = made.nodes[made.cut.nodes[rank]]
        parameters = sum(layer.parameters for layer in part)
        work = workload.batch * math.fsum(layer.flops for layer in part) + costs.update_flops(workload, parameters)
        kept = min(m, len(ranges) - rank) * sum(layer.activation_bytes for layer in part)
        shares.append(
            Share(
                node=node.node,
                rank=rank,
                weight=weight,
                step_seconds=m * _small_batch_seconds(costs) + work / (node.speed * costs.efficiency),
                memory_bytes=own + workload.bytes_per_parameter * parameters + math.ceil(kept * workload.batch / m),
                layer_range=span,
            )
        )
    how = "whole batches" if m == 1 else f"{m} small batches a step"
    return Estimate(
        strategy,
        workload.steps * made.cut.seconds,
        tuple(shares),
        f"{workload.steps} steps of {human(made.cut.seconds)} on {len(ranges)} stages, {how}",
        m,
    )
