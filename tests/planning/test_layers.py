"""Cutting layers, against trying everything."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import pytest

from hivenode.planning.layers import EVENING, PRECISION, Problem, cut, exact, measure, ordered
from hivenode.planning.stages import blocks
from hivenode.planning.workload import Layer


def problem(rng: random.Random, nodes: int, layers: int, micro_batches: int, *, roomy: float = 1.0) -> Problem:
    speed = [rng.choice((1.0, 3.0, 10.0)) for _ in range(nodes)]
    work = [rng.uniform(0.1, 2.0) for _ in range(layers)]
    state = tuple(rng.randint(10, 100) for _ in range(layers))
    kept = tuple(rng.randint(1, 20) for _ in range(layers))
    room = tuple(int(roomy * rng.uniform(0.3, 1.2) * sum(state)) for _ in range(nodes))
    delay = tuple(tuple(0.0 if a == b else rng.choice((0.001, 0.1)) for b in range(nodes)) for a in range(nodes))
    width = tuple(tuple(rng.choice((50.0, 1000.0)) for _ in range(nodes)) for _ in range(nodes))
    return Problem(
        seconds=tuple(tuple(w / s for w in work) for s in speed),
        fixed_seconds=(0.01,) * nodes,
        state_bytes=state,
        kept_bytes=kept,
        output_bytes=kept,
        memory_bytes=room,
        delay=delay,
        bandwidth=width,
        micro_batches=micro_batches,
    )


def every_cut(p: Problem, orders: Iterator[tuple[int, ...]]) -> float:
    best = math.inf
    for order in orders:
        for inner in combinations(range(1, p.layers), len(order) - 1):
            edges = (0, *inner, p.layers)
            ranges = list(pairwise(edges))
            if all(p.fits(u, a, b, len(order) - j) for j, (u, (a, b)) in enumerate(zip(order, ranges, strict=True))):
                best = min(best, measure(p, order, ranges).seconds)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_exact_cut_is_the_best_there_is(seed: int) -> None:
    rng = random.Random(seed)
    p = problem(rng, rng.randint(2, 4), rng.randint(4, 7), rng.choice((1, 2, 8)))
    orders = (o for s in range(1, min(p.nodes, p.layers) + 1) for o in permutations(range(p.nodes), s))
    best = every_cut(p, orders)
    made = exact(p)
    if made is None:
        assert best == math.inf
        return
    assert made.seconds <= best * (1 + PRECISION) + 1e-9
    _sound(p, made.nodes, made.ranges)


@pytest.mark.parametrize("seed", range(12))
def test_one_order_is_cut_as_well_as_it_can_be(seed: int) -> None:
    rng = random.Random(100 + seed)
    p = problem(rng, rng.randint(2, 4), rng.randint(4, 7), rng.choice((1, 4)))
    order = list(range(p.nodes))
    rng.shuffle(order)
    orders = (o for s in range(1, p.nodes + 1) for o in combinations(order, s))
    best = every_cut(p, orders)
    made = ordered(p, order)
    assert (made is None) == (best == math.inf)
    if made is not None:
        assert made.seconds <= best * (1 + PRECISION) + 1e-9
        _sound(p, made.nodes, made.ranges)


@pytest.mark.parametrize("seed", range(6))
def test_with_many_nodes_the_search_comes_near(seed: int) -> None:
    p = problem(random.Random(200 + seed), 9, 16, 8, roomy=0.8)
    made, best = cut(p), exact(p)
    assert (made is None) == (best is None)
    if made is not None and best is not None:
        assert best.seconds <= made.seconds * (1 + PRECISION)
        assert made.seconds <= 2 * best.seconds
        _sound(p, made.nodes, made.ranges)


@pytest.mark.parametrize("seed", range(12))
def test_evening_out_costs_next_to_nothing(seed: int) -> None:
    rng = random.Random(300 + seed)
    p = problem(rng, rng.randint(2, 4), rng.randint(4, 12), rng.choice((1, 2, 8)))
    made, best = cut(p), exact(p)
    assert (made is None) == (best is None)
    if made is not None and best is not None:
        assert made.seconds <= best.seconds * (1 + EVENING)
        _sound(p, made.nodes, made.ranges)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_like_nodes_share_the_work_evenly_where_the_link_takes_longest(micro_batches: int) -> None:
    """Whatever is cut, a step takes as long; but the link may turn out to be quicker than was assumed."""
    p = Problem(
        seconds=((1e-3,) * 8, (1.001e-3,) * 8),
        fixed_seconds=(0.0,) * 2,
        state_bytes=(1,) * 8,
        kept_bytes=(1,) * 8,
        output_bytes=(10**6,) * 8,
        memory_bytes=(1000,) * 2,
        delay=((0.0,) * 2,) * 2,
        bandwidth=((12.5e6,) * 2,) * 2,
        micro_batches=micro_batches,
    )
    made = cut(p, least=2)
    assert made is not None
    assert [b - a for a, b in made.ranges] == [4, 4]


def test_a_slow_node_gets_no_layers() -> None:
    even = (1.0,) * 8
    p = Problem(
        seconds=(even, even, tuple(100 * s for s in even)),
        fixed_seconds=(0.0,) * 3,
        state_bytes=(1,) * 8,
        kept_bytes=(1,) * 8,
        output_bytes=(1,) * 8,
        memory_bytes=(1000,) * 3,
        delay=((0.0,) * 3,) * 3,
        bandwidth=((1e9,) * 3,) * 3,
        micro_batches=16,
    )
    made = cut(p)
    assert made is not None
    assert sorted(made.nodes) == [0, 1]
    assert made.ranges == ((0, 4), (4, 8))


def test_at_least_as_many_stages_as_asked() -> None:
    p = problem(random.Random(1), 4, 8, 4, roomy=5)
    for least in (1, 2, 3, 4):
        made = cut(p, least=least)
        assert made is not None
        assert len(made.nodes) >= least
    assert cut(p, least=5) is None


def test_layers_are_joined_without_losing_one() -> None:
    rng = random.Random(3)
    layers = [Layer(1, rng.uniform(1, 100), 1) for _ in range(57)]
    joined = blocks(layers, 20)
    assert len(joined) == 20
    assert [a for a, _ in joined] == [0, *(b for _, b in joined[:-1])]
    assert joined[-1][1] == 57


def _sound(p: Problem, nodes: tuple[int, ...], ranges: tuple[tuple[int, int], ...]) -> None:
    assert len(set(nodes)) == len(nodes)
    assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
    assert ranges[-1][1] == p.layers
    assert all(b > a for a, b in ranges)
    assert all(p.fits(u, a, b, len(nodes) - j) for j, (u, (a, b)) in enumerate(zip(nodes, ranges, strict=True)))
