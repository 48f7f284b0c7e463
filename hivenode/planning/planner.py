"""Choosing a strategy: mask what cannot run, predict the rest, correct by experience, sometimes explore.

An epsilon-greedy choice over ln(predicted) + learned residual. Exploration is only among strategies expected within
`EXPLORED_WITHIN` of the best, so a curious choice costs little, and never among masked ones.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from hivenode.errors import HiveError, InvalidInput, Unavailable
from hivenode.planning import engines
from hivenode.planning.cost import Costs, Estimate, Masked, data_parallel, ensemble, federated, human, single_node
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.qtable import Experience, Table
from hivenode.planning.stages import model_parallel, pipeline_parallel
from hivenode.planning.workload import Workload, state_of
from hivenode.spec.events import ExperienceRecorded
from hivenode.spec.job import PlacementSpec
from hivenode.spec.values import Candidate, Engine, Plan, Precision, Strategy

EPSILON = 0.1
EXPLORED_WITHIN = 1.5
CURIOUS_RUNS = 10
"""Runs of a strategy in a row of the table after which trying it has half the chance."""
WITHOUT_INSTRUCTIONS = 8.0
"""How many times as long as float32 a product of half precision takes a processor without instructions for it (PyTorch
on AVX2 and, for float16, AVX-512: 3 for attention, 9 for dense layers, 16 for convolutions)."""
BF16_FLOPS = 5e7
"""Work of a step from which computing in bfloat16 gains more than turning numbers into it costs."""
LISTED = 4
"""Nodes named in a sentence before "and N more"."""

HALVES: Mapping[str, Callable[[NodeProfile], bool]] = {"bf16": lambda node: node.bf16, "fp16": lambda node: node.fp16}
"""Which nodes have instructions for each."""

_MANY = {
    Strategy.data_parallel: data_parallel,
    Strategy.model_parallel: model_parallel,
    Strategy.pipeline_parallel: pipeline_parallel,
    Strategy.federated: federated,
}


INSTEAD = 'data_parallel with data.source = "private:NAME" and training.sync = "local"'
"""Of what federated rounds would be, what there is."""


def plan(
    workload: Workload,
    spec_placement: PlacementSpec,
    cluster: ClusterView,
    experience: Experience,
    *,
    rng: random.Random,
    epsilon: float = EPSILON,
    runnable: frozenset[Strategy],
    exclude: Collection[str] = (),
    costs: Costs | None = None,
) -> Plan:
    """Break a job down over the nodes of a cluster.

    Args:
        workload: the job in numbers.
        spec_placement: what the person asked for: strategy, nodes, how many.
        rng: seeded by the caller, so that a choice can be repeated.
        epsilon: chance to try another strategy than the best; less where that one has been seen often.
        runnable: strategies that this build can run for the job's framework.
        exclude: ids of nodes to leave out of this plan.

    Returns:
        A plan with all five candidates. `predicted_seconds`, here and in the candidates, is the cost model's own
        prediction; what is expected after experience is that times e to the power of `residual`.

    Raises:
        InvalidInput: the strategy asked for cannot be run by this build, or the engine not by these nodes.
        Unavailable: nothing can run now; the sentence says why for each strategy.
    """
    costs = costs or Costs()
    forced = None if spec_placement.strategy == "auto" else Strategy(spec_placement.strategy)
    if forced is not None and forced in workload.masked:
        raise InvalidInput(
            f"placement.strategy: {forced} cannot run this job: {workload.masked[forced]}.",
            fix="Use 'auto', or another model or framework.",
        )
    if forced is not None and forced not in runnable:
        possible = [repr(strategy.value) for strategy in Strategy if strategy in runnable - workload.masked.keys()]
        raise InvalidInput(
            f"placement.strategy: {_not_built(forced, workload.framework)}.",
            fix=f"Use 'auto' or one of {', '.join(possible)}.",
        )
    nodes, left_out = eligible(workload, spec_placement, cluster, exclude)
    slow = [node for node in nodes if workload.precision in HALVES and not HALVES[workload.precision](node)]
    nodes = [replace(n, flops=n.flops / WITHOUT_INSTRUCTIONS) if n in slow else n for n in nodes]
    if workload.engine == Engine.torch and len(nodes) > 1 and len(engines.trusting(nodes)) < 2:
        raise InvalidInput(
            f'training.engine = "torch" is refused, since its traffic is not encrypted: {engines.distrust(nodes)}.',
            fix='Have each owner set training.trusted_subnets, or let the engine be "auto" or "exchange".',
        )
    options = [_option(s, workload, spec_placement, nodes, left_out, cluster, runnable, costs) for s in Strategy]
    state = state_of(workload, nodes, cluster)
    table = experience.table()
    reference = _reference(workload, nodes)
    candidates = tuple(_candidate(option, table, state, reference) for option in options)
    chosen, explored = _choose(options, table, state, forced, rng, epsilon)
    if chosen is None:
        raise _nothing(options, forced, left_out, workload.framework, anybody=bool(nodes))
    precision = _precision(workload, chosen, nodes)
    return Plan(
        strategy=chosen.strategy,
        shares=chosen.shares,
        predicted_seconds=chosen.seconds,
        reason=_reason(chosen, candidates, forced, explored) + _line(chosen, cluster) + _told(precision, chosen, slow),
        explored=explored,
        state=state,
        candidates=candidates,
        micro_batches=chosen.micro_batches,
        precision=precision,
        engine=chosen.engine,
        engine_reason=chosen.engine_reason or engines.unused(workload, chosen.strategy),
    )


def eligible(
    workload: Workload, placement: PlacementSpec, cluster: ClusterView, exclude: Collection[str] = ()
) -> tuple[list[NodeProfile], list[str]]:
    """Nodes that may take part, by id, and for each of the others a clause on why not."""
    wanted = set(placement.nodes)
    nodes, left_out = [], []
    for node in sorted(cluster.profiles, key=lambda profile: profile.node):
        if wanted and not wanted & {node.node, node.name}:
            left_out.append(f"{node.label} is not among placement.nodes")
        elif node.node in exclude:
            left_out.append(f"{node.label} is left out of this attempt")
        elif node.paused:
            left_out.append(f"{node.label} takes no work ({node.paused.rstrip('.')})")
        elif workload.framework not in node.frameworks:
            left_out.append(f"{node.label} does not have {workload.framework}")
        elif missing := [*_lacking(workload.libraries, node.versions), *_lacking(workload.needs, node.offers)]:
            left_out.append(_lack(node, missing[0]))
        elif not (math.isfinite(node.flops) and node.flops > 0):
            left_out.append(f"{node.label} has not measured its speed")
        else:
            nodes.append(node)
    nodes, others = _alike(workload.framework, nodes)
    left_out += others
    known = {name for node in cluster.profiles for name in (node.node, node.name)}
    left_out.extend(f"{name}, named in placement.nodes, does not answer" for name in sorted(wanted - known))
    return nodes, left_out


def _lack(node: NodeProfile, what: str) -> str:
    if what in node.unfit:
        return f"{node.label} cannot use its {what} ({node.unfit[what].rstrip('.')})"
    return f"{node.label} does not have {what}"


def _lacking(wanted: Sequence[str], there: Collection[str]) -> list[str]:
    return [name for name in wanted if name not in there]


MADE_OF: Mapping[str, tuple[str, ...]] = {
    "sklearn": ("scikit-learn",),
    "transformers": ("torch", "transformers"),
    "keras": ("keras", "tensorflow"),
}
"""Distributions that compute for a framework, where that is not the one of its name alone."""
ONE_VERSION = "one minor version has to be on all"


def versions_of(framework: str, versions: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Of each distribution that computes for it, as `version` gives them."""
    return {name: version(versions.get(name, "")) for name in MADE_OF.get(framework, (framework,))}


