"""Strategies that divide the layers: model_parallel, one batch at a time through nodes near each other, and
pipeline_parallel, small batches that follow each other through nodes anywhere, in one line of stages or in several
that share every batch.

With one batch at a time no work overlaps, but each stage pays its fixed cost once a step and keeps one batch's
activations; small batches overlap the stages and pay the fixed cost for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from hivenode.planning.breakdown import fractions
from hivenode.planning.cost import Costs, Estimate, Masked, gib, human
from hivenode.planning.layers import Cut, Problem, cut, measure
from hivenode.planning.lines import Lines, several
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Layer, Workload, passing
from hivenode.spec.split import counts
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
    found = [_cut(workload, Lines.single(island, cluster), least, most, 1, costs) for island in islands.values()]
    return _result(strategy, workload, found, nodes, costs)


def pipeline_parallel(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """Consecutive layers on `least` to `most` nodes, batches cut into the best number of small ones (2 or more). Where
    there are nodes enough, several lines of them may share each batch."""
    strategy = Strategy.pipeline_parallel
    options = [Lines.single(nodes, cluster), *several(nodes, cluster, min(costs.stages, len(workload.layers)))]
    options = [each for each in options if len(workload.layers) >= max(2, -(-least // each.count))]
    if masked := _too_few_layers(strategy, workload, least if not options else 2):
        return masked
    if not _divisors(workload.batch, costs):
        return Masked(strategy, f"a batch of {workload.batch} cannot be cut into equal smaller ones")
    found = [_quick(workload, lines, least, most, costs) for lines in options]
    first = [made for made in found[:1] if made is not None]
    others = [made for made in found[1:] if made is not None]
    best = [*first, *sorted(others, key=lambda made: made.seconds)[:1]]
    found += [_refined(quick, least, most, costs) for quick in best]
    return _result(strategy, workload, found, nodes, costs)


def _divisors(batch: int, costs: Costs) -> list[int]:
    """Numbers of equal small batches."""
    return [m for m in range(2, min(batch, costs.micro_batches) + 1) if batch % m == 0]


def _quick(workload: Workload, lines: Lines, least: int, most: int, costs: Costs) -> _Made | None:
    """A first cut, by a number of small batches that may not be the best."""
    part = lines.part(workload)
    divisors = _divisors(part.batch, costs)
    least, most = max(2, -(-least // lines.count)), most // lines.count
    if not divisors:
        return None
    tried = min(divisors, key=lambda m: abs(m - TRIED_BATCHES))
    for m in dict.fromkeys((tried, divisors[-1])):
        if (made := _cut(part, lines, least, most, m, costs, quick=True)) is not None:
            return made
    return None


def _refined(quick: _Made, least: int, most: int, costs: Costs) -> _Made | None:
    """One cut shows well enough what the number of small batches does; the layers are cut anew for the best number."""
    lines, part = quick.lines, quick.workload
    best = min(_divisors(part.batch, costs), key=lambda m: _seconds_with(m, quick, costs))
    return _cut(part, lines, max(2, -(-least // lines.count)), most // lines.count, best, costs)


def _small_batch_seconds(costs: Costs) -> float:
    return costs.step_seconds + 4 * costs.message_seconds


def _ranked(nodes: Sequence[NodeProfile]) -> list[NodeProfile]:
    return sorted(nodes, key=lambda node: (-node.speed, node.node))


def _too_few_layers(strategy: Strategy, workload: Workload, least: int) -> Masked | None:
    if len(workload.layers) >= least:
        return None
    count = len(workload.layers)
    what = f"the model's {count} layers cannot" if count > 1 else "the model counts as one layer, which cannot"
    return Masked(strategy, f"{what} be divided over {least} nodes")


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
    """A cut of `blocks` over `nodes`, each of which stands for one node of each of the lines.

    Attributes:
        workload: of one line.
        exchange: seconds a step in which the lines agree on gradients.
    """

    workload: Workload
    lines: Lines
    nodes: Sequence[NodeProfile]
    blocks: Sequence[tuple[int, int]]
    micro_batches: int
    cut: Cut
    exchange: float

    @property
    def seconds(self) -> float:
        return self.cut.seconds + self.exchange

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """In layers."""
        return [(self.blocks[a][0], self.blocks[b - 1][1]) for a, b in self.cut.ranges]


def _cut(
    workload: Workload,
    lines: Lines,
    least: int,
    most: int,
    micro_batches: int,
    costs: Costs,
    *,
    quick: bool = False,
) -> _Made | None:
    cluster = lines.cluster
    most = min(most, costs.stages, len(workload.layers), len(lines.nodes))
    if most < least:
        return None
    used = _considered(lines.nodes, max(least, costs.stages))
    joined = blocks(workload.layers, max(BLOCKS, least))
    problem = _problem(workload, used, joined, cluster, micro_batches, costs)
    # Trying all orders of eight nodes takes about 20 ms; a single order is enough for a first look.
    made = cut(problem, least=least, most=most, exact_nodes=0 if quick else 8, solves=1 if quick else SOLVES)
    if made is None:
        return None
    exchange = 0.0
    for place, (a, b) in zip(made.nodes, made.ranges, strict=True):
        held = sum(layer.parameters for first, last in joined[a:b] for layer in workload.layers[first:last])
        exchange = max(exchange, lines.exchange_seconds(used[place], int(4 * held * workload.wire), costs))
    return _Made(workload, lines, used, joined, micro_batches, made, exchange)


def _seconds_with(m: int, made: _Made, costs: Costs) -> float:
    """Of one step of the same cut with another number of small batches; infinite where it does not fit."""
    problem = _problem(made.workload, made.nodes, made.blocks, made.lines.cluster, m, costs)
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
        state_bytes=tuple(
            workload.bytes_per_parameter * count + passing(part) for part, count in zip(parts, parameters, strict=True)
        ),
        kept_bytes=tuple(math.ceil(size * sum(layer.kept_bytes for layer in part)) for part in parts),
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
    made = min((each for each in found if each is not None), key=lambda each: each.seconds, default=None)
    own = costs.base_memory_bytes + workload.data_bytes
    if made is None:
        need = workload.parameters * workload.bytes_per_parameter
        room = sum(max(0, node.memory_bytes - own) for node in nodes)
        return Masked(
            strategy,
            f"no cut of the layers fits in memory: the model needs {gib(need)} and its activations, "
            f"{len(nodes)} nodes have {gib(room)} together besides what each worker takes",
        )
    count, stages, m = made.lines.count, len(made.ranges), made.micro_batches
    how = "whole batches" if m == 1 else f"{m} small batches a step"
    where = f"{stages} stages, {how}"
    if count > 1:
        where = f"{count} lines of {stages} stages, {how} in each, of which {human(made.exchange)} exchange"
    return Estimate(
        strategy,
        workload.steps * made.seconds,
        _shares(made, workload, costs),
        f"{workload.steps} steps of {human(made.seconds)} on {where}",
        m,
    )


def _shares(made: _Made, workload: Workload, costs: Costs) -> tuple[Share, ...]:
    """Of all lines, each with a part of the batch by its slowest stage; equal parts where those would not fit."""
    lines = made.lines.nodes_of([made.nodes[place] for place in made.cut.nodes])
    work = [math.fsum(layer.flops for layer in workload.layers[a:b]) for a, b in made.ranges]
    paces = [min(node.speed / max(1.0, flops) for node, flops in zip(line, work, strict=True)) for line in lines]
    for parts in (fractions(paces), fractions([1.0] * len(lines))):
        batches = counts(workload.batch, parts)
        shares = [
            share
            for number, (line, part, batch) in enumerate(zip(lines, parts, batches, strict=True))
            for share in _line(made, workload, costs, number, line, part, batch)
        ]
        rooms = [node.memory_bytes for line in lines for node in line]
        if min(batches) >= 1 and all(s.memory_bytes <= room for s, room in zip(shares, rooms, strict=True)):
            break
    exact = fractions([share.weight for share in shares])
    return tuple(structs.replace(share, weight=weight) for share, weight in zip(shares, exact, strict=True))


def _line(
    made: _Made, workload: Workload, costs: Costs, number: int, line: Sequence[NodeProfile], part: float, batch: int
) -> list[Share]:
    """Shares of one line; their weights sum to its part of the batch."""
    stages, m = len(line), made.micro_batches
    parts = [workload.layers[a:b] for a, b in made.ranges]
    weights = fractions([max(1.0, math.fsum(layer.flops for layer in layers)) for layers in parts])
    own, small, coming = costs.base_memory_bytes + workload.data_bytes, math.ceil(batch / m), workload.input_shape
    shares = []
    for stage, (node, layers, span, weight) in enumerate(zip(line, parts, made.ranges, weights, strict=True)):
        parameters = sum(layer.parameters for layer in layers)
        flops = batch * math.fsum(layer.flops for layer in layers) + costs.update_flops(workload, parameters)
        kept = min(m, stages - stage) * small * sum(layer.kept_bytes for layer in layers)
        shares.append(
            Share(
                node=node.node,
                rank=number * stages + stage,
                weight=part * weight,
                step_seconds=m * _small_batch_seconds(costs) + flops / (node.speed * costs.efficiency),
                memory_bytes=own + made.workload.bytes_per_parameter * parameters + passing(layers) + kept,
                layer_range=span,
                replica=number,
                input_shape=coming,
                output_shape=layers[-1].output,
            )
        )
        coming = layers[-1].output
    return shares
