"""Estimators of the catalogue are gone on with: as scikit-learn does itself where it can, else refused by name."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from hivenode.data.dataset import AS_THEY_ARE, Dataset, Held, statistics
from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.card import ModelCard
from hivenode.models.going_on import fits, going_on
from hivenode.spec.model import ModelSpec
from hivenode.training.earlier import Earlier
from hivenode.training.frameworks import sklearn_fitting as fitting
from hivenode.training.frameworks.estimator_model import KEPT, EstimatorModel
from hivenode.training.frameworks.sklearn_learners import EstimatorLearner, learner
from tests.training.test_estimators import data

CLASSES = DataInfo("wine", 178, (13,), 3, ("a", "b", "c"), "classification")


def batches(learns: EstimatorLearner, rows: np.ndarray, labels: np.ndarray, part: slice) -> None:
    for start in range(0, 160, 16)[part]:
        learns.learn(rows[start : start + 16], labels[start : start + 16], 0.1, 0)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ["SGDClassifier", "GaussianNB", "MiniBatchKMeans"])
def test_what_learns_by_batches_goes_on_as_if_it_had_never_ended(name: str, parts: int) -> None:
    rows, labels = data("wine")
    params = {"n_clusters": 3} if name == "MiniBatchKMeans" else {}
    model = ModelSpec(source=f"sklearn:{name}", params=params)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, labels = rows[order], labels[order]

    def made() -> EstimatorLearner:
        return learner(model.source, model.params, rows, 3, 1)

    whole, first, second = made(), made(), made()
    batches(whole, rows, labels, slice(None))
    batches(first, rows, labels, slice(5))
    tensors = first.tensors() | {KEPT + key: array for key, array in first.kept(parts, 80 * parts).items()}
    assert EstimatorModel(model, CLASSES, tensors).predict(rows).shape == (178, 3), "it is asked as ever"
    earlier = Earlier(ModelCard("sklearn", model, CLASSES, AS_THEY_ARE), tensors)
    second.go_on(earlier.tensors, earlier.kept, parts)
    batches(second, rows, labels, slice(5, None))
    for key, array in whole.tensors().items():
        assert np.allclose(second.tensors()[key], array, rtol=1e-5, atol=1e-6), key


def test_a_network_goes_on_from_its_weights() -> None:
    rows, labels = data("wine")
    first, second = (learner("sklearn:MLPClassifier", {"hidden": 8, "depth": 2}, rows, 3, seed) for seed in (1, 2))
    batches(first, rows, labels, slice(None))
    second.go_on(first.tensors(), lambda name: np.zeros(0, np.float32), 1)
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.predictor.outputs(rows), second.predictor.outputs(rows))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_networks_optimizer_is_part_of_its_checkpoint(solver: str) -> None:
    rows, labels = data("wine")
    whole, first, second = (learner("sklearn:MLPClassifier", {"solver": solver}, rows, 3, 1) for _ in range(3))
    batches(whole, rows, labels, slice(None))
    batches(first, rows, labels, slice(5))
    second.adopt(first.weights)
    second.restore({name: slot.copy() for name, slot in first.slots().items()}, first.scalars())
    batches(second, rows, labels, slice(5, None))
    assert np.array_equal(second.weights, whole.weights)


@pytest.mark.parametrize("name", ["RandomForestClassifier", "ExtraTreesClassifier"])
def test_a_forest_that_is_given_more_trees_is_one_grown_at_once(name: str) -> None:
    rows, labels = data("wine")

    def grown(count: int, earlier: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        model = ModelSpec(source=f"sklearn:{name}", params={"n_estimators": count})
        forest = fitting.Forest(model, rows, labels, 3, 5, 1, earlier)
        units = {unit: forest.grow(range(unit, unit + 1))[unit] for unit in range(forest.units)}
        return forest.together([units[unit] for unit in range(forest.units)])

    more, once = grown(47, grown(25, {})), grown(47, {})
    assert len(more["roots"]) == 47
    assert all(np.array_equal(array, more[key]) for key, array in once.items())


def test_data_come_on_the_scale_by_which_it_has_learnt() -> None:
    raw = np.random.default_rng(0).normal(50.0, 4.0, (40, 13))
    old, new = statistics(raw[:20]), statistics(raw[20:])
    labels = np.arange(20) % 3
    held = Dataset(CLASSES, Held(new.apply(raw[20:]), labels), Held(new.apply(raw[20:22]), labels[:2]), new)
    earlier = Earlier(ModelCard("sklearn", ModelSpec(source="sklearn:GaussianNB"), CLASSES, old), {})
    made = earlier.scaled(held)
    assert made.normalisation == old
    assert np.allclose(made.train.take(np.arange(20))[0], old.apply(raw[20:]), atol=1e-5)


def refused(call: Callable[[], object], said: str) -> str:
    with pytest.raises(InvalidInput, match=said) as caught:
        call()
    return caught.value.fix


def test_what_cannot_go_on_is_refused_by_name_with_the_reason() -> None:
    forest = ModelSpec(source="sklearn:RandomForestClassifier", params={"n_estimators": 25, "max_depth": 4})
    assert going_on("f:1", forest, {"n_estimators": 60}).params == {"n_estimators": 60, "max_depth": 4}
    for params in ({}, {"n_estimators": 25}, {"n_estimators": 60, "max_depth": 9}, {"n_estimators": True}):
        fix = refused(
            lambda given=params: going_on("f:1", forest, given), "f:1 is a RandomForestClassifier of 25 trees"
        )
        assert "n_estimators = 50" in fix
    linear = ModelSpec(source="sklearn:SGDClassifier")
    assert going_on("s:1", linear, {}) == linear
    refused(lambda: going_on("s:1", linear, {"alpha": 0.1}), "the job gives alpha")
    for source in ("LogisticRegression", "GradientBoostingClassifier", "KMeans"):
        refused(
            lambda named=source: going_on("w:1", ModelSpec(source=f"sklearn:{named}"), {}), f"{source}, which is fit"
        )
    ensemble = ModelSpec(source="sklearn:VotingClassifier", estimators=({"estimator": "GaussianNB"},) * 2)
    refused(lambda: going_on("v:1", ensemble, {}), "made of others that are fitted in one piece")


def test_data_of_another_kind_are_refused_with_what_differs() -> None:
    model = ModelSpec(source="sklearn:GaussianNB")
    card = ModelCard("sklearn", model, CLASSES, AS_THEY_ARE)

    def other(**changes: object) -> DataInfo:
        return msgspec.structs.replace(CLASSES, source="new", **changes)

    fits(card, model, other(samples=9))
    fits(card, model, other(labels=()))
    refused(lambda: fits(card, model, other(input_shape=(12,))), "knows samples of 13 values, and new has 12")
    refused(
        lambda: fits(card, model, other(outputs=4, labels=("a", "b", "c", "d"))),
        "knows 3 classes, and new also has d",
    )
    refused(lambda: fits(card, model, other(outputs=2, labels=("a", "b"))), "and new lacks c")
    refused(lambda: fits(card, model, other(labels=("b", "a", "c"))), "has them in another order")
    refused(lambda: fits(card, model, other(outputs=2, labels=())), "knows 3 classes, and new has 2")
    refused(
        lambda: fits(card, ModelSpec(source="sklearn:SGDClassifier"), CLASSES), "The weights given are of sklearn:G"
    )
    blank = Earlier(card, {})
    refused(lambda: blank.kept("sums"), "kept without what it takes to go on")