def _alike(framework: str, nodes: list[NodeProfile]) -> tuple[list[NodeProfile], list[str]]:
    """Nodes with the versions that most have (of equally many, the newest), and clauses on the others: versions differ
    in what they compute, and in what they can build."""
    left_out = list[str]()
    for name in MADE_OF.get(framework, (framework,)):
        nodes, clauses = _of_one_version(name, nodes)
        left_out += clauses
    return nodes, left_out


def _of_one_version(name: str, nodes: list[NodeProfile]) -> tuple[list[NodeProfile], list[str]]:
    found = {node.node: version(node.versions.get(name, "")) for node in nodes}
    counted = Counter(number for number in found.values() if number)
    if len(counted) < 2:
        return nodes, []
    usual = max(counted, key=lambda number: (counted[number], number))
    odd = [node for node in nodes if found[node.node] and found[node.node] != usual]
    spelled, have = ".".join(map(str, usual)), [node.label for node in nodes if found[node.node] == usual]
    others = have[0] if len(have) == 1 else "others"
    return [node for node in nodes if node not in odd], [
        f"{node.label} has {name} {node.versions[name]} and {others} {spelled} ({ONE_VERSION})" for node in odd
    ]


def version(text: str) -> tuple[int, ...]:
    """Major and minor number; () if there are none."""
    parts = text.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdecimal() for part in parts) else ()


