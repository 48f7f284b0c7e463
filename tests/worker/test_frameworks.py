"""Keras and scikit-learn behind real workers: alone, together, lost, resumed, asked."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from hivenode.jobs.workers import ForkWorkers
from hivenode.models.card import read_card
from hivenode.models.keras_configs.files import embedded
from hivenode.net.local import (
    CheckpointWritten,
    Finished,
    Log,
    PeersReady,
    Predict,
    Predicted,
    Ready,
    Resources,
    ViewChanged,
    WorkerLimits,
    WorkerProgress,
)
from hivenode.spec.job import DataSpec, JobSpec, ModelSpec, TrainingSpec
from hivenode.spec.values import Strategy
from tests.worker.members import LIMITS, Member, attempt, begin, difference, digest, failure, node, plan, slowed, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def finish(members: list[Member]) -> list[Finished]:
    finished = [await member.expect(Finished) for member in members]
    for member in members:
        assert await member.exit() == "exit 0"
    assert len({digest(done.path) for done in finished}) == 1
    return finished


async def asked(host: ForkWorkers, model: str, job: JobSpec, count: int = 100) -> Predicted:
    member = await Member.start(host, "predict", framework="keras" if job.model.kind == "keras" else "torch")
    digits = load_digits()
    member.handle.send(Predict(1, model, (digits.data[:count] / 16).tolist()))
    answer = await member.expect(Predicted)
    member.handle.kill()
    await member.exit()
    return answer


def right(answer: Predicted) -> float:
    digits = load_digits()
    guesses = [answer.labels[int(np.argmax(row))] for row in answer.outputs]
    return float(np.mean([guess == str(label) for guess, label in zip(guesses, digits.target, strict=False)]))


async def test_keras_gives_the_model_that_torch_gives_and_torch_serves_it(host: ForkWorkers, tmp_path: Path) -> None:
    plain = {"epochs": 1, "max_steps": 20, "learning_rate": 0.05, "batch_size": 64}
    torch = await finish(await attempt(host, spec(**plain), [1.0], tmp_path / "torch"))
    job = spec(framework="keras", **plain)
    keras = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "keras"))
    first, second = load_file(torch[0].path), load_file(keras[0].path)
    assert max(float(np.abs(first[name] - second[name]).max()) for name in first) < 1e-4
    assert keras[0].metrics["accuracy"] == pytest.approx(torch[0].metrics["accuracy"], abs=0.01)
    assert right(await asked(host, keras[0].path, job)) == pytest.approx(torch[0].metrics["accuracy"], abs=0.1)


async def test_keras_trains_by_local_steps_and_goes_on_from_a_checkpoint(host: ForkWorkers, tmp_path: Path) -> None:
    parts = {"sync": "local", "sync_every": 8, "overlap": 2}
    job = spec(framework="keras", epochs=8, learning_rate=0.1, checkpoint_every_steps=40, **parts)
    members = await attempt(host, job, [0.5, 0.5], tmp_path / "two")
    whole = await finish(members)
    assert whole[0].metrics["accuracy"] > 0.9
    checkpoint = members[0].all(CheckpointWritten)[0]
    rest = await finish(await attempt(host, job, [1.0], tmp_path / "one", resume=checkpoint.path))
    assert rest[0].metrics["accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "transformers"])
async def test_two_nodes_go_on_from_a_checkpoint_to_the_bit(host: ForkWorkers, tmp_path: Path, kind: str) -> None:
    """With all that has a state of its own: running statistics, dropout, moments, a schedule, patience."""
    layers = ({"type": "conv", "outputs": 4}, {"type": "batch_norm"}, {"type": "dropout"}, {"type": "dense"})
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    life = {"schedule": "cosine", "clip_norm": 1.0, "patience": 3, "checkpoint_every_steps": 15}
    training = TrainingSpec(epochs=2, max_steps=40, optimizer="adam", learning_rate=0.002, **life)
    if kind == "keras":
        job = JobSpec(
            name="test", framework="keras", model=ModelSpec(source="layers:", layers=layers), training=training
        )
    else:
        model = ModelSpec(source="hf:config", config={"model_type": "bert", **sizes})
        job = JobSpec(name="test", model=model, data=DataSpec(source="sklearn:digit_tokens"), training=training)
    members = await attempt(host, job, [0.6, 0.4], tmp_path / "whole")
    whole = await finish(members)
    checkpoint = members[0].all(CheckpointWritten)[0]
    assert 0 < checkpoint.step < 40
    rest = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "rest", resume=checkpoint.path))
    assert digest(rest[0].path) == digest(whole[0].path)


async def test_a_forest_of_two_nodes_is_that_of_one(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec("sklearn:RandomForestClassifier", params={"n_estimators": 45})
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await attempt(host, job, [0.7, 0.3], tmp_path / "two"))
    assert digest(alone[0].path) == digest(together[0].path)
    assert together[0].metrics["accuracy"] > 0.9
    assert right(await asked(host, together[0].path, job)) > 0.9


FOREST = {"estimator": "RandomForestClassifier", "n_estimators": 12}
LONG = {"estimator": "RandomForestClassifier", "n_estimators": 120}
TREE = {"estimator": "DecisionTreeClassifier"}


@pytest.mark.parametrize(("model", "params", "estimators", "units", "before", "after"), [
    ("RandomForestClassifier", {"n_estimators": 601}, (), 61, [0.6, 0.4], [0.5, 0.3, 0.2]),
    pytest.param("ExtraTreesClassifier", {"n_estimators": 1000}, (), 100, [1.0], [0.6, 0.4], marks=pytest.mark.slow),
    pytest.param("BaggingClassifier", {"n_estimators": 200}, (TREE,), 20, [0.5, 0.5], [1.0], marks=pytest.mark.slow),
    pytest.param("VotingClassifier", {}, (LONG,) * 4, 4, [1.0], [0.5, 0.5], marks=pytest.mark.slow),
    pytest.param("StackingClassifier", {}, (LONG,) * 3, 3, [0.5, 0.5], [1.0], marks=pytest.mark.slow),
])  # fmt: skip
async def test_what_is_grown_goes_on_where_all_were_killed(
    host: ForkWorkers,
    tmp_path: Path,
    model: str,
    params: dict[str, object],
    estimators: tuple[dict[str, object], ...],
    units: int,
    before: list[float],
    after: list[float],
) -> None:
    declared = ModelSpec(source=f"sklearn:{model}", params=params, estimators=estimators)
    job = JobSpec(name="test", model=declared, training=TrainingSpec(checkpoint_every_steps=20))
    strategy = Strategy.model_parallel if estimators else Strategy.data_parallel

    async def begun(name: str, weights: list[float], resume: str | None = None) -> list[Member]:
        return await attempt(host, job, weights, tmp_path / name, resume=resume, strategy=strategy)

    (whole,) = await finish(await begun("whole", [1.0]))
    killed = await begun("killed", before)
    with ExitStack() as slow:  # so that it lasts for more than one checkpoint
        for member in killed:
            slow.enter_context(slowed(member.handle.pid))
        checkpoint = await killed[0].expect(CheckpointWritten)
        for member in killed:
            member.handle.kill()
            await member.exit()
    assert 0 < checkpoint.step < units
    members = await begun("rest", after, checkpoint.path)
    finished = await finish(members)
    assert digest(finished[0].path) == digest(whole.path)
    assert finished[0].step == whole.step == units
    grown = [line.fields["grown"] for member in members for line in member.all(Log) if "grown" in line.fields]
    assert len(grown) == len(after)
    assert sum(grown) == units - checkpoint.step  # and none of those that were there


@pytest.mark.parametrize(("model", "params", "estimators"), [
    ("sklearn:ExtraTreesClassifier", {"n_estimators": 45}, ()),
    ("sklearn:BaggingClassifier", {"n_estimators": 12}, ({"estimator": "DecisionTreeClassifier"},)),
    ("sklearn:VotingClassifier", {}, (FOREST, {"estimator": "GaussianNB"})),
    ("sklearn:LogisticRegression", {}, ()),
])  # fmt: skip
async def test_what_scikit_learn_spreads_over_the_threads_of_a_node(
    host: ForkWorkers,
    tmp_path: Path,
    model: str,
    params: dict[str, object],
    estimators: tuple[dict[str, object], ...],
) -> None:
    job = spec(model, params=params)
    job = job.model_copy(update={"model": ModelSpec(source=model, params=params, estimators=estimators)})
    strategy = Strategy.model_parallel if estimators else Strategy.data_parallel
    found = []
    for threads in (1, 3):
        member = await Member.start(host, framework="sklearn", limits=WorkerLimits(threads, LIMITS.memory_bytes, 0))
        member.handle.send(begin(job, plan([1.0], strategy=strategy), 0, tmp_path / str(threads)))
        await member.expect(Ready)
        member.handle.send(PeersReady(peers=()))
        found += await finish([member])
    assert digest(found[0].path) == digest(found[1].path)


async def test_trees_of_a_lost_node_are_grown_by_the_others(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec("sklearn:ExtraTreesClassifier", params={"n_estimators": 300})
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    members = await attempt(host, job, [0.3, 0.4, 0.3], tmp_path / "three")
    await members[1].expect(WorkerProgress)
    members[1].handle.kill()
    finished = await finish([members[0], members[2]])
    assert members[0].all(ViewChanged)[0].lost == (node(1),)
    assert digest(finished[0].path) == digest(alone[0].path)


@pytest.mark.parametrize(
    ("model", "params", "accuracy"),
    [
        ("sklearn:SGDClassifier", {"alpha": 0.001}, 0.9),
        ("sklearn:MLPClassifier", {"learning_rate_init": 0.005}, 0.9),
        ("sklearn:GaussianNB", {"var_smoothing": 0.01}, 0.8),
    ],
)
async def test_what_learns_by_batches_is_averaged(
    host: ForkWorkers, tmp_path: Path, model: str, params: dict[str, object], accuracy: float
) -> None:
    job = spec(model, params=params, epochs=4, batch_size=64, sync="local", sync_every=6)
    finished = await finish(await attempt(host, job, [0.6, 0.4], tmp_path))
    assert finished[0].metrics["accuracy"] > accuracy
    assert right(await asked(host, finished[0].path, job)) > accuracy


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("sklearn:MLPClassifier", {"hidden": 16}),
        ("sklearn:MLPClassifier", {"hidden": 16, "solver": "sgd"}),
        ("sklearn:SGDClassifier", {}),
    ],
)
async def test_what_learns_by_batches_goes_on_to_the_bit(
    host: ForkWorkers, tmp_path: Path, model: str, params: dict[str, object]
) -> None:
    job = spec(model, params=params, epochs=2, batch_size=64, checkpoint_every_steps=30)
    (whole,) = await attempt(host, job, [1.0], tmp_path / "whole")
    straight = await finish([whole])
    checkpoint = whole.all(CheckpointWritten)[0]
    assert 0 < checkpoint.step < straight[0].step
    rest = await finish(await attempt(host, job, [1.0], tmp_path / "rest", resume=checkpoint.path))
    assert digest(rest[0].path) == digest(straight[0].path)


async def test_sums_over_uneven_parts_are_those_of_one_node(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec("sklearn:GaussianNB", params={"var_smoothing": 0.01}, epochs=1, sync="local", sync_every=6)
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    together = await finish(await attempt(host, job, [0.8, 0.2], tmp_path / "two"))
    assert difference(alone[0].path, together[0].path) < 1e-4


async def test_clusters_are_found_together(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec("sklearn:MiniBatchKMeans", params={"n_clusters": 10}, epochs=2, sync="local", sync_every=6)
    finished = await finish(await attempt(host, job, [0.5, 0.5], tmp_path))
    assert "accuracy" not in finished[0].metrics
    answer = await asked(host, finished[0].path, job)
    assert answer.labels == [str(number) for number in range(10)]
    assert all(sorted(row) == [0.0] * 9 + [1.0] for row in answer.outputs)


async def test_what_is_fitted_in_one_piece(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec("sklearn:LogisticRegression")
    finished = await finish(await attempt(host, job, [1.0], tmp_path))
    assert finished[0].metrics["accuracy"] > 0.9
    answer = await asked(host, finished[0].path, job)
    assert right(answer) > 0.95


async def test_an_estimator_for_other_data_is_refused(host: ForkWorkers, tmp_path: Path) -> None:
    member = (await attempt_failing(host, spec("sklearn:Ridge"), tmp_path))[0]
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("invalid_input", False)
    assert failed.message == "Ridge is for regression, and sklearn:digits is for classification."


async def attempt_failing(host: ForkWorkers, job: JobSpec, directory: Path) -> list[Member]:
    from tests.worker.members import begin, plan

    member = await Member.start(host, framework=job.runtime)
    member.handle.send(begin(job, plan([1.0]), 0, directory))
    return [member]


def composed(name: str, *estimators: dict[str, object], **params: object) -> JobSpec:
    job = spec(f"sklearn:{name}", params=params)
    model = job.model.model_copy(update={"estimators": estimators})
    return JobSpec.model_validate(job.model_copy(update={"model": model}).model_dump())


LOGISTIC = {"estimator": "LogisticRegression", "max_iter": 200}
TREE = {"estimator": "DecisionTreeClassifier"}


async def test_a_pipeline_is_fitted_and_asked(host: ForkWorkers, tmp_path: Path) -> None:
    job = composed("Pipeline", {"estimator": "StandardScaler"}, {"estimator": "PCA", "n_components": 20}, LOGISTIC)
    finished = await finish(await attempt(host, job, [1.0], tmp_path))
    assert finished[0].metrics["accuracy"] > 0.9
    assert right(await asked(host, finished[0].path, job)) > 0.9


@pytest.mark.parametrize(
    "job",
    [
        composed("VotingClassifier", LOGISTIC, TREE, {"estimator": "GaussianNB"}, voting="soft"),
        composed("StackingClassifier", {"estimator": "GaussianNB"}, TREE),
        composed("BaggingClassifier", TREE, n_estimators=30),
    ],
    ids=lambda job: job.model.name,
)
async def test_members_of_an_ensemble_are_fitted_on_several_nodes(
    host: ForkWorkers, tmp_path: Path, job: JobSpec
) -> None:
    alone = await finish(await attempt(host, job, [1.0], tmp_path / "one"))
    several = Strategy.model_parallel
    together = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "two", strategy=several))
    assert digest(alone[0].path) == digest(together[0].path)
    assert together[0].metrics["accuracy"] > 0.85
    assert right(await asked(host, together[0].path, job)) > 0.9


@pytest.mark.parametrize("framework", ["torch", "keras"])
async def test_in_bf16_members_learn_as_well_and_agree(host: ForkWorkers, tmp_path: Path, framework: str) -> None:
    job = spec(framework=framework, epochs=8, learning_rate=0.02, momentum=0.9, precision="bf16")
    finished = await finish(await attempt(host, job, [0.5, 0.5], tmp_path, precision="bf16"))
    assert finished[0].metrics["accuracy"] > 0.93
    assert right(await asked(host, finished[0].path, job)) > 0.93


def a_configuration() -> ModelSpec:
    return embedded(ModelSpec(source=f"keras:{Path(__file__).resolve().parents[2] / 'configs/jobs/keras_config.json'}"))


def configured(**training: object) -> JobSpec:
    return JobSpec(
        name="test",
        model=a_configuration(),
        data=DataSpec(source="sklearn:digits"),
        training=TrainingSpec(**{"batch_size": 64, "epochs": 1, **training}),
    )


async def test_a_configuration_of_keras_is_trained_alike_by_two_and_gone_on_with(
    host: ForkWorkers, tmp_path: Path
) -> None:
    plain = {"learning_rate": 0.02, "momentum": 0.9, "epochs": 4, "checkpoint_every_steps": 30}
    job = configured(**plain)
    model = job.model.model_dump()  # without dropout, whose draws differ by member
    layers = model["config"]["config"]["layers"]
    layers[6]["config"]["rate"] = 0.0
    job = job.model_copy(update={"model": ModelSpec.model_validate(model)})
    members = await attempt(host, job, [1.0], tmp_path / "one")
    alone = await finish(members)
    both = await finish(await attempt(host, job, [0.6, 0.4], tmp_path / "two"))
    assert difference(alone[0].path, both[0].path) < 1e-3
    assert alone[0].metrics["accuracy"] > 0.8
    checkpoint = members[0].all(CheckpointWritten)[0]
    rest = await finish(await attempt(host, job, [1.0], tmp_path / "rest", resume=checkpoint.path))
    assert digest(rest[0].path) == digest(alone[0].path)
    assert right(await asked(host, alone[0].path, job)) == pytest.approx(alone[0].metrics["accuracy"], abs=0.1)
    card = read_card(Path(alone[0].path))
    assert (card.framework, card.model) == ("keras", job.model)
    onward = card.model.model_copy(update={"weights": f"blob:{'a' * 64}/1"})  # as the catalogue has it gone on with
    training = job.training.model_copy(update={"max_steps": 1, "learning_rate": 1e-6})
    again = job.model_copy(update={"model": onward, "training": training})
    resources = Resources(blobs={"a" * 64: alone[0].path})
    more = await finish(await attempt(host, again, [1.0], tmp_path / "more", resources=resources))
    assert more[0].metrics["accuracy"] == pytest.approx(alone[0].metrics["accuracy"], abs=0.01)


async def test_a_configuration_of_keras_is_trained_by_local_steps(host: ForkWorkers, tmp_path: Path) -> None:
    parts = {"sync": "local", "sync_every": 8}
    job = configured(epochs=8, learning_rate=0.1, **parts)
    both = await finish(await attempt(host, job, [0.5, 0.5], tmp_path))
    assert both[0].metrics["accuracy"] > 0.85


async def test_a_configuration_for_other_data_is_refused(host: ForkWorkers, tmp_path: Path) -> None:
    job = configured().model_copy(update={"data": DataSpec(source="sklearn:iris")})
    failed = await failure((await attempt_failing(host, job, tmp_path))[0])
    assert (failed.code, failed.retry) == ("invalid_input", False)
    assert "takes 8x8x1; a sample of sklearn:iris is 4" in failed.message
