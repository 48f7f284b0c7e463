"""Fitting estimators of scikit-learn that are made of others; their arrays, as `frameworks.composed_predictors` takes
them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hivenode.models.compositions import FOLDS, TRANSFORMS, UNIT, Part, arguments_of, composed, parts
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import predictors
from hivenode.training.frameworks import sklearn_fitting as fitting
from hivenode.training.frameworks.composed_predictors import FINAL, told
from hivenode.training.frameworks.predictors import Floats, Predictor, Tensors
from hivenode.training.frameworks.sklearn_fitting import Forest, Given, Growing, Grown
from hivenode.training.frameworks.sklearn_learners import Rows, Targets, build
from hivenode.training.frameworks.sklearn_threads import with_threads


def growing(
    model: ModelSpec, rows: Rows, labels: Targets, outputs: int, seed: int, threads: int, earlier: Tensors | None = None
) -> Growing:
    """A forest's or an ensemble's; of a forest on top of an earlier one, if its arrays are given."""
    return (Ensemble if composed(model) else Forest)(model, rows, labels, outputs, seed, threads, earlier or {})


def fit(model: ModelSpec, rows: Rows, labels: Targets, outputs: int, seed: int, threads: int) -> dict[str, Floats]:
    """Fit an estimator of kind `whole`; its arrays. Raises as `sklearn_fitting.arrays`."""
    if not composed(model):
        return fitting.fit(model, rows, labels, outputs, seed, threads)
    pipeline, steps = importlib.import_module("sklearn.pipeline"), parts(model)
    fitted = pipeline.make_pipeline(*(_built(part, seed) for part in steps))
    with with_threads(threads):
        fitted.fit(rows, labels)
    found: dict[str, Floats] = {}
    for number, (part, (_, step)) in enumerate(zip(steps, fitted.steps, strict=True)):
        own = _transform_arrays(part, step) if part.transform else fitting.arrays(part.source, step, outputs)
        found |= {f"{number}.{name}": array for name, array in own.items()}
    return found


class Ensemble(Given):
    """`Growing` of members: those that scikit-learn fits by itself from that seed."""

    __slots__ = ()

    @property
    def units(self) -> int:
        return -(-self._count // UNIT) if self._bagging else len(self.model.estimators)

    def due(self, every: int) -> int:
        return -(-every // UNIT) if self._bagging else 1

    @property
    def _bagging(self) -> bool:
        return self.model.name.startswith("Bagging")

    @property
    def _count(self) -> int:
        return int(arguments_of(self.model)["n_estimators"])

    def grow(self, units: range) -> dict[int, Grown]:
        with with_threads(self.threads):
            if self._bagging:
                return self._bagged(units)
            made = parts(self.model)
            return {unit: self._member(made[unit]) for unit in units}

    def _bagged(self, units: range) -> dict[int, Grown]:
        (part,) = parts(self.model)
        first, stop = units.start * UNIT, min(units.stop * UNIT, self._count)
        kind = getattr(importlib.import_module("sklearn.ensemble"), self.model.name)
        options = {**arguments_of(self.model), "n_estimators": stop - first}
        fitted = kind(_built(part, self.seed), random_state=fitting.stream(self.seed, first), **options)
        fitted.fit(self.rows, self.labels)
        grown: dict[int, Grown] = {}
        for number, member in enumerate(fitted.estimators_, first):
            own = fitting.arrays(part.source, member, self.outputs)
            grown.setdefault(number // UNIT, {}).update({f"{number}.{name}": array for name, array in own.items()})
        return grown

    def _member(self, part: Part) -> Grown:
        fitted = _built(part, self.seed).fit(self.rows, self.labels)
        own = fitting.arrays(part.source, fitted, self.outputs)
        if not self.model.name.startswith("Stacking"):
            return own
        selection = importlib.import_module("sklearn.model_selection")
        classifies = self.model.name.endswith("Classifier")
        asked = np.zeros((len(self.rows), self.outputs), np.float32)
        for known, held in selection.check_cv(FOLDS, self.labels, classifier=classifies).split(self.rows, self.labels):
            again = _built(part, self.seed).fit(self.rows[known], self.labels[known])
            found = fitting.arrays(part.source, again, self.outputs)
            asked[held] = self._predictor(part, found).outputs(self.rows[held])
        return {**own, "asked": asked}

    def _predictor(self, part: Part, found: Tensors) -> Predictor:
        return predictors.predictor(part.source, part.params, found, self.rows.shape[1], self.outputs)

    def together(self, grown: Sequence[Grown]) -> dict[str, Floats]:
        if self._bagging:
            return {name: array for unit in grown for name, array in unit.items()}
        found = {f"{n}.{key}": array for n, unit in enumerate(grown) for key, array in unit.items() if key != "asked"}
        if not self.model.name.startswith("Stacking"):
            return found
        asked = np.hstack([told(unit["asked"], self.model) for unit in grown])
        linear = importlib.import_module("sklearn.linear_model")
        final = linear.LogisticRegression() if self.model.name.endswith("Classifier") else linear.RidgeCV()
        last = fitting.linear(final.fit(asked, self.labels))
        return found | {FINAL + name: array for name, array in last.items()}


def _built(part: Part, seed: int) -> Any:
    if not part.transform:
        return build(part.source, part.params, seed)
    kind = getattr(importlib.import_module(f"sklearn.{TRANSFORMS[part.name].module}"), part.name)
    options = dict(part.params)
    if part.name == "PCA":
        options["random_state"] = seed % 2**32
    return kind(**options)


def _transform_arrays(part: Part, fitted: Any) -> dict[str, Floats]:
    """`shift` and `factor`, of every feature, or `shift` and `matrix`; none where nothing is learnt."""
    width = fitted.n_features_in_
    blank, one = np.zeros(width), np.ones(width)
    shift, factor = blank, one
    match part.name:
        case "StandardScaler":
            shift = blank if fitted.mean_ is None or not fitted.with_mean else fitted.mean_
            factor = one if fitted.scale_ is None else 1.0 / fitted.scale_
        case "MinMaxScaler":
            shift, factor = -fitted.min_ / fitted.scale_, fitted.scale_
        case "MaxAbsScaler":
            factor = 1.0 / fitted.scale_
        case "RobustScaler":
            shift = blank if fitted.center_ is None else fitted.center_
            factor = one if fitted.scale_ is None else 1.0 / fitted.scale_
        case "PCA":
            spread = np.sqrt(fitted.explained_variance_) if fitted.whiten else np.ones(fitted.n_components_)
            matrix = (fitted.components_ / spread[:, None]).T
            return {"shift": fitted.mean_.astype(np.float32), "matrix": matrix.astype(np.float32)}
        case _:
            return {}
    return {"shift": np.asarray(shift, np.float32), "factor": np.asarray(factor, np.float32)}
