"""Training by one real worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import (
    Cancel,
    CheckpointWritten,
    Finished,
    Log,
    PeersReady,
    Predict,
    Predicted,
    Ready,
    WorkerLimits,
    WorkerProgress,
)
from hivenode.spec.job import ModelSpec
from tests.worker.members import LIMITS, Member, attempt, begin, digest, failure, plan, spec

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_job_from_data_to_model_to_prediction(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=8, batch_size=64, momentum=0.9, checkpoint_every_steps=50)
    (member,) = await attempt(host, job, [1.0], tmp_path)
    finished = await member.expect(Finished)
    assert await member.exit() == "exit 0"
    assert finished.lead
    assert finished.step == 8 * 23
    assert finished.metrics["accuracy"] >= 0.95
    progress = member.all(WorkerProgress)
    assert [p.epoch for p in progress if p.step % 23 == 0] == list(range(1, 9))
    assert progress[-1].accuracy == finished.metrics["accuracy"]
    assert progress[-1].loss < progress[0].loss
    steps = [c.step for c in member.all(CheckpointWritten)]  # later ones only if they are not too soon after it
    assert steps[0] == 50
    assert set(steps) <= {50, 100, 150}

    from sklearn.datasets import load_digits

    digits = load_digits()
    asked = await Member.start(host, "predict")
    asked.handle.send(Predict(1, finished.path, (digits.data[:100] / 16).tolist()))
    answer = await asked.expect(Predicted)
    guesses = [answer.labels[max(range(10), key=row.__getitem__)] for row in answer.outputs]
    assert sum(guess == str(label) for guess, label in zip(guesses, digits.target[:100], strict=True)) >= 95
    assert all(abs(sum(row) - 1) < 1e-4 for row in answer.outputs)
    assert "Seccomp:\t2" in Path(f"/proc/{asked.handle.pid}/status").read_text()  # walled in before it read the model

    asked.handle.send(Predict(2, finished.path, [[0.0] * 63]))
    asked.handle.send(Predict(3, finished.path, [[0.0] * 64]))
    refused = (await asked.expect(Predicted, 2)) and asked.heard[1]
    assert (refused.code, refused.request, refused.retry) == ("invalid_input", 2, False)
    assert "63 values; the model takes 64 (1x8x8)" in refused.message
    asked.handle.kill()
    assert await asked.exit() == "killed by SIGKILL"


async def test_predictions_take_raw_values_where_the_model_was_trained_on_standardised_ones(
    host: ForkWorkers, tmp_path: Path
) -> None:
    job = spec(model="zoo:logistic", source="sklearn:wine", epochs=30, batch_size=32, learning_rate=0.1)
    (member,) = await attempt(host, job, [1.0], tmp_path)
    finished = await member.expect(Finished)

    from sklearn.datasets import load_wine

    wine = load_wine()
    asked = await Member.start(host, "predict")
    asked.handle.send(Predict(1, finished.path, wine.data.tolist()))
    answer = await asked.expect(Predicted)
    assert answer.labels == ["class_0", "class_1", "class_2"]
    right = sum(row.index(max(row)) == label for row, label in zip(answer.outputs, wine.target, strict=True))
    assert right / 178 >= 0.95
    asked.handle.kill()
    await asked.exit()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
async def test_resuming_gives_the_uninterrupted_run_to_the_bit(
    host: ForkWorkers, tmp_path: Path, optimizer: str
) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    job = spec(epochs=3, optimizer=optimizer, learning_rate=0.01, momentum=momentum, checkpoint_every_steps=30)
    (whole,) = await attempt(host, job, [1.0], tmp_path / "whole")
    straight = await whole.expect(Finished)
    checkpoint = await whole.expect(CheckpointWritten)
    assert checkpoint.step == 30  # inside the second epoch
    (rest,) = await attempt(host, job, [1.0], tmp_path / "rest", resume=checkpoint.path)
    resumed = await rest.expect(Finished)
    assert min(p.step for p in rest.all(WorkerProgress)) > 30
    assert digest(resumed.path) == digest(straight.path)
    for member in (whole, rest):
        await member.exit()


async def test_a_checkpoint_of_another_job_is_refused(host: ForkWorkers, tmp_path: Path) -> None:
    (first,) = await attempt(host, spec(epochs=1, checkpoint_every_steps=10), [1.0], tmp_path)
    path = (await first.expect(CheckpointWritten)).path
    await first.exit()
    other = await Member.start(host)
    other.handle.send(begin(spec(epochs=1, seed=5), plan([1.0]), 0, tmp_path, resume=path))
    failed = await failure(other)
    assert (failed.code, failed.retry) == ("invalid_input", False)
    assert "another model, data or training section" in failed.message


async def test_a_cancel_ends_it_soon_and_leaves_a_checkpoint(host: ForkWorkers, tmp_path: Path) -> None:
    (member,) = await attempt(host, spec(epochs=100_000, checkpoint_every_steps=10**9), [1.0], tmp_path)
    await member.expect(WorkerProgress)
    member.handle.send(Cancel(reason="the person said so"))
    failed = await failure(member)
    assert (failed.code, failed.message) == ("cancelled", "Cancelled: the person said so.")
    (checkpoint,) = member.all(CheckpointWritten)
    assert load_file(checkpoint.path)["model.output.bias"].shape == (10,)
    assert not member.all(Finished)


async def test_a_cancel_before_it_begins(host: ForkWorkers, tmp_path: Path) -> None:
    member = await Member.start(host)
    member.handle.send(begin(spec(), plan([1.0]), 0, tmp_path))
    await member.expect(Ready)
    member.handle.send(Cancel(reason="too late"))
    assert (await failure(member)).code == "cancelled"
    assert not member.all(CheckpointWritten)


async def test_running_out_of_memory_is_told_as_such(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1).model_copy(update={"model": ModelSpec(source="zoo:mlp", params={"hidden": 20000, "depth": 4})})
    member = await Member.start(host, limits=WorkerLimits(threads=1, memory_bytes=600 << 20, nice=0))
    member.handle.send(begin(job, plan([1.0]), 0, tmp_path))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("exhausted", True)
    assert "its limit is 600 MiB" in failed.message
    assert "worker.memory_bytes" in failed.fix


async def test_divergence_is_told_as_such(host: ForkWorkers, tmp_path: Path) -> None:
    (member,) = await attempt(host, spec(epochs=5, learning_rate=100.0, weight_decay=1.0), [1.0], tmp_path)
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("job_failed", False)
    assert "diverged" in failed.message
    assert "learning_rate" in failed.fix


async def test_a_defect_leaves_its_traceback_in_the_log(host: ForkWorkers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    order = begin(spec(epochs=1, max_steps=1), plan([1.0]), 0, tmp_path)
    (Path(order.directory) / "model.safetensors").mkdir()  # where the model should go
    member = await Member.start(host)
    member.handle.send(order)
    await member.expect(Ready)
    member.handle.send(PeersReady(peers=()))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("error", False)
    assert any("Traceback" in line.event or "tensorfiles.py" in line.event for line in member.all(Log))
    assert await member.exit() == "exit 1"


async def test_a_worker_runs_within_its_limits(host: ForkWorkers, tmp_path: Path) -> None:
    member = await Member.start(host, limits=WorkerLimits(threads=1, memory_bytes=700 << 20, nice=7))
    member.handle.send(begin(spec(), plan([1.0]), 0, tmp_path))
    await member.expect(Ready)
    pid = member.handle.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    assert any("Max data size" in line and str(700 << 20) in line for line in limits.splitlines())
    assert "NoNewPrivs:\t1" in status
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
    descriptors = {os.readlink(f"/proc/{pid}/fd/{name}").partition(":")[0] for name in os.listdir(f"/proc/{pid}/fd")}
    assert descriptors <= {"/dev/null", "pipe", "socket"}
    assert len(os.listdir(f"/proc/{pid}/fd")) == 4  # stdin, stdout, stderr, channel
    member.handle.kill()
    await member.exit()


async def test_the_same_spec_trains_the_same_with_other_limits(host: ForkWorkers, tmp_path: Path) -> None:
    job = spec(epochs=1)
    models = []
    for number, limits in enumerate([LIMITS, WorkerLimits(threads=1, memory_bytes=2 << 30, nice=3)]):
        member = await Member.start(host, limits=limits)
        member.handle.send(begin(job, plan([1.0]), 0, tmp_path / str(number)))
        await member.expect(Ready)
        member.handle.send(PeersReady(peers=()))
        models.append(digest((await member.expect(Finished)).path))
        await member.exit()
    assert models[0] == models[1]
