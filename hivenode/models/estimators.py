"""Estimators of scikit-learn that a job may name, and what they cost: a static table; a daemon needs no scikit-learn.

Nothing else of that library is ever built from a declaration. How an estimator is shared among nodes follows from its
kind:

- `steps`: it learns batch by batch (`partial_fit`); members average what they have learnt.
- `sums`: likewise, but what it holds are sums over the samples it has seen, so that members' sums add up exactly.
- `trees`: independent trees; each is grown on one node, and all are put together.
- `whole`: it is fitted in one piece, by one node.
- `members`: it is made of others (`models.compositions`); each is fitted on one node, and all are put together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.layers import LayerCost, ModelCost
from hivenode.spec.section import Scalar
from hivenode.spec.values import Strategy

Kind = Literal["steps", "sums", "trees", "whole", "members"]
Task = Literal["classification", "regression", "clustering"]


@dataclass(frozen=True, slots=True)
class Argument:
    """Of an estimator: whole numbers or, with `real`, any from `low` to `high`; or one of `choices`; or a truth value.
    `default` None leaves it to scikit-learn."""

    default: Scalar | None = None
    low: float = 0
    high: float = 1e6
    real: bool = False
    choices: tuple[str, ...] = ()
    truth: bool = False

    def check(self, what: str, value: Scalar) -> Scalar:
        """Raises InvalidInput."""
        if self.truth:
            if isinstance(value, bool):
                return value
            raise InvalidInput(f"{what} is {value!r}.", fix="Give true or false.")
        if isinstance(value, str):
            if value in self.choices:
                return value
            fix = f"Choose one of {', '.join(self.choices)}." if self.choices else "Give a number."
            raise InvalidInput(f"{what} is {value[:64]!r}.", fix=fix)
        number = not isinstance(value, bool) and (isinstance(value, int) or self.real)
        if number and self.low <= value <= self.high and (self.high > self.low):
            return value
        raise InvalidInput(
            f"{what} is {value!r}.",
            fix=f"Give {'a' if self.real else 'a whole'} number from {self.low:g} to {self.high:g}."
            if self.high > self.low
            else f"Choose one of {', '.join(self.choices)}.",
        )


@dataclass(frozen=True, slots=True)
class Estimator:
    """One that may be named.

    Attributes:
        module: of scikit-learn, where it is.
        cost: FLOPs of learning one sample once, over those of a linear model.
    """

    module: str
    kind: Kind
    task: Task
    arguments: Mapping[str, Argument]
    cost: float = 1.0


def _only(*names: str, default: str | None = None) -> Argument:
    return Argument(default, high=0, choices=names)


def _real(high: float, low: float = 0.0, default: float | None = None) -> Argument:
    return Argument(default, low, high, real=True)


def _whole(low: int, high: int, default: int | None = None) -> Argument:
    return Argument(default, low, high)


_TRUTH = Argument(truth=True)
_LINEAR: Mapping[str, Argument] = {
    "penalty": _only("l2", "l1", "elasticnet"),
    "alpha": _real(1e3),
    "l1_ratio": _real(1.0),
    "learning_rate": _only("optimal", "constant", "invscaling", "adaptive"),
    "eta0": _real(1e3, 1e-12),
    "power_t": _real(10),
    "fit_intercept": _TRUTH,
}
_NETWORK: Mapping[str, Argument] = {
    "hidden": _whole(1, 65_536, 64),
    "depth": _whole(1, 64, 1),
    "activation": _only("relu", "tanh", "logistic", "identity", default="relu"),
    "solver": _only("adam", "sgd"),
    "alpha": _real(1e3),
    "learning_rate_init": _real(10, 1e-9),
    "momentum": _real(1.0),
}
_TREE: Mapping[str, Argument] = {
    "max_depth": _whole(1, 10_000),
    "min_samples_split": _whole(2, 10**9),
    "min_samples_leaf": _whole(1, 10**9),
    "max_leaf_nodes": _whole(2, 10**9),
    "max_features": Argument(low=1, high=1e9, choices=("sqrt", "log2")),
    "min_impurity_decrease": _real(1e9),
}
_FOREST: Mapping[str, Argument] = {**_TREE, "n_estimators": _whole(1, 100_000, 100), "bootstrap": _TRUTH}
_BOOST: Mapping[str, Argument] = {
    **_TREE,
    "n_estimators": _whole(1, 100_000, 100),
    "learning_rate": _real(10, 1e-9),
    "subsample": _real(1.0, 1e-6),
}
_GINI = {"criterion": _only("gini", "entropy", "log_loss")}
_ERROR = {"criterion": _only("squared_error", "absolute_error", "friedman_mse", "poisson")}

ESTIMATORS: Mapping[str, Estimator] = {
    "SGDClassifier": Estimator(
        "linear_model",
        "steps",
        "classification",
        {**_LINEAR, "loss": _only("log_loss", "hinge", "modified_huber", default="log_loss")},
    ),
    "SGDRegressor": Estimator(
        "linear_model", "steps", "regression", {**_LINEAR, "loss": _only("squared_error", "huber")}
    ),
    "MLPClassifier": Estimator("neural_network", "steps", "classification", _NETWORK, 10),
    "MLPRegressor": Estimator("neural_network", "steps", "regression", _NETWORK, 10),
    "GaussianNB": Estimator("naive_bayes", "sums", "classification", {"var_smoothing": _real(1.0)}),
    "MiniBatchKMeans": Estimator("cluster", "sums", "clustering", {"n_clusters": _whole(1, 100_000, 8)}),
    "RandomForestClassifier": Estimator("ensemble", "trees", "classification", {**_FOREST, **_GINI}, 50),
    "RandomForestRegressor": Estimator("ensemble", "trees", "regression", {**_FOREST, **_ERROR}, 50),
    "ExtraTreesClassifier": Estimator("ensemble", "trees", "classification", {**_FOREST, **_GINI}, 30),
    "ExtraTreesRegressor": Estimator("ensemble", "trees", "regression", {**_FOREST, **_ERROR}, 30),
    "DecisionTreeClassifier": Estimator("tree", "whole", "classification", {**_TREE, **_GINI}, 50),
    "DecisionTreeRegressor": Estimator("tree", "whole", "regression", {**_TREE, **_ERROR}, 50),
    "GradientBoostingClassifier": Estimator("ensemble", "whole", "classification", _BOOST, 100),
    "GradientBoostingRegressor": Estimator("ensemble", "whole", "regression", _BOOST, 100),
    "LogisticRegression": Estimator(
        "linear_model",
        "whole",
        "classification",
        {"C": _real(1e9, 1e-9), "max_iter": _whole(1, 10**6, 1000), "fit_intercept": _TRUTH},
        20,
    ),
    "LinearRegression": Estimator("linear_model", "whole", "regression", {"fit_intercept": _TRUTH}, 5),
    "Ridge": Estimator("linear_model", "whole", "regression", {"alpha": _real(1e9), "fit_intercept": _TRUTH}, 5),
    "KMeans": Estimator("cluster", "whole", "clustering", {"n_clusters": _whole(1, 100_000, 8)}, 20),
}


def estimator(source: str) -> tuple[str, Estimator]:
    """Name and entry of `sklearn:NAME`. Raises InvalidInput, with the nearest name."""
    name = source.removeprefix("sklearn:")
    entry = ESTIMATORS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, list(ESTIMATORS), n=1, cutoff=0.5)
        fix = f"Did you mean 'sklearn:{near[0]}'?" if near else f"Valid names are {', '.join(ESTIMATORS)}."
        raise InvalidInput(f"There is no estimator {source}.", fix=fix)
    return name, entry


def arguments(source: str, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Checked arguments, with defaults. Raises InvalidInput naming the one that is wrong."""
    return checked(source, estimator(source)[1].arguments, given)


