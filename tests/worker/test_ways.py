"""The ways to share a job's steps, each by several real workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import CheckpointWritten, Log, ViewChanged, WorkerProgress
from hivenode.spec.job import ModelSpec
from tests.worker.members import attempt, difference, digest, failure, finish, node, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_one_local_step_and_a_plain_outer_one_are_the_synchronous_step(host: ForkWorkers, tmp_path: Path) -> None:
    plain = {"epochs": 1, "max_steps": 20, "learning_rate": 0.05, "batch_size": 64}
    local = {"sync": "local", "sync_every": 1, "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    every = await finish(await attempt(host, spec(**plain), [0.5, 0.5], tmp_path / "every"))
    once = await finish(await attempt(host, spec(**plain, **local), [0.5, 0.5], tmp_path / "local"))
    assert len({digest(done.path) for done in once}) == 1
    assert once[0].step == 20
    assert difference(every[0].path, once[0].path) < 1e-5


async def test_micro_batches_are_the_batch(host: ForkWorkers, tmp_path: Path) -> None:
    plain = {"epochs": 1, "max_steps": 20, "learning_rate": 0.05, "batch_size": 64}
    alone = await finish(await attempt(host, spec(**plain), [1.0], tmp_path / "one"))
    accumulated = spec(**plain, sync="accumulate", micro_batch_size=7)
    together = await finish(await attempt(host, accumulated, [0.9, 0.1], tmp_path / "two"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("training", [
    {},
    {"sync": "accumulate", "micro_batch_size": 7},
    {"sync": "local", "sync_every": 1, "outer_learning_rate": 1.0, "outer_momentum": 0.0},
], ids=["every", "accumulated", "local"])  # fmt: skip
@pytest.mark.parametrize("framework", ["transformers", "keras"])
async def test_other_frameworks_share_steps_alike(
    host: ForkWorkers, tmp_path: Path, framework: str, training: dict[str, object]
) -> None:
    config = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4,
        "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    plain = {"epochs": 1, "max_steps": 8, "learning_rate": 0.05, "batch_size": 64}
    alone, shared = spec(framework="keras", **plain), spec(framework="keras", **plain, **training)
    if framework == "transformers":
        model = ModelSpec(source="hf:config", config=config)
        alone, shared = (made.model_copy(update={"model": model, "framework": "torch"}) for made in (alone, shared))
    (one,) = await finish(await attempt(host, alone, [1.0], tmp_path / "one"))
    both = await finish(await attempt(host, shared, [0.6, 0.4], tmp_path / "two"))
    assert len({digest(done.path) for done in both}) == 1
    assert both[0].step == 8
    if training.get("sync") != "local":  # there each makes its own steps, of equal size
        assert difference(one.path, both[0].path) < 1e-5


@pytest.mark.parametrize("parts", [{}, {"fragments": 2, "overlap": 2}], ids=["whole", "parts"])
async def test_local_steps_learn_as_well_and_resume_from_what_they_kept(
    host: ForkWorkers, tmp_path: Path, parts: dict[str, int]
) -> None:
    job = spec(
        **parts,
        epochs=10,
        learning_rate=0.05,
        sync="local",
        sync_every=10,
        codec="int8",
        checkpoint_every_steps=60,
        clip_norm=5.0,
    )
    members = await attempt(host, job, [0.6, 0.4], tmp_path / "two")
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    assert finished[0].metrics["accuracy"] >= 0.93
    checkpoint = members[0].all(CheckpointWritten)[-1]
    assert 60 <= checkpoint.step < 230
    kept = load_file(checkpoint.path)
    assert "optimizer.outer" in kept
    assert ("optimizer.own" in kept) == bool(parts)
    rest = await finish(await attempt(host, job, [0.3, 0.3, 0.4], tmp_path / "three", resume=checkpoint.path))
    assert len({digest(done.path) for done in rest}) == 1
    assert rest[0].step == 230
    assert rest[0].metrics["accuracy"] >= 0.93


@pytest.mark.parametrize("parts", [{}, {"fragments": 2, "overlap": 4, "codec": "int4"}], ids=["whole", "parts"])
async def test_a_member_lost_within_a_round_costs_the_others_nothing(
    host: ForkWorkers, tmp_path: Path, parts: dict[str, object]
) -> None:
    job = spec(epochs=12, learning_rate=0.03, sync="local", sync_every=8, **parts)
    members = await attempt(host, job, [0.4, 0.3, 0.3], tmp_path)
    await members[2].expect(WorkerProgress, 2)
    members[1].handle.kill()
    finished = await finish([members[0], members[2]])
    assert members[0].all(ViewChanged)[0].lost == (node(1),)
    assert len({digest(done.path) for done in finished}) == 1
    assert {done.step for done in finished} == {12 * 23}
    assert finished[0].metrics["accuracy"] >= 0.95


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8", "int4", "topk"])
async def test_a_lossy_codec_trains_and_all_hold_the_same(host: ForkWorkers, tmp_path: Path, codec: str) -> None:
    job = spec(model="zoo:mlp", epochs=8, learning_rate=0.1, codec=codec)
    finished = await finish(await attempt(host, job, [0.5, 0.5], tmp_path))
    assert len({digest(done.path) for done in finished}) == 1
    assert finished[0].metrics["accuracy"] >= 0.9


async def test_a_codec_chosen_by_measuring_is_told_with_its_reason(host: ForkWorkers, tmp_path: Path) -> None:
    members = await attempt(host, spec(epochs=1, codec="auto"), [0.5, 0.5], tmp_path)
    finished = await finish(members)
    assert len({digest(done.path) for done in finished}) == 1
    told = [line.event for line in members[0].all(Log) if line.event.startswith("Numbers travel as")]
    assert len(told) == 1
    assert "Mbit/s" in told[0]


async def test_training_ends_early_when_it_no_longer_improves(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=50, learning_rate=0.05, patience=2, min_improvement=0.05)
    members = await attempt(host, job, [0.5, 0.5], tmp_path)
    finished = await finish(members)
    assert finished[0].step == finished[1].step < 50 * 23
    assert finished[0].metrics["epochs"] == finished[0].step / 23
    assert any("ends early" in line.event for line in members[0].all(Log))


async def test_each_epoch_is_told(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=3, learning_rate=0.05, schedule="cosine", warmup_steps=5, clip_norm=1.0)
    (member,) = await attempt(host, job, [1.0], tmp_path)
    (finished,) = await finish([member])
    epochs = [line.fields for line in member.all(Log) if line.event == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[0]["convergence"] is None
    assert epochs[1]["convergence"] == pytest.approx(1 - epochs[1]["loss"] / epochs[0]["loss"])
    assert epochs[2]["learning_rate"] < epochs[0]["learning_rate"]
    assert finished.metrics["convergence"] == epochs[2]["convergence"]


async def test_a_loss_that_is_no_number_is_told_with_its_step_and_batch(host: ForkWorkers, tmp_path: Path) -> None:
    members = await attempt(host, spec(epochs=5, learning_rate=100.0, weight_decay=1.0), [0.5, 0.5], tmp_path)
    failed = [await failure(member) for member in members]
    assert {(one.code, one.retry) for one in failed} == {("job_failed", False)}
    assert "of epoch 1) is nan" in failed[0].message
    assert "training.clip_norm" in failed[0].fix
