"""Learning rates over a run, and gradients cut to length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hivenode.spec.training import TrainingSpec
from hivenode.training.schedules import clip, learning_rate


def rates(steps: int, **training: object) -> list[float]:
    spec = TrainingSpec(learning_rate=0.1, **training)
    return [learning_rate(spec, step, steps) for step in range(steps)]


def test_constant_is_constant() -> None:
    assert rates(5) == [0.1] * 5


def test_warm_up_rises_to_the_rate() -> None:
    assert rates(6, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_falls_steadily_from_the_rate_towards_the_last(schedule: str) -> None:
    found = rates(100, schedule=schedule, final_learning_rate=0.01, warmup_steps=10)
    assert found[10] == pytest.approx(0.1)
    assert found[55] == pytest.approx(0.055, rel=0.01)
    assert 0.01 < found[-1] < 0.012
    assert found[10:] == sorted(found[10:], reverse=True)


@pytest.mark.parametrize("size", [1, 7, 1000, 200_001])
def test_a_long_gradient_is_cut_as_pytorch_does_it(size: int) -> None:
    gradient = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    parameter = torch.nn.Parameter(torch.zeros(size))
    parameter.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    assert clip(gradient, 0.5) == pytest.approx(float(expected), rel=1e-5)
    assert np.allclose(gradient, parameter.grad.numpy(), rtol=1e-4)


def test_a_short_gradient_stays_to_the_bit() -> None:
    gradient = np.array([0.3, -0.4], np.float32)
    before = gradient.tobytes()
    assert clip(gradient, 1.0) == pytest.approx(0.5)
    assert gradient.tobytes() == before
