"""Estimators of scikit-learn that are made of others: pipelines, and ensembles of members fitted by themselves.

A pipeline is fitted in one piece, by one node. Of an ensemble each member is fitted on one node, and all are put
together there (model_parallel). A static table, as `models.estimators`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models import estimators
from hivenode.models.estimators import Argument, Estimator, Task
from hivenode.models.layers import LayerCost, ModelCost
from hivenode.spec.model import ModelSpec
from hivenode.spec.section import Scalar
from hivenode.spec.values import Strategy

FOLDS = 5
"""Parts of the training data by which a stacking ensemble learns how far to trust its members."""
UNIT = 10
"""Members of a bagging ensemble that are fitted by the same node."""
_TRUTH = Argument(truth=True)


@dataclass(frozen=True, slots=True)
class Transform:
    """A step of a pipeline before the last.

    Attributes:
        module: of scikit-learn, where it is.
    """

    module: str
    arguments: Mapping[str, Argument]


TRANSFORMS: Mapping[str, Transform] = {
    "StandardScaler": Transform("preprocessing", {"with_mean": _TRUTH, "with_std": _TRUTH}),
    "MinMaxScaler": Transform("preprocessing", {}),
    "MaxAbsScaler": Transform("preprocessing", {}),
    "RobustScaler": Transform("preprocessing", {"with_centering": _TRUTH, "with_scaling": _TRUTH}),
    "Normalizer": Transform("preprocessing", {"norm": Argument(high=0, choices=("l1", "l2", "max"))}),
    "PolynomialFeatures": Transform(
        "preprocessing",
        {"degree": Argument(2, 1, 4), "interaction_only": _TRUTH, "include_bias": _TRUTH},
    ),
    "PCA": Transform("decomposition", {"n_components": Argument(None, 1, 65_536), "whiten": _TRUTH}),
}
_BAGGING: Mapping[str, Argument] = {
    "n_estimators": Argument(10, 1, 10_000),
    "max_samples": Argument(1.0, 1e-6, 1.0, real=True),
    "bootstrap": _TRUTH,
}
_VOTING: Mapping[str, Argument] = {"voting": Argument("hard", high=0, choices=("hard", "soft"))}
ENSEMBLES: Mapping[str, tuple[Task, Mapping[str, Argument]]] = {
    "VotingClassifier": ("classification", _VOTING),
    "VotingRegressor": ("regression", {}),
    "BaggingClassifier": ("classification", _BAGGING),
    "BaggingRegressor": ("regression", _BAGGING),
    "StackingClassifier": ("classification", {}),
    "StackingRegressor": ("regression", {}),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One of the estimators that another is made of.

    Attributes:
        params: checked, with defaults.
        transform: it is a step before the last of a pipeline.
    """

    name: str
    params: Mapping[str, Scalar]
    transform: bool = False

    @property
    def source(self) -> str:
        return f"sklearn:{self.name}"


def composed(model: ModelSpec) -> bool:
    """Whether it is made of others."""
    return model.name == "Pipeline" or model.name in ENSEMBLES


def entry_of(model: ModelSpec) -> Estimator:
    """How a declared estimator is fitted, and for what. Raises InvalidInput for what cannot be."""
    if not composed(model):
        if model.estimators:
            raise InvalidInput(
                f"{model.source} is not made of other estimators.",
                fix=f"Give model.estimators to sklearn:Pipeline, {', '.join(f'sklearn:{name}' for name in ENSEMBLES)}.",
            )
        return estimators.estimator(model.source)[1]
    made = parts(model)
    if model.name == "Pipeline":
        return Estimator("pipeline", "whole", estimators.estimator(made[-1].source)[1].task, {})
    task, arguments = ENSEMBLES[model.name]
    return Estimator("ensemble", "members", task, arguments)


def arguments_of(model: ModelSpec) -> dict[str, Scalar]:
    """Its own checked arguments, with defaults. Raises InvalidInput."""
    if not composed(model):
        return estimators.arguments(model.source, model.params)
    known = ENSEMBLES[model.name][1] if model.name in ENSEMBLES else {}
    return estimators.checked(model.source, known, model.params)