def experience_of(job: str, attempt: int, plan: Plan, measured_seconds: float) -> ExperienceRecorded:
    """What a finished run teaches, to be stated in the feed of whoever ended it.

    Args:
        measured_seconds: of training, first step to last, by a run that kept all its nodes from its first step.
            A run that was cancelled or lost nodes teaches nothing about the strategy as planned.
    """
    own = next((c for c in plan.candidates if c.strategy is plan.strategy), None)
    predicted = own.predicted_seconds if own is not None and own.predicted_seconds else plan.predicted_seconds
    alone = next((c for c in plan.candidates if c.strategy is Strategy.single_node), None)
    reference = alone.predicted_seconds if alone is not None and alone.predicted_seconds else predicted
    if own is not None and own.q is not None:  # q = -(ln predicted + residual - ln reference)
        reference = predicted * math.exp(own.residual + own.q)
    return ExperienceRecorded(
        job=job,
        attempt=attempt,
        state=plan.state,
        action=list(Strategy).index(plan.strategy),
        predicted_seconds=predicted,
        measured_seconds=measured_seconds,
        reference_seconds=reference,
    )


def _option(
    strategy: Strategy,
    workload: Workload,
    placement: PlacementSpec,
    nodes: Sequence[NodeProfile],
    left_out: Sequence[str],
    cluster: ClusterView,
    runnable: frozenset[Strategy],
    costs: Costs,
) -> Estimate | Masked:
    if strategy in workload.masked:
        return Masked(strategy, workload.masked[strategy])
    if strategy not in runnable:
        return Masked(strategy, _not_built(strategy, workload.framework))
    if strategy is Strategy.single_node:
        if placement.min_nodes > 1:
            return Masked(strategy, f"the job asks for at least {placement.min_nodes} nodes (placement.min_nodes)")
        if not nodes:
            return Masked(strategy, f"no node can take part: {_listed(left_out)}")
        several = workload.private and len(nodes) > 1 and Strategy.data_parallel not in workload.masked
        if several and placement.strategy == "auto" and placement.max_nodes > 1:
            return Masked(strategy, f"{len(nodes)} nodes have {workload.private}, each its own, and all of it is meant")
        return single_node(workload, nodes, costs)
    least = max(2, placement.min_nodes)
    if placement.max_nodes < least:
        return Masked(strategy, f"needs 2 nodes, and the job allows {placement.max_nodes} (placement.max_nodes)")
    if len(nodes) < least:
        asked = " (placement.min_nodes)" if placement.min_nodes >= 2 else ""
        why = f": {_listed(left_out)}" if left_out else ""
        return Masked(strategy, f"needs {least} nodes{asked}, and {len(nodes)} can take part{why}")
    if workload.members and strategy is Strategy.model_parallel:
        return ensemble(workload, nodes, cluster, least, placement.max_nodes, costs)
    if workload.private:  # all that have some of it
        least = max(least, min(len(nodes), placement.max_nodes))
    return _MANY[strategy](workload, nodes, cluster, least, placement.max_nodes, costs)


