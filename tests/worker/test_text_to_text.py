"""A T5 learns to write a text upon another: alone, by several that hold all of it, and cut between its encoder and its
decoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Predict, Predicted, Resources
from hivenode.spec.job import DataSpec, JobSpec, ModelSpec, TrainingSpec
from tests.worker.members import LIMITS, Member, attempt, difference, digest, finish
from tests.worker.test_staged import staged, start

pytestmark = pytest.mark.asyncio(loop_scope="session")

T5 = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
ROWS = [f"{letter * (1 + number % 4)},{letter.upper()}\n" for number in range(24) for letter in "abc"]


def job(**training: object) -> JobSpec:
    return JobSpec(
        name="test", model=ModelSpec(source="hf:config", config=T5), data=DataSpec(source="private:pairs"),
        training=TrainingSpec(**{"max_steps": 4, "batch_size": 16, "learning_rate": 0.05, **training}),
    )  # fmt: skip


def lent(directory: Path) -> Resources:
    (directory / "pairs.csv").write_text("question,reply\n" + "".join(ROWS))
    own = DataSpec(source=f"csv:{directory}/pairs.csv", task="text_to_text", length=6)
    return Resources(private={"pairs": own.model_dump_json().encode()})


async def test_cut_it_comes_to_the_same(host: ForkWorkers, tmp_path: Path) -> None:
    lends = lent(tmp_path)
    alone = await finish(await attempt(host, job(), [1.0], tmp_path / "one", resources=lends))
    plan = staged((3,), 2, layers=99)
    cut = await finish(await start(host, job(), plan, tmp_path / "cut", resources=lends))
    assert len({digest(done.path) for done in cut}) == 1
    assert difference(alone[0].path, cut[0].path) <= 1e-5
    for name in ("loss", "test_loss", "accuracy"):
        assert cut[0].metrics[name] == pytest.approx(alone[0].metrics[name], rel=1e-4)


async def test_two_learn_it_together_and_it_answers_in_text(host: ForkWorkers, tmp_path: Path) -> None:
    long = job(max_steps=120, epochs=100, optimizer="adam", learning_rate=0.01)
    done, other = await finish(await attempt(host, long, [0.5, 0.5], tmp_path / "two", resources=lent(tmp_path)))
    assert digest(done.path) == digest(other.path)
    assert done.metrics["accuracy"] == 1.0
    asked = await Member.start(host, "predict", LIMITS, "transformers")
    asked.handle.send(Predict(0, done.path, [], ["aa", "b", "ccc"]))
    assert (await asked.expect(Predicted)).texts == ["A", "B", "C"]
    asked.handle.kill()
