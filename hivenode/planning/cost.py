"""How long a job would take and what memory it would need, by strategy: formulas over measured speeds and links.

Predictions are of training itself, first step to last; starting workers and loading data cost the same whatever
the strategy. A batch is divided by water-filling: every node gets as many samples as it finishes by a common time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from hivenode.planning import engines
from hivenode.planning.breakdown import fractions
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.workload import Workload, passing
from hivenode.spec.split import split
from hivenode.spec.values import Engine, Share, Strategy

GIB = 2**30
ALIKE_LINES = 4.0
"""Lines of one node that differ by less than this factor count as alike."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Constants of the cost model. What they get wrong is what experience corrects."""

    efficiency: float = 0.6
    """Part of the matrix product speed that training reaches; 0.5 to 0.9 was measured of a thread (MLP, CNN)."""
    step_seconds: float = 0.001
    """A step's fixed cost on one node: interpreter, dispatch, fetching the batch."""
    exchange_seconds: float = 0.002
    """Fixed cost of an exchange of gradients."""
    message_seconds: float = 0.0002
    """Processor time of one message at one end; in an exchange each node sends and receives 2(n-1)."""
    sgd_flops: float = 12.0
    """What one parameter's update costs, as FLOPs: it is memory that takes the time, so more than the arithmetic."""
    adam_flops: float = 100.0
    hidden: float = 0.5
    """Part of a step's arithmetic during which torch.distributed averages what is computed already."""
    overlap: float = 1.0
    """g of (compute^g + exchange^g)^(1/g): 1 none, large means that the shorter hides behind the longer."""
    base_memory_bytes: int = 400 * 2**20
    """Of a worker before it holds anything: interpreter and framework."""
    federated_loss: float = 1.3
    """Samples needed by local steps over those needed by synchronous ones, for the same quality."""
    federated_steps: int = 16
    """Steps' worth of samples that all nodes together take between two averages."""
    island_seconds: float = 0.005
    """Round trip up to which two nodes count as near each other; model_parallel stays within such an island."""
    micro_batches: int = 32
    """Most small batches that pipeline_parallel cuts a batch into."""
    stages: int = 8
    """Most nodes in one line of stages."""

    def update_flops(self, workload: Workload, parameters: int) -> float:
        """Of the optimizer, for so many parameters, per step."""
        return (self.sgd_flops if workload.optimizer == "sgd" else self.adam_flops) * parameters


@dataclass(frozen=True, slots=True)
class Estimate:
    """A strategy that can run. `seconds` is the cost model's own prediction."""

    strategy: Strategy
    seconds: float
    shares: tuple[Share, ...]
    reason: str
    micro_batches: int = 1
    engine: Engine = Engine.exchange
    engine_reason: str = ""


@dataclass(frozen=True, slots=True)
class Masked:
    """A strategy that cannot run, and why."""

    strategy: Strategy
    reason: str


def gib(amount: float) -> str:
    return f"{amount / GIB:.2f} GiB" if amount < 10 * GIB else f"{amount / GIB:.0f} GiB"


