"""Curves of a training: remembered, drawn, and as TensorBoard's own reader finds them in event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hivenode.cli.curves import MAX_POINTS, Curve, points
from hivenode.cli.pictures import chart
from hivenode.cli.progress import JobView
from hivenode.spec.status import Notice
from tests.admin.memory import NODES, summary
from tests.cli.conftest import Endpoint, Run
from tests.cli.test_watching import follower, in_background

JOB = "j-abcdefghjk"


def line(step: int, event: str = "epoch", **values: Any) -> dict[str, Any]:
    whole = {"time": 1_700_000_000.0 + step, "level": "info", "node": "ash", "job": JOB, "attempt": 1, "epoch": step}
    return {**whole, "event": event, "step": step, **values}


LINES = [line(step, loss=1.0 / step, accuracy=0.5 + step / 100, test_loss=None) for step in range(1, 21)]


def read(folder: Path) -> Any:
    found = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = found.EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_event_files_are_read_by_tensorboard(daemon: Endpoint, run: Run, tmp_path: Path) -> None:
    daemon.node.job_list[JOB] = summary(state="finished", ended_at=1.0)
    daemon.node.log_lines = [*LINES, line(1000, "progress", loss=0.01, tokens_per_second=1e6)]
    for _ in range(2):  # the second time it is written anew, and nothing is in it twice
        answer = run("tensorboard", JOB, "--to", tmp_path / "curves")
        assert answer.code == 0, answer
    assert "21 points" in answer.out
    assert f"tensorboard --logdir {tmp_path / 'curves'}" in answer.out
    assert "cedar" in answer.err, "whose lines are missing is said"
    found = read(tmp_path / "curves" / f"digits-{JOB}")
    assert set(found.Tags()["scalars"]) == {
        "loss/train", "accuracy/held_out", "training/epoch", "speed/tokens_per_second"
    }  # fmt: skip
    losses = found.Scalars("loss/train")
    assert [each.step for each in losses] == [*range(1, 21), 1000]
    assert [each.value for each in losses] == pytest.approx([*(1.0 / step for step in range(1, 21)), 0.01])
    assert losses[0].wall_time == 1_700_000_001.0


def test_event_files_grow_while_the_job_runs(daemon: Endpoint, run: Run, tmp_path: Path) -> None:
    daemon.node.job_list[JOB] = summary()
    daemon.node.log_lines = LINES[:5]
    answer = in_background(lambda: run("tensorboard", JOB, "--to", tmp_path, "--follow"))
    follower(daemon)
    daemon.do(daemon.node.progress, JOB, "ash", 7)
    daemon.do(lambda: daemon.node.log_lines.extend(LINES[5:]))
    daemon.do(daemon.node.change, JOB, state="finished", ended_at=1.0)
    assert answer().code == 0
    assert len(read(tmp_path / f"digits-{JOB}").Scalars("loss/train")) == 20


def test_a_folder_that_cannot_be_written_is_named(daemon: Endpoint, run: Run, tmp_path: Path) -> None:
    daemon.node.job_list[JOB] = summary(state="finished", ended_at=1.0)
    (tmp_path / "file").write_text("")
    answer = run("tensorboard", JOB, "--to", tmp_path / "file")
    assert answer.code == 2
    assert str(tmp_path / "file") in answer.err


def test_a_curve_stays_bounded_and_goes_back_with_the_training() -> None:
    curve = Curve()
    for step in range(5000):
        curve.add(step, float(step))
    assert MAX_POINTS // 2 <= len(curve.steps) <= MAX_POINTS
    assert curve.values == [float(step) for step in curve.steps]
    assert curve.steps[-1] == 4999
    curve.add(100, 7.0)
    assert curve.steps[-1] == 100
    assert all(step < 100 for step in curve.steps[:-1])
    curve.add(101, float("nan"))
    curve.add(102, None)
    assert curve.steps[-1] == 100


def test_a_chart_falls_where_the_values_do() -> None:
    drawn = chart([1, 2, 3, 4, 40], [8.0, 4.0, 2.0, 1.0, 1.0], 40, 6)
    assert len(drawn) == 6
    assert {len(row) for row in drawn} == {40}
    assert drawn[0].startswith("8▕")
    assert drawn[-1].startswith("1▕")
    blank = chr(0x2800)
    first = [next(place for place, cell in enumerate(row.partition("▕")[2]) if cell != blank) for row in drawn]
    assert first == sorted(first), "lower lines are reached later"
    assert drawn[-1].partition("▕")[2][-1] != blank
    assert first[-1] < 10, "by step, not by number"
    assert len(set(chart([5], [3.0], 30, 4)[2].partition("▕")[2])) == 1, "one value is a level line"


def test_a_watcher_who_comes_late_sees_what_was_before() -> None:
    view = JobView(JOB, {})
    view.recall(points([*LINES, {"event": "started", "time": 1.0, "pid": 7}, line(3, loss="no number")]))
    data = {
        "job": JOB, "attempt": 1, "node": NODES["ash"], "name": "ash", "step": 25, "steps": 100, "epoch": 25,
        "epochs": 100, "loss": 0.02, "accuracy": 0.9, "samples_per_second": 100.0, "members": 1, "test_loss": 0.3,
        "convergence": 0.1, "tokens_per_second": 6400.0,
    }  # fmt: skip
    view.hear(Notice("progress", 0.0, data), 1.0)
    view.hear(Notice("progress", 0.0, {**data, "step": 26}), 2.0)
    assert view.curves["loss"].steps == [*range(1, 21), 25, 26]
    assert view.curves["accuracy"].values[-2:] == [0.7, 0.9], "a figure that is repeated is no new point"
    assert view.tokens_per_second == 6400.0
    assert view.convergence == 0.1