def _choose(
    options: Sequence[Estimate | Masked],
    table: Table,
    state: tuple[int, int, int, int],
    forced: Strategy | None,
    rng: random.Random,
    epsilon: float,
) -> tuple[Estimate | None, bool]:
    feasible = [o for o in options if isinstance(o, Estimate) and forced in (None, o.strategy)]
    if not feasible:
        return None, False
    scores = {o.strategy: math.log(o.seconds) + table.correction(state, o.strategy).residual for o in feasible}
    best = min(feasible, key=lambda o: scores[o.strategy])  # the first of equals, in the order of Strategy
    near = [
        o for o in feasible if o is not best and scores[o.strategy] - scores[best.strategy] <= math.log(EXPLORED_WITHIN)
    ]
    if near:
        other = rng.choice(near)
        seen = table.correction(state, other.strategy).visits
        if rng.random() < epsilon * CURIOUS_RUNS / (CURIOUS_RUNS + seen):
            return other, True
    return best, False


def _precision(workload: Workload, chosen: Estimate, nodes: Sequence[NodeProfile]) -> Precision:
    """One for all of them. Stages pass float32 to each other, so they keep to it."""
    if workload.precision != "auto":
        return workload.precision
    taking = {share.node for share in chosen.shares}
    whole = chosen.strategy not in (Strategy.model_parallel, Strategy.pipeline_parallel)
    able = whole and workload.framework != "sklearn" and all(node.bf16 for node in nodes if node.node in taking)
    large = workload.batch * workload.flops_per_sample >= BF16_FLOPS
    return "bf16" if able and large else "fp32"


def _told(precision: Precision, chosen: Estimate, slow: Sequence[NodeProfile]) -> str:
    """What it computes in, and whose processor is slow in that."""
    if precision == "fp32":
        return ""
    taking = {share.node for share in chosen.shares}
    names = [node.label for node in slow if node.node in taking]
    if not names:
        return f" It computes in {precision}."
    have = "has" if len(names) == 1 else "have"
    return (
        f" It computes in {precision}, for which {_listed(names)} {have} no instructions: planned there as "
        f"{WITHOUT_INSTRUCTIONS:.0f} times as slow as fp32."
    )


def _line(chosen: Estimate, cluster: ClusterView) -> str:
    """What the narrowest line between those that take part is taken to carry, and whether that was measured."""
    ids = [share.node for share in chosen.shares]
    if len(ids) < 2:
        return ""
    bandwidth, a, b = min((cluster.bandwidth(a, b), a, b) for a, b in combinations(ids, 2))
    names = {node.node: node.label for node in cluster.profiles}
    how = "as measured" if cluster.measured(a, b) else "which is a guess, as it was not measured yet"
    which = "line between them" if len(ids) == 2 else f"slowest line between them, {names[a]} to {names[b]},"
    return f" The {which} is taken to carry {bandwidth / 1e6:.3g} MB/s, {how}."


def _reference(workload: Workload, nodes: Sequence[NodeProfile]) -> float:
    """The fastest node's bare arithmetic, seconds; 1 where there is no node."""
    fastest = max((node.speed for node in nodes), default=0.0)
    return workload.steps * workload.batch * workload.flops_per_sample / fastest if fastest > 0 else 1.0