def checked(source: str, known: Mapping[str, Argument], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Arguments among those known, with defaults. Raises InvalidInput naming the one that is wrong."""
    values = {name: argument.default for name, argument in known.items() if argument.default is not None}
    for name, value in given.items():
        argument = known.get(name)
        if argument is None:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            fix = f"Did you mean '{near[0]}'?" if near else f"It takes {', '.join(known) or 'none'}."
            raise InvalidInput(f"{source} has no parameter '{name}'.", fix=fix)
        values[name] = argument.check(f"{name} of {source}", value)
    return values


def describe(source: str, given: Mapping[str, Scalar], info: DataInfo) -> ModelCost:
    """What learning costs, roughly: trees have no parameters until they are grown. Raises as `arguments`."""
    _, entry = estimator(source)
    values = arguments(source, given)
    parameters = (info.features + 1) * int(values.get("n_clusters", info.outputs))
    if "hidden" in values:
        hidden, depth = int(values["hidden"]), int(values["depth"])
        parameters = (info.features + 1) * hidden + (depth - 1) * (hidden + 1) * hidden + (hidden + 1) * info.outputs
    flops = int(2 * parameters * entry.cost * int(values.get("n_estimators", 1)))
    kept = 2 * info.sample_bytes
    return ModelCost(source, parameters, flops, kept, (LayerCost("whole", parameters, flops, kept),))


def masked(name: str, entry: Estimator) -> dict[Strategy, str]:
    """Why strategies cannot run for an estimator; those not named can."""
    reasons = {
        Strategy.model_parallel: f"{name} has no layers to cut, and no members beside each other"
        if entry.kind != "trees"
        else f"{name} has no layers to cut; data_parallel grows its trees on all nodes",
        Strategy.pipeline_parallel: f"{name} has no layers to cut",
    }
    if entry.kind == "whole":
        reasons[Strategy.data_parallel] = f"{name} is fitted in one piece; it cannot be averaged or put together"
        reasons[Strategy.federated] = reasons[Strategy.data_parallel]
    if entry.kind == "trees":
        reasons[Strategy.federated] = f"{name} has no weights to average"
    return reasons