def parts(model: ModelSpec) -> tuple[Part, ...]:
    """What a composed estimator is made of. Raises InvalidInput naming the place in `model.estimators`."""
    arguments_of(model)
    count, given = len(model.estimators), [dict(each) for each in model.estimators]
    pipeline, bagging = model.name == "Pipeline", model.name.startswith("Bagging")
    if not count or (bagging and count != 1):
        wanted = "exactly one" if bagging else "a table for each of its parts, in their order"
        raise InvalidInput(
            f"{model.source} is made of others, and model.estimators lists {count or 'none'}.",
            fix=f'Give {wanted}, such as estimators = [{{ estimator = "DecisionTreeClassifier", max_depth = 5 }}].',
        )
    return tuple(
        _part(model, number, each, transform=pipeline and number < count - 1) for number, each in enumerate(given)
    )


def _part(model: ModelSpec, number: int, given: dict[str, Scalar], *, transform: bool) -> Part:
    where = f"model.estimators[{number}]"
    name = given.pop("estimator", None)
    known: list[str] = list(TRANSFORMS if transform else estimators.ESTIMATORS)
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        fix = f"Did you mean {near[0]!r}?" if near else f"Valid names are {', '.join(known)}."
        said = "lacks `estimator`" if name is None else f"is {str(name)[:64]!r}"
        raise InvalidInput(f"{where} {said}, and {model.source} can have no such part there.", fix=fix)
    if transform:
        return Part(name, estimators.checked(f"{name} in {where}", TRANSFORMS[name].arguments, given), transform=True)
    entry = estimators.ESTIMATORS[name]
    task = entry.task if model.name == "Pipeline" else ENSEMBLES[model.name][0]
    if entry.task != task or entry.task == "clustering":
        raise InvalidInput(f"{where} is {name}, which is for {entry.task}.", fix=f"Use an estimator for {task}.")
    return Part(name, estimators.arguments(f"sklearn:{name}", given))


def describe(model: ModelSpec, info: DataInfo) -> ModelCost:
    """What learning it costs, roughly, with a layer for each member of an ensemble."""
    if not composed(model):
        entry_of(model)
        return estimators.describe(model.source, model.params, info)
    learning = [part for part in parts(model) if not part.transform]
    costs, times, kept = (
        [estimators.describe(part.source, part.params, info) for part in learning],
        1,
        info.sample_bytes,
    )
    if model.name.startswith("Bagging"):
        costs, times = costs * members_of(model), UNIT
    folds = FOLDS + 1 if model.name.startswith("Stacking") else 1
    layers = tuple(
        LayerCost(str(number), cost.parameters * times, int(cost.flops_per_sample) * times * folds, 2 * kept)
        for number, cost in enumerate(costs)
    )
    flops = sum(layer.flops for layer in layers)
    return ModelCost(model.source, sum(layer.parameters for layer in layers), flops, 2 * kept, layers)


def fits(model: ModelSpec, info: DataInfo) -> None:
    """Raises InvalidInput: the estimator does not fit the data."""
    name, entry = model.name, entry_of(model)
    arguments_of(model)
    if info.vocabulary:
        raise InvalidInput(f"{name} takes numbers, and {info.source} is text.", fix="Use a zoo: model for text.")
    if entry.task not in ("clustering", info.task):
        raise InvalidInput(
            f"{name} is for {entry.task}, and {info.source} is for {info.task}.",
            fix="Use another estimator, or other data.",
        )
    if entry.task == "regression" and info.outputs > 1 and name in ("SGDRegressor", "GradientBoostingRegressor"):
        raise InvalidInput(
            f"{name} predicts one value, and {info.source} has {info.outputs}.",
            fix="Use RandomForestRegressor or Ridge.",
        )


def members_of(model: ModelSpec) -> int:
    """Units in which the members of an ensemble are fitted, each by one node; 0 of what is none."""
    if model.name not in ENSEMBLES:
        return 0
    if model.name.startswith("Bagging"):
        return -(-int(arguments_of(model)["n_estimators"]) // UNIT)
    return len(model.estimators)


def masked(model: ModelSpec) -> dict[Strategy, str]:
    """Why strategies cannot run for a declared estimator; those not named can."""
    entry, name = entry_of(model), model.name
    if entry.kind != "members":
        reasons = estimators.masked(name, entry)
        if name == "Pipeline":
            reasons[Strategy.pipeline_parallel] = "a Pipeline's steps are fitted one after the other, each to all data"
        return reasons
    reasons = {
        Strategy.pipeline_parallel: f"{name} has no layers to cut; model_parallel divides its members",
        Strategy.data_parallel: f"the members of {name} are fitted to all data; model_parallel divides them over nodes",
        Strategy.federated: f"{name} has no weights to average",
    }
    if members_of(model) < 2:
        reasons[Strategy.model_parallel] = f"there are too few members in {name} to divide"
    return reasons