def _candidate(
    option: Estimate | Masked, table: Table, state: tuple[int, int, int, int], reference: float
) -> Candidate:
    correction = table.correction(state, option.strategy)
    if isinstance(option, Masked):
        return Candidate(option.strategy, False, f"{option.strategy.value}: {option.reason}", visits=correction.visits)
    return Candidate(
        strategy=option.strategy,
        feasible=True,
        reason=option.reason,
        nodes=len(option.shares),
        predicted_seconds=option.seconds,
        residual=correction.residual,
        visits=correction.visits,
        q=table.q(state, option.strategy, option.seconds, reference),
    )


def expected_seconds(candidate: Candidate) -> float:
    """Predicted seconds after experience; infinite for a masked candidate."""
    if candidate.predicted_seconds is None:
        return math.inf
    return candidate.predicted_seconds * math.exp(candidate.residual)


def _reason(chosen: Estimate, candidates: Sequence[Candidate], forced: Strategy | None, explored: bool) -> str:
    own = next(c for c in candidates if c.strategy is chosen.strategy)
    others = sorted((c for c in candidates if c.feasible and c is not own), key=expected_seconds)
    count = len(chosen.shares)
    text = f"{chosen.strategy.value} on {count} node{'s' if count != 1 else ''}, about {human(expected_seconds(own))}"
    if abs(own.residual) >= math.log(1.02):
        text += f" (cost model {human(chosen.seconds)}, experience makes it x{math.exp(own.residual):.2f})"
    if forced is not None:
        return f"{text}; the job asks for this strategy."
    if explored:
        return f"{text}; tried to learn: {others[0].strategy.value} is expected to take {_expected(others[0])}."
    if others:
        return f"{text}; next is {others[0].strategy.value} with {_expected(others[0])}."
    return f"{text}; no other strategy can run."


def _expected(candidate: Candidate) -> str:
    return human(expected_seconds(candidate))


def _not_built(strategy: Strategy, framework: str) -> str:
    if strategy is Strategy.federated:
        return f"federated rounds are not available in this version; {INSTEAD} is"
    return f"{strategy.value} is not available for {framework} jobs in this version"


def _listed(clauses: Sequence[str]) -> str:
    if not clauses:
        return "no member with the worker role answers"
    more = len(clauses) - LISTED
    return ", ".join(clauses[:LISTED]) + (f" and {more} more" if more > 0 else "")


EXTRAS: Mapping[str, str] = {"keras": "tensorflow"}
"""What pip calls a framework, where that is not its name."""


def _nothing(
    options: Sequence[Estimate | Masked],
    forced: Strategy | None,
    left_out: Sequence[str],
    framework: str,
    *,
    anybody: bool,
) -> HiveError:
    masked = [option for option in options if isinstance(option, Masked) and forced in (None, option.strategy)]
    why = "; ".join(f"{option.strategy.value}: {option.reason}" for option in masked)
    text = f"No strategy can run this job now: {why}." if forced is None else f"This job cannot run now: {why}."
    if not anybody:
        text = f"No node can take part in this job now: {_listed(left_out)}."
    fixes = []
    if any("memory" in option.reason for option in masked):
        fixes.append("free memory, add a node with more, or use a smaller batch, model or optimizer")
    if any("placement.min_nodes" in option.reason for option in masked):
        fixes.append("lower placement.min_nodes or add nodes")
    if any("placement.max_nodes" in option.reason for option in masked):
        fixes.append("raise placement.max_nodes")
    if forced is not None and any("be divided over" in option.reason for option in masked):
        fixes.append("set placement.strategy to single_node or data_parallel, or use a model of more layers")
    if any(ONE_VERSION in clause for clause in left_out):
        fixes.append("install the same version on all nodes")
    elif any(clause.endswith(f" does not have {framework}") for clause in left_out):
        fixes.append(f"install {framework} there: pip install 'hivenode[{EXTRAS.get(framework, framework)}]'")
    elif left_out:
        fixes.append("see `hivenode status` for why nodes take no part")
    if not fixes:
        fixes.append("add nodes, or let placement.strategy be 'auto'")
    fix = "; ".join(fixes)
    return Unavailable(text[:1900], fix=fix[0].upper() + fix[1:] + ".")
