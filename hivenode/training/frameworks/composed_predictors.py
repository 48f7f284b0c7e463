"""What fitted estimators put out that are made of others, from their arrays alone, as `frameworks.predictors`.

The arrays of a part are named after its number and a dot, those of a stacking ensemble's last estimator after `FINAL`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np

from hivenode.models.compositions import Part, arguments_of, composed, parts
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import predictors
from hivenode.training.frameworks.predictors import Doubles, Floats, Predictor, Tensors

FINAL = "final."


def predictor(model: ModelSpec, tensors: Tensors, features: int, outputs: int) -> Predictor:
    """The one for a declared estimator's arrays. Raises as `predictors.predictor`."""
    if not composed(model):
        return predictors.predictor(model.source, model.params, tensors, features, outputs)
    made, values = parts(model), arguments_of(model)
    by_part = _divided(tensors)
    if model.name == "Pipeline":
        return _piped(made, by_part, features, outputs)
    count = int(values["n_estimators"]) if model.name.startswith("Bagging") else len(made)
    final = by_part.pop(FINAL[:-1], None)
    if set(by_part) != {str(number) for number in range(count)}:
        raise ValueError("its members are not those of its ensemble")
    members = tuple(
        predictors.predictor(part.source, part.params, by_part[str(number)], features, outputs)
        for number, part in enumerate(made * count if len(made) == 1 else made)
    )
    if final is None:
        return Mean(members, votes=values.get("voting") == "hard")
    classifies = model.name.endswith("Classifier")
    answers = len(members) * (1 if classifies and outputs == 2 else outputs)
    source = "sklearn:LogisticRegression" if classifies else "sklearn:Ridge"
    return Stacked(
        members, predictors.predictor(source, {}, final, answers, outputs), lambda outputs: told(outputs, model)
    )


def _divided(tensors: Tensors) -> dict[str, dict[str, Floats]]:
    found: dict[str, dict[str, Floats]] = {}
    for name, array in tensors.items():
        part, _, own = name.partition(".")
        found.setdefault(part, {})[own] = array
    return found


def _piped(made: tuple[Part, ...], tensors: Mapping[str, Tensors], features: int, outputs: int) -> Piped:
    steps, width = [], features
    if not set(tensors) <= {str(number) for number in range(len(made))}:
        raise ValueError("its steps are not those of its pipeline")
    for number, part in enumerate(made[:-1]):
        arrays = tensors.get(str(number), {})
        if any(not np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds values that are not finite")
        width = transformed(part, arrays, np.zeros((1, width))).shape[1]
        steps.append((part, arrays))
    last, arrays = made[-1], tensors.get(str(len(made) - 1), {})
    return Piped(tuple(steps), predictors.predictor(last.source, last.params, arrays, width, outputs))


@dataclass(frozen=True, slots=True)
class Piped:
    """Transforms, one after the other, and what predicts from their outcome."""

    steps: tuple[tuple[Part, Tensors], ...]
    last: Predictor

    def outputs(self, rows: Floats) -> Doubles:
        values = rows.astype(np.float64)
        for part, arrays in self.steps:
            values = transformed(part, arrays, values)
        return self.last.outputs(values.astype(np.float32))


@dataclass(frozen=True, slots=True)
class Mean:
    """Of what the members say, or of their votes for their likeliest class."""

    members: tuple[Predictor, ...]
    votes: bool

    def outputs(self, rows: Floats) -> Doubles:
        found = [member.outputs(rows) for member in self.members]
        if self.votes:
            found = [np.eye(each.shape[1])[each.argmax(axis=1)] for each in found]
        return np.asarray(sum(found) / len(found), np.float64)


@dataclass(frozen=True, slots=True)
class Stacked:
    """What the last estimator makes of what the members say."""

    members: tuple[Predictor, ...]
    final: Predictor
    select: Callable[[Floats], Floats]

    def outputs(self, rows: Floats) -> Doubles:
        said = [self.select(member.outputs(rows).astype(np.float32)) for member in self.members]
        return self.final.outputs(np.hstack(said))


def told(outputs: Floats, model: ModelSpec) -> Floats:
    """What a member tells the last estimator of a stacking ensemble; of two probabilities one is enough."""
    return outputs[:, 1:] if model.name.endswith("Classifier") and outputs.shape[1] == 2 else outputs


def transformed(part: Part, arrays: Tensors, rows: Doubles) -> Doubles:
    """Raises ValueError: the arrays are not those of such a transform."""
    width = rows.shape[1]
    if part.name == "Normalizer":
        norm = {"l1": 1, "l2": 2, "max": np.inf}[str(part.params.get("norm", "l2"))]
        size = np.linalg.norm(rows, norm, axis=1, keepdims=True)
        return np.asarray(rows / np.where(size > 0, size, 1.0), np.float64)
    if part.name == "PolynomialFeatures":
        return _powers(part, rows)
    names = {"shift", "matrix"} if part.name == "PCA" else {"shift", "factor"}
    second = arrays.get("matrix", arrays.get("factor"))
    if set(arrays) != names or second is None or arrays["shift"].shape != (width,) or second.shape[0] != width:
        raise ValueError("its arrays are not those of its transforms")
    moved = rows - arrays["shift"]
    return np.asarray(moved @ second if second.ndim == 2 else moved * second, np.float64)


def _powers(part: Part, rows: Doubles) -> Doubles:
    """The products of features in the order of scikit-learn: by degree, then by feature."""
    choose = combinations if part.params.get("interaction_only") else combinations_with_replacement
    columns = [np.ones(len(rows))] if part.params.get("include_bias", True) else []
    for degree in range(1, int(part.params["degree"]) + 1):
        columns += [rows[:, list(places)].prod(axis=1) for places in choose(range(rows.shape[1]), degree)]
    return np.stack(columns, axis=1)
