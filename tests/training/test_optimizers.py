"""Our optimizers against PyTorch's, and their state."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from hivenode.spec.job import TrainingSpec
from hivenode.training.optimizers import Optimizer, Outer

SPECS = [
    TrainingSpec(optimizer="sgd", learning_rate=0.1),
    TrainingSpec(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01),
    TrainingSpec(optimizer="adam", learning_rate=0.01),
    TrainingSpec(optimizer="adam", learning_rate=0.01, weight_decay=0.1),
    TrainingSpec(optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
]


def _reference(spec: TrainingSpec, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            [parameter], lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind([parameter], lr=spec.learning_rate, weight_decay=spec.weight_decay)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.optimizer}-{spec.momentum}-{spec.weight_decay}")
def test_the_same_course_as_pytorch(spec: TrainingSpec) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=50).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    ours, theirs = Optimizer(spec, 50), _reference(spec, parameter)
    for _ in range(30):
        gradient = rng.normal(size=50).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        ours.step(weights, gradient, spec.learning_rate)
    assert np.allclose(weights, parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.optimizer}-{spec.momentum}-{spec.weight_decay}")
def test_restored_state_goes_on_to_the_bit(spec: TrainingSpec) -> None:
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(10, 20)).astype(np.float32)
    straight = np.ones(20, np.float32)
    first = Optimizer(spec, 20)
    for gradient in gradients[:5]:
        first.step(straight, gradient.copy(), spec.learning_rate)
    resumed = straight.copy()
    second = Optimizer(spec, 20)
    second.restore(first.slots(), first.scalars())
    for gradient in gradients[5:]:
        first.step(straight, gradient.copy(), spec.learning_rate)
        second.step(resumed, gradient.copy(), spec.learning_rate)
    assert straight.tobytes() == resumed.tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_outer_optimizer_is_pytorchs_nesterov(momentum: float) -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=40).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    theirs = torch.optim.SGD([parameter], lr=0.7, momentum=momentum, nesterov=momentum > 0)
    ours = Outer(0.7, momentum, 40)
    for _ in range(10):
        back = rng.normal(size=40).astype(np.float32)
        parameter.grad = torch.from_numpy(back.copy())
        theirs.step()
        ours.step(weights, back, number=10_000, run=slice(None))
    assert np.allclose(weights, parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_the_outer_momentum_rises_from_the_plain_mean() -> None:
    ours, weights = Outer(0.7, 0.9, 4), np.zeros(4, np.float32)
    moved = []
    for number in range(60):
        before = weights.copy()
        ours.step(weights, np.full(2, 1.0, np.float32), number, slice(1, 3))
        assert weights[0] == weights[3] == 0.0
        moved.append(float(before[1] - weights[1]))
    assert moved[0] == 1.0
    assert all(later >= earlier for earlier, later in pairwise(moved))
    assert moved[-1] == pytest.approx(0.7 * (1 + 0.9 / (1 - 0.9)), rel=0.05)
