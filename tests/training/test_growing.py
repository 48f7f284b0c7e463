"""Forests and ensembles from whichever checkpoint: the same to the bit, and nothing grown twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from hivenode.data.dataset import Dataset
from hivenode.data.reading import read
from hivenode.errors import Corrupted
from hivenode.net.local import FromWorker, Log
from hivenode.spec.data import DataSpec
from hivenode.spec.job import JobSpec, ModelSpec, TrainingSpec
from hivenode.spec.values import Share
from hivenode.training import forest
from hivenode.training.checkpoints import State
from hivenode.training.exchange.codecs import Codec
from hivenode.training.forest import Fitting
from hivenode.training.frameworks.predictors import Floats
from hivenode.training.frameworks.sklearn_fitting import pack
from hivenode.training.strategies.collective import Collective, Mean
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.single import Alone

ME = "a" * 32
WINE = read(DataSpec(source="sklearn:wine"))
TREE = {"estimator": "DecisionTreeClassifier"}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after so many units, and portions of one, however fast they are."""
    monkeypatch.setattr(forest, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(forest, "GROW_SECONDS", 0.0)


class Run:
    """A fitting, what it has kept and what it has told."""

    def __init__(self, fitting: Fitting, kept: list[State], told: list[FromWorker]) -> None:
        self.fitting, self.kept, self.told = fitting, kept, told

    def tensors(self) -> dict[str, bytes]:
        self.fitting.run()
        return {name: array.tobytes() for name, array in self.fitting.tensors.items()}

    @property
    def grown(self) -> int:
        (line,) = (m for m in self.told if isinstance(m, Log) and "grown" in m.fields)
        return int(line.fields["grown"] or 0)


def begun(
    model: ModelSpec,
    data: Dataset = WINE,
    earlier: Mapping[str, Floats] | None = None,
    collective: Collective | None = None,
) -> Run:
    """Of one member; a checkpoint is due after 20 trees or members."""
    collective, kept, told = collective or Alone(ME), list[State](), list[FromWorker]()
    group = Group(ME, (Share(ME, 0, 1.0, 0.01, 1 << 20),), collective, told.append, lambda: None)
    spec = JobSpec(name="test", model=model, training=TrainingSpec(checkpoint_every_steps=20))
    return Run(Fitting(spec, group, data, collective, told.append, 1, True, kept.append, earlier or {}), kept, told)


def forest_of(trees: int) -> ModelSpec:
    return ModelSpec(source="sklearn:ExtraTreesClassifier", params={"n_estimators": trees, "max_depth": 3})


@pytest.mark.parametrize(("model", "units", "steps"), [
    (forest_of(65), 7, [2, 4, 6]),
    (ModelSpec(source="sklearn:BaggingClassifier", params={"n_estimators": 45}, estimators=(TREE,)), 5, [2, 4]),
    (ModelSpec(source="sklearn:StackingClassifier", estimators=(TREE, {"estimator": "GaussianNB"})), 2, [1]),
])  # fmt: skip
def test_from_every_checkpoint_it_is_the_same_and_nothing_is_grown_twice(
    model: ModelSpec, units: int, steps: list[int]
) -> None:
    whole = begun(model)
    tensors = whole.tensors()
    assert [state.step for state in whole.kept] == steps
    for state in whole.kept:
        again = begun(model)
        again.fitting.resume(state)
        assert again.tensors() == tensors
        assert again.grown == units - state.step


def test_a_forest_on_top_of_another_is_gone_on_with() -> None:
    earlier = begun(forest_of(25))
    earlier.fitting.run()
    whole = begun(forest_of(85), earlier=earlier.fitting.tensors)
    tensors = whole.tensors()
    again = begun(forest_of(85), earlier=earlier.fitting.tensors)
    again.fitting.resume(whole.kept[-1])
    assert again.tensors() == tensors == begun(forest_of(85)).tensors()
    assert again.grown == 2


def test_of_private_samples_nothing_is_kept() -> None:
    own = begun(forest_of(65), data=replace(WINE, private=True))
    own.fitting.run()
    assert (own.kept, own.fitting.step) == ([], 0)


@pytest.mark.parametrize("vector", [[], [1.0], [0.0], [1, 0, 1, 5], [1.0, 7.0, 0.0]])
def test_what_holds_no_units_is_refused(vector: list[float]) -> None:
    nothing = np.zeros(0, np.float32)
    run = begun(forest_of(65))
    state = State(1, nothing, nothing, {"unit0": np.array(vector, np.float32)}, {})

    def go_on() -> None:
        run.fitting.resume(state)
        run.fitting.run()

    with pytest.raises(Corrupted):
        go_on()


class Spoilt(Alone):
    """What comes of the exchange of that number is not what its members gave."""

    def __init__(self, number: int, spoil: Callable[[Floats], None]) -> None:
        super().__init__(ME)
        self._left, self._spoil = number, spoil

    def mean(self, vector: Floats, weight: float, codec: Codec | None = None, *, judged: bool = False) -> Mean:
        self._left -= 1
        if not self._left:
            self._spoil(vector)
        return super().mean(vector, weight, codec, judged=judged)


def lengths(value: float) -> tuple[int, Callable[[Floats], None]]:
    return 1, lambda vector: vector.__setitem__(1, value)


def words(given: list[float]) -> tuple[int, Callable[[Floats], None]]:
    return 2, lambda vector: vector.__setitem__(slice(1, 1 + len(given)), given)


def units(vector: Floats) -> tuple[int, Callable[[Floats], None]]:
    return words(vector.view(np.uint16).astype(np.float32).tolist())


@pytest.mark.parametrize(("number", "spoil"), [
    lengths(math.nan), lengths(math.inf), lengths(-1.0), lengths(0.0), lengths(2.0**22), lengths(1e30),
    (1, lambda vector: vector.fill(0.0)), (2, lambda vector: vector.fill(math.nan)),
    words([-1.0]), words([70_000.0]), units(np.array([1, 0, 1, 2**23], np.float32)),
    units(np.array([1, 0, 1, 2, 255, 255], np.float32)), units(pack({99: {}})),
])  # fmt: skip
def test_what_other_members_give_is_bounded_and_checked(number: int, spoil: Callable[[Floats], None]) -> None:
    run = begun(forest_of(65), collective=Spoilt(number, spoil))
    with pytest.raises(Corrupted, match="members have grown makes no sense"):
        run.fitting.run()
