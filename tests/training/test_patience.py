"""When a run ends early, and that it ends there too after an interruption."""

from __future__ import annotations

import pytest

from hivenode.spec.training import TrainingSpec
from hivenode.training.patience import Patience


def judged(patience: Patience, *losses: float | None) -> list[bool]:
    """Whether it goes on after each of these epochs."""
    found = []
    for loss in losses:
        patience.judge(loss)
        found.append(patience.going)
    return found


def test_it_ends_after_so_many_epochs_that_brought_nothing() -> None:
    assert judged(Patience(TrainingSpec(patience=2)), 1.0, 0.9, 0.95, 0.9) == [True, True, True, False]
    assert judged(Patience(TrainingSpec(patience=2)), 1.0, 1.0, 0.9, 1.0, 1.0) == [True, True, True, True, False]


def test_less_than_the_least_improvement_is_nothing_and_is_measured_from_the_best() -> None:
    spec = TrainingSpec(patience=3, min_improvement=0.1)
    assert judged(Patience(spec), 1.0, 0.95, 0.92, 0.91) == [True, True, True, False]
    assert judged(Patience(spec), 1.0, 0.95, 0.92, 0.89, 0.85, 0.8) == [True] * 6


def test_without_patience_or_held_out_samples_it_never_ends() -> None:
    assert all(judged(Patience(TrainingSpec()), *[1.0] * 9))
    assert all(judged(Patience(TrainingSpec(patience=1)), *[None] * 9))


@pytest.mark.parametrize("stopped", range(5))
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(stopped: int) -> None:
    spec, losses = TrainingSpec(patience=2, min_improvement=0.05), (1.0, 0.5, 0.6, 0.47, 0.46)
    first, again = Patience(spec), Patience(spec)
    before = judged(first, *losses[:stopped])
    again.restore(first.scalars())
    assert before + judged(again, *losses[stopped:]) == [True, True, True, False, False]
