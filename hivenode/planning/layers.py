"""Cutting a line of layers over unlike nodes: by cost, memory and links; slow nodes are left out.

A stage holds consecutive layers. With m small batches a step takes the way of the first through all stages (fill)
plus m - 1 times the slowest stage or link (bottleneck). For a bound t on the bottleneck, with S the nodes still to
use, u the first of them and i its first layer, and t_u, c_uv the times of stage and link:

    G_t(S, u, i) = min over v in S - {u}, k > i of  t_u(i, k) + c_uv(k) + G_t(S - {u}, v, k)
    G_t({u}, u, i) = t_u(i, L)

and the best step is the least G_t + (m - 1) t over bounds t. A node at the head of |S| stages keeps the activations
of min(m, |S|) small batches (one forward, one backward schedule). `exact` does this over all subsets of nodes;
`ordered` over the subsequences of one order of them, and `cut` searches orders by swaps where there are too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

EXACT_NODES = 12
"""`exact` takes no more: its tables grow with 2**n."""
PRECISION = 0.005
"""Results are within this part of the best that the search could find, before they are evened out."""
EVENING = 0.005
"""A cut may be slower by this part for the sake of a quicker slowest stage."""
COARSE = 0.08
"""The same while orders are compared."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be cut. Lists per layer have length L; those per node length n; links are n x n, [from][to]."""

    seconds: tuple[tuple[float, ...], ...]
    """[node][layer]: of one small batch, forward and backward."""
    fixed_seconds: tuple[float, ...]
    """[node]: of one small batch, however many layers."""
    state_bytes: tuple[int, ...]
    """[layer]: weights, gradients and optimizer state."""
    kept_bytes: tuple[int, ...]
    """[layer]: activations of one small batch, kept until its backward pass."""
    output_bytes: tuple[int, ...]
    """[layer]: output of one small batch, sent to the next stage; its gradient comes back."""
    memory_bytes: tuple[int, ...]
    """[node]: for layers and activations."""
    delay: tuple[tuple[float, ...], ...]
    """Round trip, seconds: an output goes one way forward and its gradient one way back."""
    bandwidth: tuple[tuple[float, ...], ...]
    """Bytes/s."""
    micro_batches: int = 1

    @property
    def layers(self) -> int:
        return len(self.state_bytes)

    @property
    def nodes(self) -> int:
        return len(self.memory_bytes)

    def stage_seconds(self, node: int, first: int, last: int) -> float:
        return self.fixed_seconds[node] + math.fsum(self.seconds[node][first:last])

    def link_seconds(self, source: int, target: int, layer: int) -> float:
        """To carry the output of `layer` - 1 over and its gradient back."""
        return self.delay[source][target] + 2 * self.output_bytes[layer - 1] / self.bandwidth[source][target]

    def fits(self, node: int, first: int, last: int, stages: int) -> bool:
        """Whether a node at the head of `stages` stages can hold these layers."""
        kept = min(self.micro_batches, stages) * sum(self.kept_bytes[first:last])
        return sum(self.state_bytes[first:last]) + kept <= self.memory_bytes[node]


@dataclass(frozen=True, slots=True)
class Cut:
    """Stages in order: `nodes[j]` holds layers `ranges[j]` (first, past the last)."""

    nodes: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    fill_seconds: float
    bottleneck_seconds: float
    seconds: float
    """Of one step: fill + (m - 1) bottleneck."""


