"""Checkpoints of a line of stages, gathered while training goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hivenode.training import tensorfiles
from hivenode.training.stages.gather import Kind, Snapshots, Wanted
from hivenode.training.stages.holdings import Holdings
from hivenode.training.stages.line import Line
from tests.training.stages.test_line import pair

__all__ = ["pair"]

SHAPES = {"first": (3,), "second": (2, 2)}
HELD = Holdings(SHAPES, (("first",), ("second",)))


def test_a_checkpoint_is_of_one_moment_however_late_another_stage_is(pair: tuple[Line, Line], tmp_path: Path) -> None:
    state = {"power": "of step 8"}
    vectors = [np.full(3, 1.0, np.float32), np.full(4, 2.0, np.float32)]
    failures: list[str] = []
    written: list[Path] = []

    def wanted(step: int) -> Wanted:
        plan = tensorfiles.layout(SHAPES, {"step": str(step), **state})
        return Wanted(tmp_path / "checkpoint", plan, (Kind(HELD, HELD.in_model(plan, "")),))

    snapshots = []
    for number, line in enumerate(pair):
        line.limit = 1 << 20
        (tmp_path / str(number)).mkdir()
        snapshots.append(
            Snapshots(
                line, number, tmp_path / str(number), wanted,
                lambda step, path: written.append(path), lambda step, why: failures.append(why),
            )
        )  # fmt: skip
    snapshots[0].save(8, [vectors[0]])
    state["power"] = "of step 9"  # the first stage trains on while the second has yet to keep its part
    vectors[0] += 10.0
    snapshots[1].save(8, [vectors[1]])
    vectors[1] += 10.0
    for each in snapshots:
        each.wait()
    assert (failures, written) == ([], [tmp_path / "checkpoint"])
    parts = tensorfiles.Parts(written[0])
    assert dict(parts.metadata) == {"step": "8", "power": "of step 8"}
    for name, value in (("first", 1.0), ("second", 2.0)):
        found = np.empty(HELD.size(HELD.holders(name)[0]), np.float32)
        parts.read_into(found, name)
        assert found == pytest.approx(value)
