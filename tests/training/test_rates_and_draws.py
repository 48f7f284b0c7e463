"""By which learning rate a step is taken, and from which seed a model draws in it; also after an interruption."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from hivenode.data.dataset import Dataset, Held
from hivenode.data.info import DataInfo
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.optimizers import Optimizer, Outer
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.every_step import EveryStep
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.local_steps import LocalSteps
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Course
from hivenode.training.strategies.wire import Wire

ME, SAMPLES, STEPS = "n" * 32, 100, 50
LIFE = {"batch_size": 20, "epochs": 10, "learning_rate": 0.5, "schedule": "cosine", "warmup_steps": 10}
DATA = Dataset(
    DataInfo("test", SAMPLES, (1,), 2, ("a", "b"), "classification"),
    Held(np.arange(SAMPLES, dtype=np.float32)[:, None], np.zeros(SAMPLES, np.int64)),
    Held(np.zeros((0, 1), np.float32), np.zeros(0, np.int64)),
)


class Sloping:
    """A model, or a learner, whose gradient is 1 everywhere; remembers the seeds it was given."""

    loss_scale = None

    def __init__(self) -> None:
        self.vector = np.zeros(2, np.float32)
        self.weights = np.zeros(1, np.float32)
        self.draws: list[int] = []
        self.rates: list[float] = []

    def backward(self, inputs: np.ndarray, labels: np.ndarray, draw: int, scale: float) -> float:
        self.vector[0] = scale
        self.draws.append(draw)
        return 1.0

    def learn(self, inputs: np.ndarray, labels: np.ndarray, rate: float, draw: int) -> float:
        self.rates.append(rate)
        self.draws.append(draw)
        return 1.0

    def adopt(self, weights: np.ndarray) -> None: ...

    def slots(self) -> Mapping[str, np.ndarray]:
        return {}

    def scalars(self) -> dict[str, str]:
        return {}


def around(spec: TrainingSpec) -> tuple[Group, Wire, Course]:
    group = Group(ME, [Share(ME, 0, 1.0, 0.1, 1)], Alone(ME), lambda message: None, lambda: None)
    return group, Wire(group, "fp32", (1,), (), lambda message: None), Course(DATA, spec, group)


@pytest.mark.parametrize("first", [0, 23])
@pytest.mark.parametrize("micro", [None, 8])
def test_every_step_has_the_rate_of_its_place_in_the_run_and_draws_of_its_own(first: int, micro: int | None) -> None:
    sync = {"sync": "accumulate", "micro_batch_size": micro} if micro else {}
    spec, model = TrainingSpec(**LIFE, **sync), Sloping()
    way = EveryStep(spec, *around(spec), model, Optimizer(spec, 1), model.vector)
    for step in range(first, STEPS):
        before = float(model.weights[0])
        assert way.advance(step, STEPS).step == step + 1
        assert before - float(model.weights[0]) == pytest.approx(learning_rate(spec, step, STEPS), abs=1e-6)
    assert len(model.draws) == (STEPS - first) * (3 if micro else 1)
    assert len(set(model.draws)) == len(model.draws)
    other = Sloping()
    shifted = spec.model_copy(update={"seed": spec.seed + 1})
    EveryStep(shifted, *around(shifted), other, Optimizer(spec, 1), other.vector).advance(first, STEPS)
    assert not set(other.draws) & set(model.draws)


@pytest.mark.parametrize("first", [0, 20])
def test_local_steps_have_the_rates_of_their_places_in_the_run_and_draws_of_their_own(first: int) -> None:
    spec, learner = TrainingSpec(**LIFE, sync="local", sync_every=5), Sloping()
    whole = ((slice(0, 1),),)
    way = LocalSteps(spec, *around(spec), learner, Outer(1.0, 0.0, 1), whole)
    step = first
    while step < STEPS:
        step = way.advance(step, STEPS).step
    assert learner.rates == [learning_rate(spec, at, STEPS) for at in range(first, STEPS)]
    assert len(set(learner.draws)) == STEPS - first