def measure(problem: Problem, nodes: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Cut:
    """The times of a given cut."""
    stages = [problem.stage_seconds(u, i, k) for u, (i, k) in zip(nodes, ranges, strict=True)]
    links = [problem.link_seconds(u, v, k) for (u, v), (_, k) in zip(pairwise(nodes), ranges, strict=False)]
    fill = math.fsum(stages) + math.fsum(links)
    bottleneck = max([*stages, *links])
    return Cut(tuple(nodes), tuple(ranges), fill, bottleneck, fill + (problem.micro_batches - 1) * bottleneck)


def cut(
    problem: Problem, *, least: int = 1, most: int = EXACT_NODES, exact_nodes: int = 8, solves: int = 24
) -> Cut | None:
    """The best cut into `least` to `most` stages that is found, or None where none fits.

    Args:
        exact_nodes: up to so many nodes all subsets and orders are tried.
        solves: at most so many orders are tried otherwise.
    """
    if problem.layers < least or problem.nodes < least:
        return None
    if problem.nodes <= min(exact_nodes, EXACT_NODES):
        found = exact(problem, least=least, most=most)
    else:
        found = _searched(problem, least, most, solves)
    return found and _evened(problem, found)


def _evened(problem: Problem, found: Cut) -> Cut:
    """Of cuts that are hardly slower, by moving one bound after the other, one whose slowest stage is quicker: where
    a link is what takes longest, all cuts at like links take as long, and links may be quicker than was assumed."""
    limit, made = found.seconds * (1 + EVENING), found
    while True:
        ranges = made.ranges
        moved = [
            (*ranges[:place], (first, bound), (bound, last), *ranges[place + 2 :])
            for place, ((first, _), (_, last)) in enumerate(pairwise(ranges))
            for bound in range(first + 1, last)
        ]
        options = [measure(problem, made.nodes, each) for each in moved]
        fitting = [other for other in options if other.seconds <= limit and _fits(problem, other)]
        best = min(fitting, key=lambda other: _slowest(problem, other), default=made)
        if _slowest(problem, best) >= _slowest(problem, made):
            return made
        made = best


def _slowest(problem: Problem, made: Cut) -> float:
    return max(problem.stage_seconds(node, a, b) for node, (a, b) in zip(made.nodes, made.ranges, strict=True))


def _fits(problem: Problem, made: Cut) -> bool:
    stages = enumerate(zip(made.nodes, made.ranges, strict=True))
    return all(problem.fits(node, a, b, len(made.nodes) - place) for place, (node, (a, b)) in stages)


# --- one order of the nodes ------------------------------------------------------------------------------------


def ordered(
    problem: Problem,
    order: Sequence[int],
    *,
    least: int = 1,
    most: int = EXACT_NODES,
    precision: float = PRECISION,
) -> Cut | None:
    """The best cut whose stages are `least` to `most` of the nodes in this order (within `precision`)."""
    most = min(most, len(order))
    return _descend(problem, lambda bound: _order_pass(problem, order, least, most, bound), precision)


def _order_pass(problem: Problem, order: Sequence[int], least: int, most: int, bound: float) -> Cut | None:
    """Least fill among cuts along `order` with every stage and link under `bound`.

    best[s][j][i]: least time from layer i on, with s stages left of which order[j] is the first.
    """
    count, layers, m = len(order), problem.layers, problem.micro_batches
    times = [list(accumulate(problem.seconds[u], initial=0.0)) for u in order]
    state = list(accumulate(problem.state_bytes, initial=0))
    kept = list(accumulate(problem.kept_bytes, initial=0))
    nothing = math.inf
    tables: list[list[list[float]]] = []
    heads: list[list[list[tuple[int, int]]]] = []
    found: tuple[float, int, int] | None = None
    for s in range(1, most + 1):
        table = [[nothing] * (layers + 1) for _ in range(count)]
        head = [[(-1, -1)] * (layers + 1) for _ in range(count)]
        for j in range(count - s + 1):
            u, fixed, time, room = order[j], problem.fixed_seconds[order[j]], times[j], problem.memory_bytes[order[j]]
            row, choice = table[j], head[j]
            if s == 1:
                for i in range(layers):
                    alone = fixed + time[layers] - time[i]
                    if alone < bound and state[layers] - state[i] + kept[layers] - kept[i] <= room:
                        row[i] = alone
                continue
            after: list[tuple[float, int, int]] = []  # (link and rest, k, v's place), by k
            for k in range(1, layers - s + 2):
                rest, via = nothing, -1
                for v in range(j + 1, count - s + 2):
                    beyond = tables[s - 2][v][k]
                    if beyond < nothing:
                        link = problem.link_seconds(u, order[v], k)
                        if link < bound and link + beyond < rest:
                            rest, via = link + beyond, v
                if via >= 0:
                    after.append((rest, k, via))
            held = min(m, s)
            for i in range(layers - s + 1):
                least_time, pick = nothing, (-1, -1)
                for rest, k, via in after:
                    if k <= i:
                        continue
                    own = fixed + time[k] - time[i]
                    if own >= bound or state[k] - state[i] + held * (kept[k] - kept[i]) > room:
                        break  # both only grow with k
                    if own + rest < least_time:
                        least_time, pick = own + rest, (k, via)
                row[i], choice[i] = least_time, pick
        tables.append(table)
        heads.append(head)
        if s >= least:
            for j in range(count):
                if table[j][0] < nothing and (found is None or table[j][0] < found[0]):
                    found = (table[j][0], s, j)
    if found is None:
        return None
    _, s, j = found
    nodes, ranges, i = [], [], 0
    while s > 1:
        k, via = heads[s - 1][j][i]
        nodes.append(order[j])
        ranges.append((i, k))
        s, j, i = s - 1, via, k
    return measure(problem, [*nodes, order[j]], [*ranges, (i, layers)])


def _searched(problem: Problem, least: int, most: int, solves: int) -> Cut | None:
    """Orders by speed and by nearness to each of the fastest, then swaps of the best (2-opt), `solves` in all."""
    total = [math.fsum(each) for each in problem.seconds]
    by_speed = sorted(range(problem.nodes), key=lambda u: (total[u], u))
    by_memory = sorted(range(problem.nodes), key=lambda u: (-problem.memory_bytes[u], u))
    near = [_nearest(problem, by_speed, seed) for seed in by_speed[:2]]
    starts = [by_speed, *near, by_memory, by_speed[::-1]]
    best: tuple[float, list[int], Cut] | None = None
    tried: set[tuple[int, ...]] = set()

    def attempt(order: list[int]) -> bool:
        nonlocal best
        if tuple(order) in tried or len(tried) >= solves:
            return False
        tried.add(tuple(order))
        found = ordered(problem, order, least=least, most=most, precision=COARSE)
        if found is None or (best is not None and found.seconds >= best[0]):
            return False
        best = (found.seconds, order, found)
        return True

    for order in starts:
        attempt(order)
    improved = True
    while improved and len(tried) < solves:
        improved = False
        base = best[1] if best is not None else by_speed
        used = base[: min(len(base), most + 1)]
        for a in range(len(used)):
            for b in range(a + 1, len(base)):
                swapped = list(base)
                swapped[a], swapped[b] = swapped[b], swapped[a]
                if attempt(swapped):
                    improved = True
                    break
            if improved or len(tried) >= solves:
                break
    return ordered(problem, best[1], least=least, most=most) if best is not None else None


def _nearest(problem: Problem, nodes: Sequence[int], start: int) -> list[int]:
    """Each next node the one nearest to the one before."""
    order, left = [start], [u for u in nodes if u != start]
    while left:
        near = min(left, key=lambda v: (problem.delay[order[-1]][v], -problem.bandwidth[order[-1]][v], v))
        order.append(near)
        left.remove(near)
    return order


def _descend(problem: Problem, solve: Callable[[float], Cut | None], precision: float = PRECISION) -> Cut | None:
    """Least fill + (m - 1) bottleneck, by lowering the bound on the bottleneck until nothing better can follow.

    A pass finds the least fill f under a bound. Whatever beats the best so far under that bound has no less fill, so
    its bottleneck is below (best - f) / (m - 1), which is the next bound. A balanced cut to begin with makes that
    bite at once. The bound falls by at least `precision`, and the result is within that of the least.
    """
    rounds = problem.micro_batches - 1
    if rounds == 0:
        return solve(math.inf)
    even, longest = _bottleneck_floors(problem)
    best: Cut | None = None
    for slack in (1.2, 1.6, 2.5):
        best = solve(max(even, longest) * slack)
        if best is not None:
            break
    bound = math.inf
    while True:
        found = solve(bound)
        if found is None:
            return best
        if best is None or found.seconds < best.seconds:
            best = found
        bound = min(found.bottleneck_seconds, (best.seconds - found.fill_seconds) / rounds) / (1 + precision)
        if bound <= longest:
            return best


def _bottleneck_floors(problem: Problem) -> tuple[float, float]:
    """What the slowest stage takes if all nodes share the work evenly, and what it takes at the very least: the
    longest layer on the node that is fastest at it."""
    fastest = min(problem.fixed_seconds)
    whole = [math.fsum(each) for each in problem.seconds]
    even = 1 / math.fsum(1 / max(seconds, 1e-12) for seconds in whole) + fastest
    longest = max(min(problem.seconds[u][layer] for u in range(problem.nodes)) for layer in range(problem.layers))
    return even, longest + fastest


# --- all subsets and orders ------------------------------------------------------------------------------------


def exact(problem: Problem, *, least: int = 1, most: int = EXACT_NODES) -> Cut | None:
    """The best cut of all into `least` to `most` stages (within `PRECISION`), over every subset and order
    of at most `EXACT_NODES` nodes. Loads numpy; its tables hold 2**n n L numbers.

    Raises:
        ValueError: more nodes than that.
    """
    if problem.nodes > EXACT_NODES:
        raise ValueError(f"{problem.nodes} nodes are too many to try all orders of; at most {EXACT_NODES}")
    return _descend(problem, lambda bound: _exact_pass(problem, least, min(most, problem.nodes), bound))


def _exact_pass(problem: Problem, least: int, most: int, bound: float) -> Cut | None:
    import numpy as np

    n, layers, m = problem.nodes, problem.layers, problem.micro_batches
    time = np.concatenate([np.zeros((n, 1)), np.cumsum(np.array(problem.seconds), axis=1)], axis=1)
    state = np.concatenate([[0], np.cumsum(np.array(problem.state_bytes, dtype=np.float64))])
    kept = np.concatenate([[0], np.cumsum(np.array(problem.kept_bytes, dtype=np.float64))])
    first, last = np.arange(layers + 1)[:, None], np.arange(layers + 1)[None, :]
    room = np.array(problem.memory_bytes, dtype=np.float64)
    fixed = np.array(problem.fixed_seconds)
    stage = fixed[:, None, None] + time[:, None, :] - time[:, :, None]  # [u, i, k]
    stage = np.where((last > first)[None] & (stage < bound), stage, np.inf)
    link = np.full((n, n, layers + 1), np.inf)  # [u, v, k]
    carried = 2 * np.array(problem.output_bytes, dtype=np.float64)
    link[:, :, 1:] = np.array(problem.delay)[:, :, None] + carried / np.array(problem.bandwidth)[:, :, None]
    link[link >= bound] = np.inf

    def stages(s: int) -> Any:
        need = state[None, :] - state[:, None] + min(m, s) * (kept[None, :] - kept[:, None])
        return np.where(need[None] <= room[:, None, None], stage, np.inf)

    best = np.full((1 << n, n, layers + 1), np.inf)
    for u in range(n):
        best[1 << u, u] = stages(1)[u, :, layers]
    found: tuple[float, int, int] | None = None
    sizes = np.array([bin(group).count("1") for group in range(1 << n)])
    for s in range(1, most + 1):
        own = stages(s) if s > 1 else None
        groups = np.flatnonzero(sizes == s)
        for u in range(n):
            with_u = groups[(groups >> u) & 1 == 1]
            if own is not None:
                rest = (link[u][None] + best[with_u ^ (1 << u)]).min(axis=1)  # [group, k]
                best[with_u, u] = (own[u][None] + rest[:, None, :]).min(axis=2)
            if s >= least:
                at = int(best[with_u, u, 0].argmin())
                value = float(best[with_u[at], u, 0])
                if value < math.inf and (found is None or value < found[0]):
                    found = (value, int(with_u[at]), u)
    if found is None:
        return None
    _, group, u = found
    nodes, ranges, i = [u], [], 0
    while group != 1 << u:
        rest_of = group ^ (1 << u)
        options = stages(bin(group).count("1"))[u, i][None] + link[u] + best[rest_of]  # [v, k]
        v, k = (int(index) for index in np.unravel_index(int(options.argmin()), options.shape))
        ranges.append((i, k))
        nodes.append(v)
        group, u, i = rest_of, v, k
    return measure(problem, nodes, [*ranges, (i, layers)])
