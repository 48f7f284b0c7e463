"""The cost model, against figures worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.jobs.proposals import describe
from hivenode.planning.breakdown import fractions
from hivenode.planning.cost import (
    Costs,
    Estimate,
    Masked,
    Pace,
    data_parallel,
    exchange_time,
    federated,
    fill,
    single_node,
)
from hivenode.planning.stages import model_parallel, pipeline_parallel
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.split import counts
from hivenode.spec.training import TrainingSpec
from tests.planning.cluster import GIB, cluster, node, workload

PLAIN = Costs(
    efficiency=1.0,
    step_seconds=0.0,
    exchange_seconds=0.0,
    message_seconds=0.0,
    sgd_flops=0.0,
    adam_flops=0.0,
    base_memory_bytes=0,
    federated_loss=1.0,
)
"""Nothing but arithmetic and links."""


def estimate(made: Estimate | Masked) -> Estimate:
    assert isinstance(made, Estimate), made
    return made


def test_single_node_is_arithmetic_on_the_fastest_that_fits() -> None:
    # 100 steps of 64 samples at 1 GFLOP on 100 GFLOP/s.
    made = estimate(single_node(workload(), [node(0, 50), node(1, 100), node(2, 400, memory_gib=0.001)], PLAIN))
    assert made.seconds == pytest.approx(64.0)
    assert [share.node for share in made.shares] == [node(1).node]
    assert made.shares[0].weight == 1.0


def test_a_busy_node_is_slower_by_what_it_runs() -> None:
    made = estimate(single_node(workload(), [node(0, 100, running=2), node(1, 40)], PLAIN))
    assert made.shares[0].node == node(1).node


@pytest.mark.parametrize(("optimizer", "per_parameter"), [("sgd", 8), ("adam", 16), ("adamw", 16)])
def test_memory_counts_the_optimizer(optimizer: str, per_parameter: int) -> None:
    job = workload(optimizer=optimizer)
    made = estimate(single_node(job, [node(0)], PLAIN))
    assert made.shares[0].memory_bytes == per_parameter * 1_000_000 + 64 * 100_000 + 6400 * 100


def test_too_little_memory_is_told_in_numbers() -> None:
    made = single_node(workload(parameters=10**9, optimizer="adam"), [node(0), node(1, memory_gib=12)], PLAIN)
    assert isinstance(made, Masked)
    assert "15 GiB" in made.reason
    assert "12 GiB on node1" in made.reason


def test_a_batch_is_divided_by_speed() -> None:
    job = workload(parameters=1000)
    nodes = [node(0, 100), node(1, 50), node(2, 10)]
    made = estimate(data_parallel(job, nodes, cluster(*nodes, round_trip=0.0), 3, 3, PLAIN))
    assert counts(64, [share.weight for share in made.shares]) == (40, 20, 4)
    assert made.seconds == pytest.approx(100 * (0.4 + 4 / 3 * 4000 / 1e8), rel=1e-3)


def test_a_slow_node_is_left_out() -> None:
    job = workload(parameters=1000, batch=16)
    nodes = [node(0, 100), node(1, 100), node(2, 1)]
    made = estimate(data_parallel(job, nodes, cluster(*nodes), 2, 8, PLAIN))
    assert {share.node for share in made.shares} == {node(0).node, node(1).node}


def test_a_far_node_is_left_out_where_the_way_costs_more_than_it_gives() -> None:
    job = workload(parameters=1000, batch=16)
    nodes = [node(0, 100), node(1, 110), node(2, 100)]
    view = cluster(*nodes)
    far = dict(view.latencies)
    for pair in far:
        if node(1).node in pair:
            far[pair] = 0.5
    made = estimate(data_parallel(job, nodes, type(view)(view.profiles, far), 2, 8, PLAIN))
    assert {share.node for share in made.shares} == {node(0).node, node(2).node}


def test_exchange_is_two_thirds_of_the_vector_each_way_with_three_nodes() -> None:
    # 2 (n-1)/n of 30 MB at 10 MB/s, and one way there, one back.
    assert exchange_time(3, 30_000_000, 0.01, 1e7, PLAIN) == pytest.approx(4.0 + 0.01)


def test_a_batch_that_does_not_fit_one_node_goes_to_others() -> None:
    job = workload(activation=10_000_000, batch=8, samples=8)  # 100 MB a sample
    nodes = [node(0, 1000, memory_gib=0.25), node(1, 10, memory_gib=2)]
    made = estimate(data_parallel(job, nodes, cluster(*nodes), 2, 2, PLAIN))
    given = counts(8, [share.weight for share in made.shares])
    assert given == (2, 6)
    assert all(share.memory_bytes <= n.memory_bytes for share, n in zip(made.shares, nodes, strict=True))


def test_federated_pays_for_the_way_seldom_and_in_samples() -> None:
    job = workload(parameters=10_000_000, samples=64 * 160)
    nodes = [node(0), node(1)]
    far = cluster(*nodes, round_trip=0.0)
    costs = Costs(**{**_fields(PLAIN), "federated_loss": 1.5, "federated_steps": 16})
    made = estimate(federated(job, nodes, far, 2, 2, costs))
    # 160 steps of 0.32 s and an average (40 MB at 100 MB/s) every 16, all 1.5 times.
    assert made.seconds == pytest.approx(1.5 * (160 * 0.32 + 10 * 0.4))


def test_layers_pass_whole_batches_or_small_ones() -> None:
    job = workload(parameters=1000, activation=1)
    nodes = [node(0), node(1)]
    near = cluster(*nodes, round_trip=0.0)
    whole = estimate(model_parallel(job, nodes, near, 2, 2, PLAIN))
    assert whole.seconds == pytest.approx(64.0, rel=1e-4)  # one after the other: nothing gained but memory
    small = estimate(pipeline_parallel(job, nodes, near, 2, 2, PLAIN))
    # Two even stages and 32 small batches: (2 + 31) / 32 of half the time.
    assert small.seconds == pytest.approx(64.0 * 33 / 64, rel=0.01)
    assert [share.layer_range for share in small.shares] == [(0, 5), (5, 10)]


def test_model_parallel_stays_on_an_island() -> None:
    job = workload()
    nodes = [node(0), node(1)]
    made = model_parallel(job, nodes, cluster(*nodes, round_trip=0.1), 2, 2, Costs())
    assert isinstance(made, Masked)
    assert "5 ms" in made.reason


def test_a_model_too_large_for_each_is_cut_over_all() -> None:
    job = workload(parameters=400_000_000, optimizer="adam", layers=20)  # 6.4 GB
    nodes = [node(i, memory_gib=3) for i in range(3)]
    view = cluster(*nodes)
    assert isinstance(single_node(job, nodes, Costs()), Masked)
    assert isinstance(data_parallel(job, nodes, view, 2, 8, Costs()), Masked)
    made = estimate(pipeline_parallel(job, nodes, view, 2, 8, Costs()))
    assert len(made.shares) == 3
    assert all(share.memory_bytes <= 3 * GIB for share in made.shares)
    assert [s.layer_range[1] - s.layer_range[0] for s in made.shares if s.layer_range] != [20]


def test_nodes_enough_share_each_batch_in_several_lines() -> None:
    """Each node takes half of the model; four of them make two lines, of which each has half of every batch."""
    job = replace(workload(parameters=400_000_000, flops=1e11, optimizer="adam", layers=2), input_shape=(7,))
    nodes = [node(i, memory_gib=6) for i in range(4)]
    view = cluster(*nodes)
    assert isinstance(data_parallel(job, nodes, view, 2, 8, Costs()), Masked)
    made = estimate(pipeline_parallel(job, nodes, view, 2, 8, Costs()))
    one = estimate(pipeline_parallel(job, nodes[:2], view, 2, 8, Costs()))
    assert [share.replica for share in made.shares] == [0, 0, 1, 1]
    assert [share.rank for share in made.shares] == [0, 1, 2, 3]
    assert {share.node for share in made.shares} == {each.node for each in nodes}
    assert [share.layer_range for share in made.shares[:2]] == [share.layer_range for share in made.shares[2:]]
    assert math.fsum(share.weight for share in made.shares) == 1.0
    assert "2 lines of 2 stages" in made.reason
    assert made.shares[0].input_shape == (7,)
    assert one.seconds / 2.2 < made.seconds < one.seconds
    assert all(share.memory_bytes <= 6 * GIB for share in made.shares)


def test_the_faster_line_takes_more_of_each_batch() -> None:
    job = workload(parameters=400_000_000, flops=1e11, optimizer="adam", layers=2)
    nodes = [
        node(0, 100, memory_gib=6),
        node(1, 100, memory_gib=6),
        node(2, 100, memory_gib=6),
        node(3, 50, memory_gib=6),
    ]
    made = estimate(pipeline_parallel(job, nodes, cluster(*nodes), 4, 4, Costs()))
    parts = [math.fsum(share.weight for share in made.shares if share.replica == line) for line in (0, 1)]
    assert parts == pytest.approx([2 / 3, 1 / 3])
    assert [share.node for share in made.shares if share.replica == 1][-1] == node(3).node


def test_a_checkpoint_is_written_from_a_copy() -> None:
    job = workload(optimizer="adam")
    without = estimate(single_node(job, [node(0)], PLAIN)).shares[0].memory_bytes
    job = replace(job, checkpoint_every=50)
    assert estimate(single_node(job, [node(0)], PLAIN)).shares[0].memory_bytes == without + 12 * 1_000_000
    assert estimate(single_node(job.taking(1.5), [node(0)], PLAIN)).shares[0].memory_bytes == pytest.approx(
        1.5 * (without + 12 * 1_000_000), rel=1e-6
    )


def test_what_one_layer_takes_for_a_moment_is_counted_once_where_it_is() -> None:
    job, nodes = workload(), [node(0), node(1)]
    heavy = [replace(layer, passing_bytes=(50 + place) << 20) for place, layer in enumerate(job.layers)]
    more = replace(job, layers=(*job.layers[:5], *heavy[5:]))

    def memory(made: Estimate) -> list[int]:
        return [share.memory_bytes for share in made.shares]

    assert memory(estimate(single_node(more, nodes, PLAIN))) == [
        memory(estimate(single_node(job, nodes, PLAIN)))[0] + (59 << 20)
    ]
    before = estimate(pipeline_parallel(job, nodes, cluster(*nodes), 2, 2, PLAIN))
    after = estimate(pipeline_parallel(more, nodes, cluster(*nodes), 2, 2, PLAIN))
    assert (
        [share.layer_range for share in after.shares]
        == [share.layer_range for share in before.shares]
        == [(0, 5), (5, 10)]
    )
    assert memory(after) == [memory(before)[0], memory(before)[1] + (59 << 20)]


def test_a_model_too_large_for_all_is_masked_in_numbers() -> None:
    job = workload(parameters=4_000_000_000, optimizer="adam")
    nodes = [node(i) for i in range(3)]
    made = pipeline_parallel(job, nodes, cluster(*nodes), 2, 8, Costs())
    assert isinstance(made, Masked)
    assert "60 GiB" in made.reason


paces = st.lists(
    st.builds(Pace, st.floats(0, 0.1), st.floats(1e-9, 1.0), st.integers(1, 300)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 600), paces)
def test_filling_gives_out_the_batch_exactly_within_memory(batch: int, paces: list[Pace]) -> None:
    given_out = fill(batch, paces)
    if given_out is None:
        assert batch < len(paces) or sum(p.most for p in paces) < batch
        return
    assert sum(given_out) == batch
    assert all(1 <= count <= pace.most for count, pace in zip(given_out, paces, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 600), paces)
def test_no_sample_would_be_done_earlier_elsewhere(batch: int, paces: list[Pace]) -> None:
    given_out = fill(batch, paces)
    if given_out is None:
        return
    ends = [pace.fixed + count * pace.sample for count, pace in zip(given_out, paces, strict=True)]
    last = max(range(len(ends)), key=ends.__getitem__)
    if given_out[last] == 1:
        return
    for i, pace in enumerate(paces):
        if i != last and given_out[i] < pace.most:
            assert ends[i] + pace.sample >= ends[last] * (1 - 1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=64))
def test_fractions_sum_to_exactly_one_in_any_order(weights: list[float]) -> None:
    made = fractions(weights)
    assert sum(made) == 1.0
    assert sum(reversed(made)) == 1.0
    assert math.fsum(sorted(made)) == 1.0
    assert all(0 < fraction <= 1 for fraction in made)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_workers_get_the_samples_that_were_planned(given_out: list[int]) -> None:
    assert counts(sum(given_out), fractions(given_out)) == tuple(given_out)


def _fields(costs: Costs) -> dict[str, float]:
    return {name: getattr(costs, name) for name in costs.__dataclass_fields__}


def test_statistics_told_within_a_step_cost_two_exchanges_a_layer() -> None:
    nodes = [node(0), node(1)]
    view = cluster(*nodes, round_trip=0.01)
    job = workload(samples=64)  # one step
    plain = estimate(data_parallel(job, nodes, view, 2, 2, PLAIN))
    normalised = estimate(data_parallel(replace(job, normalised=3), nodes, view, 2, 2, PLAIN))
    assert normalised.seconds - plain.seconds == pytest.approx(6 * exchange_time(2, 0, 0.01, 1e8, PLAIN))


@pytest.mark.parametrize(("training", "told"), [
    ({}, 1), ({"batch_norm": "alone"}, 0), ({"sync": "local"}, 0), ({"sync": "accumulate", "micro_batch_size": 4}, 0),
    ({"norm_limit": 10.0}, 0), ({"engine": "torch"}, 0),
])  # fmt: skip
def test_what_is_normalised_together_is_not_left_to_torch(training: dict[str, object], told: int) -> None:
    layers = ({"type": "conv", "outputs": 4}, {"type": "batch_norm"}, {"type": "average"}, {"type": "dense"})
    model = ModelSpec(source="layers:", layers=layers)
    made = describe(JobSpec(name="test", model=model, training=TrainingSpec(**training)))
    assert made.normalised == told
    assert ("batch_norm" in made.not_by_torch) is bool(told)
