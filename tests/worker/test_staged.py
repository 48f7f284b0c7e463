"""Several real workers hold the layers of one model between them, over their own connections on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.models.card import read_card
from hivenode.net.local import (
    Cancel,
    CheckpointWritten,
    Failed,
    Log,
    Peer,
    PeerLost,
    PeersReady,
    Ready,
    Resources,
    WorkerProgress,
)
from hivenode.spec.job import DataSpec, JobSpec, ModelSpec, TrainingSpec
from hivenode.spec.values import Plan, Share, Strategy
from tests.worker.members import Member, attempt, begin, difference, digest, finish, node, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")


LAYERS = 6
"""Of zoo:cnn: two convolutions, each with its pool, and two dense layers."""


def staged(cuts: Sequence[int], small: int, layers: int = LAYERS, lines: Sequence[float] = (1.0,)) -> Plan:
    """Stages that begin at layer 0 and at each of `cuts`; of several lines each with its part of every batch."""
    bounds = [0, *cuts, layers]
    stages = len(bounds) - 1
    shares = tuple(
        Share(
            node(rank), rank, lines[rank // stages] / stages, 0.01, 1 << 28,
            (bounds[rank % stages], bounds[rank % stages + 1]), rank // stages,
        )
        for rank in range(stages * len(lines))
    )  # fmt: skip
    strategy = Strategy.pipeline_parallel if small > 1 else Strategy.model_parallel
    return Plan(strategy, shares, 1.0, "as the test says", False, (0, 0, 0, 0), (), small)


async def start(
    host: ForkWorkers,
    job: JobSpec,
    plan: Plan,
    directory: Path,
    resume: str | None = None,
    resources: Resources | None = None,
) -> list[Member]:
    members = [await Member.start(host) for _ in plan.shares]
    for rank, member in enumerate(members):
        member.handle.send(begin(job, plan, rank, directory, resume, resources=resources))
    ready = [await member.expect(Ready) for member in members]
    peers = tuple(
        Peer(node(rank), rank, "127.0.0.1", r.port, r.certificate, r.group_port) for rank, r in enumerate(ready)
    )
    for member in members:
        member.handle.send(PeersReady(peers))
    return members


JOB = spec(epochs=1, max_steps=20, learning_rate=0.05, momentum=0.9, batch_size=64)


@pytest.mark.parametrize(("cuts", "small", "tolerance"), [((4,), 1, 0.0), ((2, 4), 1, 0.0), ((3,), 8, 1e-5)])
async def test_a_cut_model_learns_what_the_whole_one_does(
    host: ForkWorkers, tmp_path: Path, cuts: tuple[int, ...], small: int, tolerance: float
) -> None:
    alone = await finish(await attempt(host, JOB, [1.0], tmp_path / "one"))
    together = await finish(await start(host, JOB, staged(cuts, small), tmp_path / "cut"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) <= tolerance
    assert [done.lead for done in together] == [True] + [False] * len(cuts)
    assert {done.metrics["accuracy"] for done in together} == {alone[0].metrics["accuracy"]}


@pytest.mark.parametrize("training", [
    {},
    {"optimizer": "adam", "learning_rate": 0.001, "clip_norm": 0.5},
    pytest.param({"codec": "fp16"}, marks=pytest.mark.slow),
])  # fmt: skip
async def test_two_lines_of_stages_learn_what_one_node_does(
    host: ForkWorkers, tmp_path: Path, training: dict[str, object]
) -> None:
    job = spec(**{"epochs": 1, "max_steps": 20, "learning_rate": 0.05, "batch_size": 62, **training})
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await start(host, job, staged((3,), 2, lines=(0.75, 0.25)), tmp_path / "four"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) <= (1e-5 if "codec" not in training else 1e-2)
    assert [done.lead for done in together] == [True, False, False, False]
    assert together[0].metrics["accuracy"] == pytest.approx(alone[0].metrics["accuracy"], abs=0.003)


async def test_a_tied_tensor_stays_one_in_all_lines(host: ForkWorkers, tmp_path: Path) -> None:
    job = JobSpec(
        name="test", model=ModelSpec(source="hf:config", config=HUB["gpt2"]),
        data=DataSpec(source="sklearn:descriptions"), training=TrainingSpec(max_steps=4, batch_size=16, clip_norm=0.2),
    )  # fmt: skip
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await start(host, job, staged((2,), 2, layers=99, lines=(0.5, 0.5)), tmp_path / "four"))
    assert len({digest(done.path) for done in together}) == 1
    assert difference(alone[0].path, together[0].path) <= 1e-5


async def test_stages_follow_schedule_clipping_and_patience_as_one_node_does_and_go_on_so(
    host: ForkWorkers, tmp_path: Path
) -> None:
    life = {"schedule": "cosine", "warmup_steps": 20, "clip_norm": 0.3, "patience": 1, "min_improvement": 10.0}
    job = spec(epochs=5, learning_rate=0.05, momentum=0.5, checkpoint_every_steps=30, **life)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    assert alone[0].step == 46, "the second epoch did not bring what is asked for"
    members = await start(host, job, staged((4,), 1), tmp_path / "cut")
    together = await finish(members)
    assert together[0].step == 46
    assert difference(alone[0].path, together[0].path) <= 1e-6
    written = members[0].all(CheckpointWritten)[0]
    again = await finish(await start(host, job, staged((2,), 1), tmp_path / "again", resume=written.path))
    assert (written.step, again[0].step) == (30, 46)
    assert difference(together[0].path, again[0].path) <= 1e-6


async def test_each_stage_holds_its_own_tensors_only(host: ForkWorkers, tmp_path: Path) -> None:
    members = await start(host, JOB, staged((4,), 2), tmp_path)
    counts = [(await member.expect(Ready)).parameters for member in members]
    whole = (await (await attempt(host, JOB, [1.0], tmp_path / "one"))[0].expect(Ready)).parameters
    assert sum(counts) == whole
    assert all(0 < count < whole for count in counts)
    await finish(members)


async def test_a_checkpoint_goes_on_under_any_strategy(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1, max_steps=20, learning_rate=0.05, optimizer="adam", checkpoint_every_steps=8)
    members = await start(host, job, staged((3,), 2), tmp_path / "cut")
    written = await members[0].expect(CheckpointWritten)
    assert written.step == 8
    straight = await finish(members)
    assert not members[1].all(CheckpointWritten)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one", resume=written.path))
    pair = await finish(await attempt(host, job, [0.5, 0.5], tmp_path / "two", resume=written.path))
    again = await finish(await start(host, job, staged((2, 4), 1), tmp_path / "again", resume=written.path))
    for other in (alone, pair, again):
        assert difference(straight[0].path, other[0].path) < 1e-5
    same = await finish(await start(host, job, staged((3,), 2), tmp_path / "same", resume=written.path))
    assert digest(same[0].path) == digest(straight[0].path)


@pytest.mark.parametrize("plan", [
    pytest.param(staged((3,), 2), id="pipeline"),
    pytest.param(staged((3,), 1, lines=(0.5, 0.5)), id="two lines", marks=pytest.mark.slow),
])  # fmt: skip
async def test_all_stages_end_early_after_the_epoch_after_which_one_node_does(
    host: ForkWorkers, tmp_path: Path, plan: Plan
) -> None:
    job = spec(epochs=40, learning_rate=0.05, momentum=0.9, batch_size=128, patience=1, min_improvement=0.08)
    (alone,) = await attempt(host, job, [1.0], tmp_path / "one")
    (one,) = await finish([alone])
    members = await start(host, job, plan, tmp_path / "cut")
    together = await finish(members)
    per_epoch = 12
    assert {done.step for done in together} == {one.step}
    assert 2 * per_epoch <= one.step < 40 * per_epoch
    assert len({digest(done.path) for done in together}) == 1
    assert together[0].metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=0.05)
    for leader in (alone, members[0]):
        (said,) = [log for log in leader.all(Log) if log.event.startswith("Training ends early: ")]
        assert said.fields["step"] == one.step
    assert not [log for log in members[-1].all(Log) if log.event.startswith("Training ends early")]


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_the_loss_of_a_stage_ends_the_attempt_for_all_to_be_planned_again(
    host: ForkWorkers, tmp_path: Path, victim: int
) -> None:
    members = await start(host, spec(epochs=1000), staged((2, 4), 4), tmp_path)
    await members[1].expect(WorkerProgress, 2)
    members[victim].handle.kill()
    for rank, member in enumerate(members):
        if rank != victim:
            failed = await member.expect(Failed)
            assert failed.retry
            assert "is lost" in failed.message or "was closed" in failed.message
            assert await member.exit() == "exit 1"


@pytest.mark.parametrize("victim", [0, 3])
async def test_the_loss_of_a_stage_ends_all_lines(host: ForkWorkers, tmp_path: Path, victim: int) -> None:
    members = await start(host, spec(epochs=1000), staged((3,), 4, lines=(0.5, 0.5)), tmp_path)
    await asyncio.gather(*(member.expect(WorkerProgress, 2) for member in members))
    members[victim].handle.kill()
    for rank, member in enumerate(members):
        if rank != victim:
            assert (await member.expect(Failed)).retry
            assert await member.exit() == "exit 1"


async def test_a_checkpoint_of_one_line_goes_on_in_several(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1, max_steps=12, learning_rate=0.05, optimizer="adam", checkpoint_every_steps=8)
    members = await start(host, job, staged((3,), 2, lines=(0.5, 0.5)), tmp_path / "four")
    written = await members[0].expect(CheckpointWritten)
    straight = await finish(members)
    assert not any(member.all(CheckpointWritten) for member in members[1:])
    one = await finish(await start(host, job, staged((2, 4), 2), tmp_path / "one", resume=written.path))
    again = await finish(
        await start(host, job, staged((4,), 2, lines=(0.5, 0.5)), tmp_path / "again", resume=written.path)
    )
    assert max(difference(straight[0].path, other[0].path) for other in (one, again)) < 1e-5


async def test_a_node_given_up_by_the_failure_detector(host: ForkWorkers, tmp_path: Path) -> None:
    members = await start(host, spec(epochs=1000), staged((4,), 1), tmp_path)
    await members[0].expect(WorkerProgress, 2)
    members[0].handle.send(PeerLost(node(1)))
    assert node(1) in (await members[0].expect(Failed)).message
    assert (await members[1].expect(Failed)).retry


async def test_cancelling(host: ForkWorkers, tmp_path: Path) -> None:
    members = await start(host, spec(epochs=1000), staged((4,), 1), tmp_path)
    await members[0].expect(WorkerProgress, 2)
    for member in members:
        member.handle.send(Cancel("enough"))
    codes = {(await member.expect(Failed)).code for member in members}
    assert "cancelled" in codes
    assert codes <= {"cancelled", "unavailable"}, "a stage may hear that another has left before it hears the order"


async def test_a_plan_without_layers_is_refused(host: ForkWorkers, tmp_path: Path) -> None:
    shares = tuple(Share(node(rank), rank, 0.5, 0.01, 1 << 28) for rank in range(2))
    plan = Plan(Strategy.model_parallel, shares, 1.0, "as the test says", False, (0, 0, 0, 0), ())
    member = await Member.start(host)
    member.handle.send(begin(JOB, plan, 1, tmp_path))
    assert "which layers" in (await member.expect(Failed)).message


HUB = {
    "bert": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0},
    "vit": {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 32, "patch_size": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}  # fmt: skip


@pytest.mark.parametrize(("model", "source", "cuts"), [
    ("zoo:resnet18", "sklearn:digits", (6, 12)),
    pytest.param("zoo:lstm", "sklearn:digits", (2,), marks=pytest.mark.slow),
    pytest.param("zoo:vit", "sklearn:digits", (2, 4), marks=pytest.mark.slow),
    ("zoo:gpt", "sklearn:descriptions", (2, 4)),
    pytest.param("gpt2", "sklearn:descriptions", (2, 4), marks=pytest.mark.slow),
    pytest.param("bert", "sklearn:digit_tokens", (2, 4), marks=pytest.mark.slow),
    pytest.param("vit", "sklearn:digits", (2, 4), marks=pytest.mark.slow),
])  # fmt: skip
async def test_every_kind_of_model_is_cut(
    host: ForkWorkers, tmp_path: Path, model: str, source: str, cuts: tuple[int, ...]
) -> None:
    params = {
        "zoo:resnet18": {"width": 4},
        "zoo:lstm": {"width": 16},
        "zoo:vit": {"width": 16, "layers": 3, "patch": 2, "heads": 2},
        "zoo:gpt": {"width": 16, "layers": 3, "heads": 2},
    }.get(model, {})
    declared = (
        ModelSpec(source="hf:config", config=HUB[model]) if model in HUB else ModelSpec(source=model, params=params)
    )
    job = JobSpec(
        name="test", model=declared, data=DataSpec(source=source),
        training=TrainingSpec(max_steps=4, batch_size=16, learning_rate=0.01, momentum=0.9),
    )  # fmt: skip
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await start(host, job, staged(cuts, 1, layers=99), tmp_path / "cut"))
    assert difference(alone[0].path, together[0].path) <= 1e-6
    speeds = {"samples_per_second", "tokens_per_second"}
    expected = {name: value for name, value in alone[0].metrics.items() if name not in speeds}
    assert {name: together[0].metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert len({digest(done.path) for done in together}) == 1


async def test_stages_begin_with_weights_given_and_tell_what_they_lack(host: ForkWorkers, tmp_path: Path) -> None:
    first = spec(epochs=1, max_steps=20, learning_rate=0.05, batch_size=64)
    (made,) = await finish(await attempt(host, first, [1.0], tmp_path / "first"))
    resources = Resources(blobs={"a" * 64: made.path})
    onward = JobSpec(
        name="test", model=first.model.model_copy(update={"weights": f"blob:{'a' * 64}/1"}), data=first.data,
        training=TrainingSpec(max_steps=5, batch_size=64, learning_rate=0.05),
    )  # fmt: skip
    (alone,) = await finish(await attempt(host, onward, [1.0], tmp_path / "one", resources=resources))
    together = await finish(await start(host, onward, staged((4,), 1), tmp_path / "cut", resources=resources))
    assert difference(alone.path, together[0].path) == 0.0
    assert read_card(Path(together[0].path)).model.weights == ""
    wider = ModelSpec(source="zoo:cnn", params={"hidden": 24}, weights=f"blob:{'a' * 64}/1")
    members = await start(
        host, onward.model_copy(update={"model": wider}), staged((4,), 1), tmp_path / "wider", resources=resources
    )
    await finish(members)
    told = [line.event for member in members for line in member.all(Log) if "afresh" in line.event]
    assert len(told) == 1
    assert "output.weight" in told[0]


@pytest.mark.parametrize("small", [1, pytest.param(4, marks=pytest.mark.slow)])
async def test_a_pretrained_model_is_cut_and_each_stage_reads_its_own_directory(
    host: ForkWorkers, tmp_path: Path, small: int
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {**HUB["bert"], "vocab_size": 20, "max_position_embeddings": 64}
    for directory in ("first", "second"):
        transformers.set_seed(2)
        model = transformers.BertModel(transformers.BertConfig(**sizes))
        model.save_pretrained(tmp_path / directory, max_shard_size="8KB")
    lent = [Resources(directories={"base": str(tmp_path / directory)}) for directory in ("first", "second")]
    job = JobSpec(
        name="test", model=ModelSpec(source="hf:base"), data=DataSpec(source="sklearn:digit_tokens"),
        training=TrainingSpec(max_steps=20, batch_size=16, learning_rate=0.05),
    )  # fmt: skip
    alone = await attempt(host, job, [1.0], tmp_path / "one", resources=lent[0])
    plan = staged((2,), small, layers=5)
    together = [await Member.start(host) for _ in plan.shares]
    for rank, member in enumerate(together):
        member.handle.send(begin(job, plan, rank, tmp_path / "cut", resources=lent[rank]))
    ready = [await member.expect(Ready) for member in together]
    assert sum(each.parameters for each in ready) == (await alone[0].expect(Ready)).parameters
    peers = tuple(Peer(node(rank), rank, "127.0.0.1", r.port, r.certificate) for rank, r in enumerate(ready))
    for member in together:
        member.handle.send(PeersReady(peers))
    (whole, *_), cut = await finish(alone), await finish(together)
    assert difference(whole.path, cut[0].path) <= (0.0 if small == 1 else 1e-5)
    assert cut[0].metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-6)
    assert digest(cut[0].path) == digest(cut[1].path)
    told = [[line.event for line in member.all(Log) if "afresh" in line.event] for member in (*alone, *together)]
    assert told[0] == told[1] == ["not among the weights given, so begun afresh: classifier.weight, classifier.bias"]
    assert not told[2], "one tells"
    card = read_card(Path(cut[0].path))
    assert card.model == read_card(Path(whole.path)).model, "whoever serves it needs no such directory"


async def test_stages_tell_all_that_one_node_does(host: ForkWorkers, tmp_path: Path) -> None:
    job = JobSpec(
        name="test", model=ModelSpec(source="zoo:gpt", params={"width": 16, "layers": 3, "heads": 2}),
        data=DataSpec(source="sklearn:descriptions"), training=TrainingSpec(epochs=2, batch_size=128),
    )  # fmt: skip
    members = await start(host, job, staged((2,), 2, layers=99, lines=(0.5, 0.5)), tmp_path)
    finished = await finish(members)
    lines = [[line for line in member.all(Log) if line.event == "epoch"] for member in members]
    assert [len(each) for each in lines] == [2, 0, 0, 0], "one tells, whatever the number of lines"
    (alone,) = await attempt(host, job, [1.0], tmp_path / "one")
    await finish([alone])
    expected = next(line for line in alone.all(Log) if line.event == "epoch").fields
    assert lines[0][1].fields.keys() == expected.keys()
    assert all(value is not None for value in lines[0][1].fields.values())
    last = members[3].all(WorkerProgress)[-1]
    assert (last.test_loss, last.convergence) == pytest.approx(
        (finished[0].metrics["test_loss"], finished[0].metrics["convergence"])
    )
    assert last.tokens_per_second == pytest.approx(64 * last.samples_per_second)