def human(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def sample_seconds(workload: Workload, node: NodeProfile, costs: Costs) -> float:
    """Forward and backward of one sample."""
    return workload.flops_per_sample / (node.speed * costs.efficiency)


def fixed_seconds(workload: Workload, node: NodeProfile, costs: Costs) -> float:
    """What a step costs however few samples it has: overhead and the optimizer."""
    return costs.step_seconds + costs.update_flops(workload, workload.parameters) / (node.speed * costs.efficiency)


def fixed_memory(workload: Workload, costs: Costs, *, exchanging: bool) -> int:
    """Bytes a worker that holds the whole model needs besides activations: framework, data, weights, gradients,
    optimizer state, a copy of it to write as a checkpoint and, where it exchanges, what that takes."""
    model = workload.parameters * replace(workload, exchanging=exchanging).bytes_per_parameter
    return costs.base_memory_bytes + workload.data_bytes + model + workload.copy_bytes + passing(workload.layers)


def single_node(workload: Workload, nodes: Sequence[NodeProfile], costs: Costs) -> Estimate | Masked:
    """The node that is done first, of those where the job fits. `nodes` must not be empty."""
    need = fixed_memory(workload, costs, exchanging=False) + workload.batch * workload.activation_bytes_per_sample
    fitting = [node for node in nodes if node.memory_bytes >= need]
    if not fitting:
        largest = max(nodes, key=lambda node: (node.memory_bytes, node.node))
        return Masked(
            Strategy.single_node,
            f"needs {gib(need)} of memory on one node; the most is {gib(largest.memory_bytes)} on {largest.label}",
        )
    best = min(fitting, key=lambda node: (_alone(workload, node, costs), node.node))
    step = _alone(workload, best, costs)
    return Estimate(
        Strategy.single_node,
        workload.steps * step,
        (Share(best.node, 0, 1.0, step, need, None, 0, workload.input_shape, output_shape(workload)),),
        f"{workload.steps} steps of {human(step)} on {best.label}, the fastest that fits",
    )


def output_shape(workload: Workload) -> tuple[int, ...]:
    """Of the whole model, for one sample."""
    return workload.layers[-1].output if workload.layers else ()


def _alone(workload: Workload, node: NodeProfile, costs: Costs) -> float:
    return fixed_seconds(workload, node, costs) + workload.batch * sample_seconds(workload, node, costs)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a node takes to its part of a batch."""

    fixed: float
    """Seconds before the first sample."""
    sample: float
    """Seconds per sample."""
    most: int
    """Samples that fit in memory."""


def fill(batch: int, paces: Sequence[Pace]) -> tuple[int, ...] | None:
    """Whole samples for each node, at least 1, so that the last to finish is as early as can be (water-filling).

    Bisects the common finishing time for real-valued parts, then hands out what rounding down left, sample by
    sample, to whoever finishes it first. None where the batch is smaller than the nodes are many, or does not fit.
    """
    if batch < len(paces) or sum(pace.most for pace in paces) < batch or any(pace.most < 1 for pace in paces):
        return None
    low, high = 0.0, max(pace.fixed + batch * pace.sample for pace in paces)
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        if sum(min(max((middle - p.fixed) / p.sample, 0.0), p.most) for p in paces) >= batch:
            high = middle
        else:
            low = middle
    given = [max(1, min(int((low - p.fixed) / p.sample), p.most)) for p in paces]
    left = batch - sum(given)
    while left > 0:
        open_ = [i for i, pace in enumerate(paces) if given[i] < pace.most]
        i = min(open_, key=lambda i: (paces[i].fixed + (given[i] + 1) * paces[i].sample, i))
        given[i] += 1
        left -= 1
    while left < 0:
        i = max(
            (i for i in range(len(given)) if given[i] > 1),
            key=lambda i: (paces[i].fixed + given[i] * paces[i].sample, i),
        )
        given[i] -= 1
        left += 1
    return tuple(given)


def exchange_time(count: int, gradient_bytes: int, round_trip: float, bandwidth: float, costs: Costs) -> float:
    """Seconds of one exchange in which each of `count` nodes reduces a slice for all: everybody sends and receives
    2(n-1)/n of the vector in 2(n-1) messages, in two phases of one way each.

    Args:
        round_trip: the longest between any two, seconds.
        bandwidth: the least of any, bytes/s.
    """
    messages = 2 * (count - 1)
    return (
        costs.exchange_seconds
        + 2 * messages * costs.message_seconds
        + round_trip
        + messages / count * gradient_bytes / bandwidth
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that work together, with the worst of the links between them."""

    nodes: tuple[NodeProfile, ...]
    round_trip: float
    bandwidth: float


def _groups(nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs) -> list[_Group]:
    """Sets of nodes worth a prediction: the n fastest for each n, of all nodes, of each island of near ones, of those
    that one has wide lines to, and of those with better links. A slow or far node joins only where some set with it is
    fastest."""
    ranked = sorted(nodes, key=lambda node: (-node.speed, node.node))
    pools: list[list[NodeProfile]] = [ranked]
    pools.extend(
        [node for node in ranked if cluster.latency(seed.node, node.node) <= costs.island_seconds]
        for seed in ranked[:4]
    )
    for seed in ranked[:4]:
        lines = {node.node: cluster.bandwidth(seed.node, node.node) for node in ranked if node is not seed}
        wide = max(lines.values(), default=0.0) / ALIKE_LINES
        pools.append([node for node in ranked if lines.get(node.node, math.inf) >= wide])
    width = {node.node: cluster.bandwidth(node.node, node.node) for node in ranked}
    widths = sorted(set(width.values()))
    pools.extend(
        [node for node in ranked if width[node.node] >= widths[len(widths) * quarter // 4]] for quarter in (1, 2, 3)
    )
    groups: dict[tuple[str, ...], _Group] = {}
    for pool in {tuple(node.node for node in pool): pool for pool in pools}.values():
        round_trip, bandwidth = 0.0, math.inf
        for count, node in enumerate(pool[:most], start=1):
            for other in pool[: count - 1]:
                round_trip = max(round_trip, cluster.latency(node.node, other.node))
                bandwidth = min(bandwidth, cluster.bandwidth(node.node, other.node))
            if count >= least:
                members = tuple(pool[:count])
                groups.setdefault(tuple(n.node for n in members), _Group(members, round_trip, bandwidth))
    return list(groups.values())


def _splits(
    workload: Workload, groups: Iterable[_Group], paces: Mapping[str, Pace]
) -> Iterator[tuple[_Group, tuple[int, ...], float]]:
    """Of each group that a batch fits: samples for each of its nodes, and the seconds that the slowest takes."""
    for group in groups:
        own = [paces[node.node] for node in group.nodes]
        given = fill(workload.batch, own)
        if given is not None:
            yield group, given, max(pace.fixed + count * pace.sample for pace, count in zip(own, given, strict=True))


def data_parallel(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """The whole model on each of `least` to `most` nodes, gradients summed after every step."""
    fixed = fixed_memory(workload, costs, exchanging=True)
    need = fixed + workload.activation_bytes_per_sample
    fitting = [node for node in nodes if node.memory_bytes >= need]
    strategy = Strategy.data_parallel
    if len(fitting) < least:
        return _too_little_memory(strategy, nodes, len(fitting), least, need)
    if workload.batch < least:
        return Masked(strategy, f"a batch of {workload.batch} cannot be divided over {least} nodes")
    if workload.engine == Engine.torch and len(trusted := engines.trusting(fitting)) < len(fitting):
        if len(trusted) < least:
            why = engines.distrust(fitting)
            return Masked(strategy, f"the job asks for torch.distributed (training.engine), and {why}")
        fitting = trusted
    paces = {node.node: _pace(workload, node, fixed, costs) for node in fitting}
    groups = _groups(fitting, cluster, least, min(most, workload.batch), costs)
    best: tuple[float, int, _Group, tuple[int, ...], _Averaging] | None = None
    for group, given, compute in _splits(workload, groups, paces):
        averaging = _averaging(workload, group, len(given), compute, costs)
        g = costs.overlap
        step = (compute**g + averaging.seconds**g) ** (1 / g)
        if best is None or (step, len(given)) < best[:2]:
            best = (step, len(given), group, given, averaging)
    if best is None:
        room = sum(pace.most for pace in sorted(paces.values(), key=lambda p: -p.most)[:most])
        return Masked(
            strategy, f"a batch of {workload.batch} needs more memory than there is: {room} samples of it fit at once"
        )
    step, count, group, given, averaging = best
    shares = _shares(group.nodes, given, [paces[node.node] for node in group.nodes], fixed, workload)
    ours, theirs = human(averaging.ours), human(averaging.theirs)
    return Estimate(
        strategy,
        workload.steps * step,
        shares,
        f"{workload.steps} steps of {human(step)} on {count} nodes, of which {human(averaging.seconds)} exchange",
        engine=averaging.engine,
        engine_reason=engines.reason(workload, group.nodes, averaging.engine, ours, theirs),
    )


def ensemble(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """The members of an ensemble divided over nodes that all have the data, and exchanged once. `layer_range` says
    which are whose."""
    found = data_parallel(workload, nodes, cluster, least, min(most, workload.members), costs)
    if isinstance(found, Masked):
        return Masked(Strategy.model_parallel, found.reason)
    mine = split(workload.members, [share.weight for share in found.shares])
    shares = tuple(
        msgspec.structs.replace(share, layer_range=(own.start, own.stop))
        for share, own in zip(found.shares, mine, strict=True)
    )
    reason = f"{workload.members} parts of the ensemble fitted on {len(shares)} nodes, and put together once"
    return Estimate(Strategy.model_parallel, found.seconds, shares, reason)


@dataclass(frozen=True, slots=True)
class _Averaging:
    """What averaging adds to a step, seconds: by the exchange, and by torch.distributed."""

    ours: float
    theirs: float
    engine: Engine

    @property
    def seconds(self) -> float:
        return self.theirs if self.engine is Engine.torch else self.ours


def _averaging(workload: Workload, group: _Group, count: int, compute: float, costs: Costs) -> _Averaging:
    """torch.distributed starts while the rest of the gradient is computed: only what that does not hide counts, and at
    least one empty exchange."""
    whole = exchange_time(count, workload.wire_bytes, group.round_trip, group.bandwidth, costs)
    empty = exchange_time(count, 0, group.round_trip, group.bandwidth, costs)
    ours = max(0.0, whole - workload.overlap * compute) * workload.fragments / workload.sync_every
    ours += 2 * workload.normalised * empty  # on the way forward and back
    theirs = max(empty, whole - costs.hidden * compute)
    faster = workload.engine == Engine.torch or theirs < ours
    may = workload.engine != Engine.exchange and not engines.barred(workload, group.nodes)
    return _Averaging(ours, theirs, Engine.torch if may and faster else Engine.exchange)


def federated(
    workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView, least: int, most: int, costs: Costs
) -> Estimate | Masked:
    """The whole model on each of `least` to `most` nodes, weights averaged every so many local steps. Compared on
    time to equal quality: local steps need `federated_loss` times the samples."""
    fixed = fixed_memory(workload, costs, exchanging=True)
    need = fixed + workload.activation_bytes_per_sample
    fitting = [node for node in nodes if node.memory_bytes >= need]
    strategy = Strategy.federated
    if len(fitting) < least:
        return _too_little_memory(strategy, nodes, len(fitting), least, need)
    if workload.samples < least or workload.batch < least:
        return Masked(strategy, f"{workload.batch} samples cannot be divided over {least} nodes")
    paces = {node.node: _pace(workload, node, fixed, costs) for node in fitting}
    local = min(costs.federated_steps, workload.steps)
    rounds = costs.federated_loss * workload.steps / local
    groups = _groups(fitting, cluster, least, min(most, workload.batch), costs)
    best: tuple[float, int, _Group, tuple[int, ...]] | None = None
    for group, given, compute in _splits(workload, groups, paces):
        average = exchange_time(len(given), workload.gradient_bytes, group.round_trip, group.bandwidth, costs)
        seconds = rounds * (local * compute + average)
        if best is None or (seconds, len(given)) < best[:2]:
            best = (seconds, len(given), group, given)
    if best is None:
        return Masked(strategy, f"a batch of {workload.batch} needs more memory than there is")
    seconds, count, group, given = best
    shares = _shares(group.nodes, given, [paces[node.node] for node in group.nodes], fixed, workload)
    return Estimate(
        strategy,
        seconds,
        shares,
        f"{math.ceil(rounds)} rounds of {local} local steps on {count} nodes, "
        f"with {costs.federated_loss:.1f} times the samples for the same quality",
    )


def _pace(workload: Workload, node: NodeProfile, fixed: int, costs: Costs) -> Pace:
    activation = max(1, workload.activation_bytes_per_sample)
    return Pace(
        fixed_seconds(workload, node, costs),
        max(sample_seconds(workload, node, costs), 1e-12),
        max(0, node.memory_bytes - fixed) // activation,
    )


def _shares(
    nodes: Sequence[NodeProfile], given: Sequence[int], paces: Sequence[Pace], fixed: int, workload: Workload
) -> tuple[Share, ...]:
    return tuple(
        Share(
            node=node.node,
            rank=rank,
            weight=weight,
            step_seconds=pace.fixed + count * pace.sample,
            memory_bytes=fixed + count * workload.activation_bytes_per_sample,
            input_shape=workload.input_shape,
            output_shape=output_shape(workload),
        )
        for rank, (node, count, pace, weight) in enumerate(zip(nodes, given, paces, fractions(given), strict=True))
    )


def _too_little_memory(strategy: Strategy, nodes: Sequence[NodeProfile], fitting: int, least: int, need: int) -> Masked:
    largest = max(nodes, key=lambda node: (node.memory_bytes, node.node))
    return Masked(
        strategy,
        f"needs {gib(need)} of memory on each of {least} nodes; {fitting} of {len(nodes)} have it, "
        f"the most is {gib(largest.memory_bytes)} on {largest.label}",
    )
