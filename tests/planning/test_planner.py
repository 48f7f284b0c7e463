"""What the planner chooses, refuses, learns and says."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.errors import InvalidInput, Unavailable
from hivenode.planning.breakdown import coordination, subtasks
from hivenode.planning.planner import EXPLORED_WITHIN, eligible, expected_seconds, experience_of, plan
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.qtable import Experience
from hivenode.planning.workload import Workload
from hivenode.spec.job import PlacementSpec, TrainingSpec
from hivenode.spec.values import Plan, Strategy
from tests.planning.cluster import cluster, node, workload

ALL = frozenset(Strategy)
BUILT = frozenset({Strategy.single_node, Strategy.data_parallel})


def planned(
    job: Workload,
    view: ClusterView,
    *,
    seed: int = 0,
    epsilon: float = 0.0,
    runnable: frozenset[Strategy] = ALL,
    experience: Experience | None = None,
    exclude: tuple[str, ...] = (),
    **placement: object,
) -> Plan:
    return plan(
        job,
        PlacementSpec.model_validate(placement),
        view,
        experience or Experience(),
        rng=random.Random(seed),
        epsilon=epsilon,
        runnable=runnable,
        exclude=exclude,
    )


def test_a_tiny_job_runs_on_one_node() -> None:
    made = planned(workload(flops=1e5, parameters=1000), cluster(node(0), node(1), node(2)))
    assert made.strategy is Strategy.single_node
    assert "single_node on 1 node" in made.reason


def test_precision_is_that_of_all_who_take_part() -> None:
    able, unable = [node(0, bf16=True), node(1, bf16=True)], node(2)

    def chosen(job: Workload, *nodes: NodeProfile, strategy: str = "data_parallel", asked: str = "auto") -> str:
        made = planned(replace(job, precision=asked), cluster(*nodes), strategy=strategy, min_nodes=len(nodes))
        assert ("bf16" in made.reason) is (made.precision == "bf16")
        return made.precision

    large, small = workload(), workload(flops=1e5, parameters=1000)
    assert chosen(large, *able) == "bf16"
    assert chosen(large, *able, unable) == "fp32"
    assert chosen(small, *able) == "fp32"
    assert chosen(large, *able, strategy="pipeline_parallel") == "fp32"
    assert chosen(large, *able, asked="fp32") == "fp32"
    assert chosen(small, *able, unable, asked="bf16") == "bf16"


def test_half_precision_is_planned_slowly_where_there_are_no_instructions_for_it() -> None:
    job = replace(workload(), precision="fp16")
    able, slow = node(0, fp16=True), node(1, bf16=True)
    (fast,) = planned(job, cluster(able)).shares
    alone = planned(job, cluster(slow))
    assert alone.precision == "fp16"
    assert "for which node1 has no instructions: planned there as 8 times as slow as fp32" in alone.reason
    assert alone.shares[0].step_seconds > 4 * fast.step_seconds
    together = planned(job, cluster(able, slow), strategy="data_parallel")
    assert together.shares[0].weight > 4 * together.shares[1].weight
    assert planned(job, cluster(able)).reason.endswith("It computes in fp16.")


def test_min_nodes_is_honoured_even_where_it_is_slower() -> None:
    view = cluster(node(0), node(1, 1), node(2, 2))
    made = planned(workload(flops=1e5, parameters=1000), view, runnable=BUILT, min_nodes=3)
    assert made.strategy is Strategy.data_parallel
    assert len(made.shares) == 3
    alone = next(c for c in made.candidates if c.strategy is Strategy.single_node)
    assert not alone.feasible
    assert "at least 3 nodes (placement.min_nodes)" in alone.reason


def test_a_large_job_takes_fast_nodes_and_leaves_slow_ones_out() -> None:
    view = cluster(node(0, 100), node(1, 90), node(2, 0.2), node(3, 110))
    made = planned(workload(flops=1e10, batch=128), view, runnable=BUILT)
    assert made.strategy is Strategy.data_parallel
    assert {share.node for share in made.shares} == {node(i).node for i in (0, 1, 3)}
    by_node = {share.node: share.weight for share in made.shares}
    assert by_node[node(3).node] > by_node[node(0).node] > by_node[node(1).node]
    assert sum(share.weight for share in made.shares) == 1.0
    assert [share.rank for share in made.shares] == [0, 1, 2]


def test_max_nodes_and_named_nodes_are_limits() -> None:
    view = cluster(*(node(i) for i in range(6)))
    job = workload(flops=1e10, batch=128)
    assert len(planned(job, view, runnable=BUILT, max_nodes=2).shares) == 2
    named = planned(job, view, runnable=BUILT, nodes=("node4", node(5).node))
    assert {share.node for share in named.shares} == {node(4).node, node(5).node}
    assert len(planned(job, view, max_nodes=1).shares) == 1


def test_paused_lacking_and_excluded_nodes_take_no_part() -> None:
    view = cluster(node(0), node(1, 1000, paused="on battery"), node(2, 1000, frameworks=("sklearn",)), node(3, 1000))
    made = planned(workload(), view, exclude=(node(3).node,))
    assert {share.node for share in made.shares} == {node(0).node}
    reasons = " ".join(c.reason for c in made.candidates)
    assert "node1 takes no work (on battery)" in reasons
    assert "node2 does not have torch" in reasons
    assert "node3 is left out" in reasons


def test_who_lacks_a_library_or_what_the_job_is_about_is_never_chosen() -> None:
    job = replace(workload(), needs=("private:xrays",), libraries=("peft",))
    has = {"versions": {"torch": "2.13.0+cpu", "peft": "0.21.2"}, "offers": ("private:xrays",)}
    view = cluster(
        node(0, **has),
        node(1, 1000, **{**has, "versions": {"torch": "2.13.0"}}),
        node(2, 1000, **{**has, "offers": ()}),
    )
    made = planned(job, view)
    assert {share.node for share in made.shares} == {node(0).node}
    reasons = " ".join(c.reason for c in made.candidates)
    assert "node1 does not have peft" in reasons
    assert "node2 does not have private:xrays" in reasons


def test_nodes_whose_framework_is_of_another_version_do_not_work_with_the_others() -> None:
    versions = ["2.13.0+cpu", "2.13.1", "2.9.0", ""]
    view = cluster(*(node(n, 100 + 900 * (n == 2), versions={"torch": text}) for n, text in enumerate(versions)))
    made = planned(workload(), view)
    assert node(2).node not in {share.node for share in made.shares}
    _, left_out = eligible(workload(), PlacementSpec(), view)
    assert left_out == ["node2 has torch 2.9.0 and others 2.13 (one minor version has to be on all)"]
    with pytest.raises(Unavailable, match=r"node2 has torch 2\.9\.0 and others 2\.13") as caught:
        planned(workload(), view, min_nodes=4)
    assert "install the same version on all nodes" in caught.value.fix


@pytest.mark.parametrize(
    ("framework", "distribution"),
    [("sklearn", "scikit-learn"), ("transformers", "torch"), ("transformers", "transformers"), ("keras", "tensorflow")],
)
def test_what_computes_for_a_framework_has_to_be_of_one_version_too(framework: str, distribution: str) -> None:
    has = {
        "torch": "2.13.0",
        "transformers": "5.1.0",
        "scikit-learn": "1.9.1",
        "keras": "3.9.0",
        "tensorflow": "2.20.0",
    }
    view = cluster(
        node(0, frameworks=(framework,), versions=has),
        node(1, frameworks=(framework,), versions={**has, distribution: "1.4.2"}),
    )
    chosen, left_out = eligible(replace(workload(), framework=framework), PlacementSpec(), view)
    assert [each.label for each in chosen] == ["node0"]
    assert left_out[0].startswith(f"node1 has {distribution} 1.4.2 and node0 {has[distribution].rpartition('.')[0]} ")


def test_nothing_feasible_says_why_for_each_strategy_and_what_to_do() -> None:
    job = workload(parameters=10**9, optimizer="adam")
    with pytest.raises(Unavailable) as caught:
        planned(job, cluster(node(0, memory_gib=4), node(1, memory_gib=6)), runnable=BUILT)
    text = str(caught.value)
    assert "single_node: needs 15 GiB" in text
    assert "6.00 GiB on node1" in text
    assert "data_parallel: needs 23 GiB" in text
    assert "pipeline_parallel is not available for torch jobs in this version" in text
    assert "memory" in caught.value.fix


def test_a_model_that_cannot_be_divided_is_to_be_placed_otherwise() -> None:
    with pytest.raises(Unavailable, match="counts as one layer, which cannot be divided over 2 nodes") as caught:
        planned(workload(layers=1), cluster(node(0), node(1)), strategy="pipeline_parallel", min_nodes=2)
    assert "single_node or data_parallel, or use a model of more layers" in caught.value.fix
    assert "nodes," not in caught.value.fix


@pytest.mark.parametrize(
    ("nodes", "placement", "told"),
    [
        ((), {}, "no member with the worker role answers"),
        ((node(0, paused="on battery."),), {}, "node0 takes no work (on battery)"),
        ((node(0, frameworks=()),), {}, "node0 does not have torch"),
        ((node(0),), {"min_nodes": 3}, "needs 3 nodes (placement.min_nodes), and 1 can take part"),
        ((node(0),), {"nodes": ("attic",)}, "attic, named in placement.nodes, does not answer"),
        ((node(0, 0.0),), {}, "node0 has not measured its speed"),
        ((node(0), node(1)), {"strategy": "data_parallel", "max_nodes": 1}, "(placement.max_nodes)"),
    ],
)
def test_refusals_name_the_cause(nodes: tuple[NodeProfile, ...], placement: dict[str, object], told: str) -> None:
    with pytest.raises(Unavailable) as caught:
        planned(workload(), cluster(*nodes), **placement)  # type: ignore[arg-type]
    assert told in caught.value.sentence
    assert caught.value.fix.endswith(".")


def test_refusals_stay_readable_in_a_large_hive() -> None:
    view = cluster(*(node(i, paused="on battery, " + "and hot " * 30) for i in range(60)))
    with pytest.raises(Unavailable) as caught:
        planned(workload(), view)
    assert len(caught.value.sentence) < 2000
    assert "and 56 more" in caught.value.sentence or len(caught.value.sentence) == 1900


def test_a_strategy_that_is_asked_for_is_used_or_refused() -> None:
    view = cluster(node(0), node(1))
    made = planned(workload(flops=1e5, parameters=1000), view, strategy="federated")
    assert made.strategy is Strategy.federated
    assert "the job asks for this strategy" in made.reason
    with pytest.raises(InvalidInput, match="pipeline_parallel is not available for torch jobs in this version"):
        planned(workload(), view, strategy="pipeline_parallel", runnable=BUILT)
    with pytest.raises(Unavailable, match=r"data_parallel: needs 2 nodes, and 1 can take part"):
        planned(workload(), cluster(node(0)), strategy="data_parallel")


def test_all_five_are_explained() -> None:
    made = planned(workload(flops=1e10), cluster(node(0), node(1), node(2)), runnable=BUILT)
    assert [c.strategy for c in made.candidates] == list(Strategy)
    masked = {c.strategy: c.reason for c in made.candidates if not c.feasible}
    assert len(masked) == 3
    assert "pipeline_parallel is not available" in masked[Strategy.pipeline_parallel]
    local = TrainingSpec(sync="local", sync_every=7)
    assert "after every step" in coordination(made, "samples", TrainingSpec())
    assert "for 7 steps" in coordination(made, "samples", local)
    assert "part of the trees to all samples" in coordination(made, "trees", TrainingSpec())


def test_a_plan_fits_its_wire_type() -> None:
    view = cluster(*(node(i) for i in range(24)))
    made = planned(workload(flops=1e11, batch=512), view)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Plan) == made


def test_subtasks_cover_every_sample_and_layer_once() -> None:
    view = cluster(node(0, 100), node(1, 37), node(2, 61))
    job = workload(flops=1e10, samples=6401, batch=65)
    data = subtasks(
        planned(job, view, strategy="data_parallel", min_nodes=3),
        samples=job.samples,
        batch_size=job.batch,
        divided="samples",
    )
    assert sorted(i for task in data for i in range(*task.data_range)) == list(range(6401))
    assert sum(task.batch for task in data) == 65
    assert all(set(task.sends_to) == {other.node for other in data} - {task.node} for task in data)
    line = subtasks(
        planned(job, view, strategy="pipeline_parallel", min_nodes=3),
        samples=job.samples,
        batch_size=job.batch,
        divided="layers",
    )
    assert [i for task in line for i in range(*task.layer_range)] == list(range(10))  # type: ignore[misc]
    assert [task.stage for task in line] == [0, 1, 2]
    assert line[0].receives_from == ()
    assert line[0].sends_to == (line[1].node,)
    assert line[2].receives_from == (line[1].node,)
    assert line[2].sends_to == ()


def test_subtasks_of_several_lines() -> None:
    view = cluster(*(node(i, memory_gib=6) for i in range(4)))
    made = planned(workload(parameters=400_000_000, flops=1e11, optimizer="adam", layers=2, samples=6401), view)
    assert made.strategy is Strategy.pipeline_parallel
    tasks = subtasks(made, samples=6401, batch_size=64, divided="layers")
    assert [(task.line, task.stage, task.batch) for task in tasks] == [(0, 0, 32), (0, 1, 32), (1, 0, 32), (1, 1, 32)]
    assert [i for task in tasks[::2] for i in range(*task.data_range)] == list(range(6401))
    assert tasks[1].receives_from == (tasks[0].node, tasks[3].node)
    assert tasks[0].sends_to == (tasks[1].node, tasks[2].node)
    assert "4 nodes form 2 lines of 2 stages" in coordination(made, "layers", TrainingSpec())


def test_the_same_seed_gives_the_same_plan() -> None:
    view = cluster(node(0), node(1), node(2))
    job = workload(flops=2e8)
    plans = [planned(job, view, seed=7, epsilon=0.5) for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]


def test_exploring_happens_and_stays_near_the_best() -> None:
    view = cluster(node(0), node(1), node(2))
    job = workload(flops=2e9)
    best = planned(job, view)
    explored = [made for seed in range(60) if (made := planned(job, view, seed=seed, epsilon=0.5)).explored]
    assert explored
    limit = EXPLORED_WITHIN * min(expected_seconds(c) for c in best.candidates)
    for made in explored:
        chosen = next(c for c in made.candidates if c.strategy is made.strategy)
        assert made.strategy is not best.strategy
        assert expected_seconds(chosen) <= limit
        assert "tried to learn" in made.reason


profiles = st.lists(
    st.tuples(
        st.floats(0.01, 1000),
        st.floats(0.1, 16),
        st.sampled_from((("torch",), ("torch", "sklearn"), ("sklearn",))),
        st.sampled_from(("", "", "on battery")),
        st.integers(0, 2),
    ),
    max_size=7,
)


@settings(max_examples=120, deadline=None)
@given(
    profiles,
    st.integers(10**3, 2 * 10**9),
    st.sampled_from((1, 3, 16, 64, 500)),
    st.sampled_from(("sgd", "adam")),
    st.frozensets(st.sampled_from(list(Strategy)), min_size=1),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
def test_what_cannot_run_is_never_chosen(
    drawn: list[tuple[float, float, tuple[str, ...], str, int]],
    parameters: int,
    batch: int,
    optimizer: str,
    runnable: frozenset[Strategy],
    least: int,
    more: int,
    seed: int,
) -> None:
    nodes = [
        node(i, speed, memory_gib=memory, frameworks=frameworks, paused=paused, running=running)
        for i, (speed, memory, frameworks, paused, running) in enumerate(drawn)
    ]
    job = workload(parameters=parameters, batch=batch, optimizer=optimizer)
    experience = Experience()
    try:
        made = planned(
            job, cluster(*nodes), seed=seed, epsilon=1.0, runnable=runnable, experience=experience,
            min_nodes=least, max_nodes=least + more,
        )  # fmt: skip
    except Unavailable:
        return
    chosen = next(c for c in made.candidates if c.strategy is made.strategy)
    assert chosen.feasible
    assert made.strategy in runnable
    assert least <= len(made.shares) <= least + more
    assert sum(share.weight for share in made.shares) == 1.0
    by_id = {profile.node: profile for profile in nodes}
    for share in made.shares:
        profile = by_id[share.node]
        assert share.memory_bytes <= profile.memory_bytes
        assert "torch" in profile.frameworks
        assert not profile.paused
    assert len({share.node for share in made.shares}) == len(made.shares)
    assert math.isfinite(made.predicted_seconds)
    assert made.predicted_seconds > 0


def _learned(truth: dict[Strategy, float], epsilon: float, runs: int) -> list[Strategy]:
    """Strategies chosen for one job again and again, when each takes `truth` times what is predicted."""
    view = cluster(node(0), node(1), node(2))
    job = workload(flops=2e9)
    experience, noise, chosen = Experience(), random.Random(1), []
    for number in range(runs):
        made = planned(job, view, seed=number, epsilon=epsilon, experience=experience, runnable=BUILT)
        own = next(c for c in made.candidates if c.strategy is made.strategy)
        assert own.predicted_seconds is not None
        seconds = own.predicted_seconds * truth[made.strategy] * math.exp(noise.gauss(0, 0.05))
        experience.apply("aa", number, experience_of(f"job-{number}", 1, made, seconds))
        chosen.append(made.strategy)
    return chosen


def test_experience_overturns_a_wrong_prediction() -> None:
    view = cluster(node(0), node(1), node(2))
    assert planned(workload(flops=2e9), view, runnable=BUILT).strategy is Strategy.data_parallel
    truth = {Strategy.single_node: 1.0, Strategy.data_parallel: 8.0}
    chosen = _learned(truth, 0.0, 60)
    assert chosen[0] is Strategy.data_parallel
    assert chosen.count(Strategy.data_parallel) < 40
    assert set(chosen[-10:]) == {Strategy.single_node}


def test_experience_keeps_a_right_choice_on_machines_slower_than_they_measured() -> None:
    truth = {Strategy.single_node: 6.0, Strategy.data_parallel: 6.0}
    chosen = _learned(truth, 0.0, 40)
    assert chosen.count(Strategy.single_node) <= 2
    assert set(chosen[-30:]) == {Strategy.data_parallel}


def test_exploring_fades_where_a_strategy_is_known() -> None:
    view = cluster(node(0), node(1), node(2))
    job = workload(flops=2e9)
    experience = Experience()
    forced = {strategy: planned(job, view, strategy=strategy) for strategy in Strategy}
    for number, made in enumerate(list(forced.values()) * 200):
        experience.apply("aa", number, experience_of(f"job-{number}", 1, made, made.predicted_seconds))
    fresh = sum(planned(job, view, seed=s, epsilon=0.5).explored for s in range(100))
    known = sum(planned(job, view, seed=s, epsilon=0.5, experience=experience).explored for s in range(100))
    assert known < fresh / 4


def test_experience_is_of_the_cost_models_own_prediction() -> None:
    view = cluster(node(0), node(1), node(2))
    experience = Experience()
    first = planned(workload(flops=2e9), view, experience=experience)
    for number in range(30):
        experience.apply("aa", number, experience_of(f"job-{number}", 1, first, 3 * first.predicted_seconds))
    later = planned(workload(flops=2e9), view, experience=experience)
    same = next(c for c in later.candidates if c.strategy is first.strategy)
    assert same.predicted_seconds == pytest.approx(first.predicted_seconds)
    assert math.exp(same.residual) == pytest.approx(3.0, rel=0.05)
    assert same.visits == 30
    body = experience_of("job-x", 2, first, 12.0)
    assert (body.job, body.attempt, body.measured_seconds, body.state) == ("job-x", 2, 12.0, first.state)
    # The fastest node's bare arithmetic: 100 steps of 64 samples at 2 GFLOP on 100 GFLOP/s.
    assert body.reference_seconds == pytest.approx(128.0)
    if later.strategy is first.strategy:
        assert "experience makes it x3" in later.reason or "experience makes it x2.9" in later.reason


def test_what_a_framework_cannot_do_is_masked_with_its_reason() -> None:
    job = replace(workload(), masked={Strategy.pipeline_parallel: "keras models are not cut"})
    made = planned(job, cluster(node(0), node(1)))
    (candidate,) = [c for c in made.candidates if c.strategy is Strategy.pipeline_parallel]
    assert (candidate.feasible, candidate.reason) == (False, "pipeline_parallel: keras models are not cut")
    with pytest.raises(InvalidInput, match="pipeline_parallel cannot run this job: keras models are not cut"):
        planned(job, cluster(node(0), node(1)), strategy="pipeline_parallel", runnable=BUILT)
    with pytest.raises(InvalidInput, match="federated rounds are not available") as caught:
        planned(job, cluster(node(0)), strategy="federated", runnable=BUILT | {Strategy.pipeline_parallel})
    assert caught.value.fix == "Use 'auto' or one of 'single_node', 'data_parallel'."


def test_local_steps_and_fewer_bytes_make_a_slow_line_bearable() -> None:
    view = cluster(*(node(number, bandwidth=1e6) for number in range(3)))
    slow = workload(parameters=10_000_000, flops=1e9)
    every, local = slow, replace(slow, sync_every=50, wire=0.25)
    parts = replace(local, fragments=5, overlap=10)
    predicted = [
        next(c.predicted_seconds for c in planned(job, view).candidates if c.strategy is Strategy.data_parallel)
        for job in (every, local, parts)
    ]
    assert predicted[2] < predicted[1] < predicted[0] / 50
    assert planned(every, view).strategy is not Strategy.data_parallel
    assert planned(local, view).strategy is Strategy.data_parallel


def test_a_node_without_the_framework_takes_no_part() -> None:
    job = replace(workload(), framework="keras")
    made = planned(job, cluster(node(0), node(1, frameworks=("torch", "keras"))))
    assert [share.node for share in made.shares] == [node(1).node]
    with pytest.raises(Unavailable, match="No node can take part in this job now: node0 does not have keras") as caught:
        planned(job, cluster(node(0)))
    assert caught.value.fix == "Install keras there: pip install 'hivenode[tensorflow]'."


def test_a_plan_says_what_its_lines_are_taken_to_carry_and_whether_that_was_measured() -> None:
    job = workload(flops=1e10)
    a, b = node(0, bandwidth=9e7), node(1, bandwidth=9e7)
    guessed = planned(job, cluster(a, b), strategy="data_parallel")
    assert "taken to carry 90 MB/s, which is a guess" in guessed.reason
    known = planned(job, cluster(replace(a, lines={b.node: 3e7}), b), strategy="data_parallel")
    assert "taken to carry 30 MB/s, as measured" in known.reason
    assert known.predicted_seconds > guessed.predicted_seconds
    assert "line" not in planned(job, cluster(a), strategy="single_node").reason


def test_nodes_behind_a_narrow_line_to_the_others_are_left_out_of_what_needs_a_wide_one() -> None:
    near, far = ([node(number, bandwidth=1e9) for number in numbers] for numbers in ((0, 3), (1, 2)))
    lines = {
        one.node: {
            other.node: 1e9 if (one in near) == (other in near) else 1e5 for other in near + far if other is not one
        }
        for one in near + far
    }
    view = cluster(*(replace(one, lines=lines[one.node]) for one in near + far))
    made = planned(workload(parameters=5_000_000, flops=1e10), view, strategy="data_parallel")
    assert {share.node for share in made.shares} in ({one.node for one in near}, {one.node for one in far})
    assert "1e+03 MB/s, as measured" in made.reason
