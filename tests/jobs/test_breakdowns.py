"""What a plan means for a job, node by node."""

from __future__ import annotations

import msgspec
import pytest

from hivenode.jobs.breakdowns import break_down, unused
from hivenode.jobs.proposals import describe
from hivenode.spec.job import JobSpec, parse_job
from hivenode.spec.values import Plan, Share, Strategy

NODES = ("a" * 32, "b" * 32)


def plan(strategy: Strategy, *, layers: bool = False) -> Plan:
    shares = tuple(
        Share(node, rank, 0.5, 0.01, 1 << 28, (rank, rank + 1) if layers else None) for rank, node in enumerate(NODES)
    )
    return Plan(strategy, shares, 1.0, "as the test says", False, (0, 0, 0, 0), ())


def job(**sections: object) -> JobSpec:
    return parse_job({"name": "test", **sections})


@pytest.mark.parametrize(("spec", "ranges", "how"), [
    (job(), [(0, 719), (719, 1438)], "average what came of it"),
    (job(training={"sync": "local", "sync_every": 9}), [(0, 719), (719, 1438)], "for 9 steps"),
    (job(model={"source": "sklearn:RandomForestClassifier"}), [(0, 1438)] * 2, "their part of the trees"),
    (job(data={"source": "private:visits"}), [None] * 2, "each computes its part"),
])  # fmt: skip
def test_samples_are_divided_where_they_are(spec: JobSpec, ranges: list[tuple[int, int] | None], how: str) -> None:
    made = break_down(plan(Strategy.data_parallel), spec)
    assert [task.data_range for task in made.subtasks] == ranges
    assert all(task.stage is None and task.sends_to == (other,) for task, other in zip(
        made.subtasks, reversed(NODES), strict=True))  # fmt: skip
    assert how in made.coordination
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == plan(Strategy.data_parallel)


def test_shares_sum_to_one_also_with_a_node_that_came_late() -> None:
    planned = plan(Strategy.data_parallel)
    late = Share("c" * 32, 2, 0.5, 0.01, 1 << 28)
    made = break_down(msgspec.structs.replace(planned, shares=(*planned.shares, late)), job())
    assert sum(share.weight for share in made.shares) == 1.0
    assert [share.weight for share in made.shares] == pytest.approx([1 / 3] * 3)
    assert [task.data_range for task in made.subtasks] == [(0, 480), (480, 959), (959, 1438)]


def test_members_of_an_ensemble_are_no_stages() -> None:
    members = ({"estimator": "GaussianNB"}, {"estimator": "LogisticRegression"})
    spec = job(model={"source": "sklearn:VotingClassifier", "estimators": members})
    made = break_down(plan(Strategy.model_parallel, layers=True), spec)
    assert [(task.layer_range, task.stage, task.data_range) for task in made.subtasks] == [
        ((0, 1), None, (0, 1438)), ((1, 2), None, (0, 1438)),
    ]  # fmt: skip
    assert "members of the ensemble" in made.coordination


@pytest.mark.parametrize("spec", [
    job(model={"source": "sklearn:Ridge"}),
    job(model={"source": "sklearn:RandomForestClassifier"}, data={"source": "private:visits"}),
])  # fmt: skip
def test_what_keeps_no_checkpoint_is_told(spec: JobSpec) -> None:
    alone = msgspec.structs.replace(plan(Strategy.single_node), shares=(Share(NODES[0], 0, 1.0, 0.01, 1 << 28),))
    assert "nothing of it is kept before it is done" in break_down(alone, spec).coordination
    assert "its checkpoints are kept on another" in break_down(alone, job()).coordination


@pytest.mark.parametrize(("source", "training", "named"), [
    ("sklearn:SGDClassifier", {"epochs": 3, "sync": "local", "sync_every": 5, "patience": 2}, ""),
    ("sklearn:SGDClassifier", {"learning_rate": 0.05, "clip_norm": 1.0}, "training.clip_norm, training.learning_rate;"),
    ("sklearn:RandomForestClassifier", {"seed": 3, "checkpoint_every_steps": 20}, ""),
    ("sklearn:RandomForestClassifier", {"epochs": 3, "seed": 3}, "training.epochs;"),
    ("sklearn:Ridge", {"seed": 3, "checkpoint_every_steps": 20}, "training.checkpoint_every_steps;"),
    ("zoo:cnn", {"optimizer": "adam", "epochs": 3}, ""),
])  # fmt: skip
def test_what_is_given_without_effect_is_named(source: str, training: dict[str, object], named: str) -> None:
    spec = job(model={"source": source}, training=training)
    told = unused(spec, spec.training.model_fields_set)
    assert bool(told) == bool(named)
    assert named in told


def test_stages_follow_each_other() -> None:
    made = break_down(plan(Strategy.pipeline_parallel, layers=True), job())
    assert [(task.stage, task.line, task.sends_to) for task in made.subtasks] == [(0, 0, (NODES[1],)), (1, 0, ())]


@pytest.mark.parametrize(("sections", "why"), [
    ({"training": {"norm_limit": 10.0}}, "training.norm_limit is for workers that hold the whole model"),
    ({"training": {"sync": "local"}}, 'training.sync = "local" is for workers that hold the whole model'),
    ({"training": {"precision": "bf16"}}, 'training.precision = "bf16" is for workers that hold the whole model'),
    ({"model": {"source": "hf:config", "config": {"model_type": "bert"}, "lora": {}},
      "data": {"source": "sklearn:digit_tokens"}}, "model.lora is for workers that hold the whole model"),
])  # fmt: skip
def test_what_stages_cannot_do_is_said_and_not_left_out(sections: dict[str, object], why: str) -> None:
    masked = describe(job(**sections)).masked
    assert masked == {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}


def test_batch_normalisation_is_given_whole_batches() -> None:
    masked = describe(job(model={"source": "zoo:resnet18"})).masked
    assert masked.keys() == {Strategy.pipeline_parallel}
    assert "batch normalisation would see small batches" in masked[Strategy.pipeline_parallel]
