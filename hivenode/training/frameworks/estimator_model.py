"""A fitted estimator as model files and predictions see it: named arrays, and no other framework than numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hivenode.data.info import DataInfo
from hivenode.models.compositions import arguments_of, entry_of
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.composed_predictors import predictor
from hivenode.training.frameworks.model import Floats, Inputs, Layout, Vector, flatten

KEPT = "kept."
"""Prefix of arrays that only going on takes."""


class EstimatorModel:
    """Args:
    tensors: the arrays, as `predictors.predictor` takes them; and those that only going on takes.

    Raises:
        ValueError, KeyError: they are not those of the estimator.
    """

    def __init__(self, model: ModelSpec, info: DataInfo, tensors: Mapping[str, Floats]) -> None:
        self.layout = Layout({name: array.shape for name, array in tensors.items()})
        self.weights: Vector = flatten(tensors, self.layout.parameters)
        self.buffers: Vector = np.zeros(0, np.float32)
        self.constants: Mapping[str, Floats] = {}
        asked = {name: array for name, array in tensors.items() if not name.startswith(KEPT)}
        self._predictor = predictor(model, asked, info.features, info.outputs)

    def predict(self, inputs: Inputs) -> Floats:
        """(samples, outputs): see `Predictor.outputs`."""
        return self._predictor.outputs(inputs.reshape(len(inputs), -1)).astype(np.float32)


def labels(model: ModelSpec, info: DataInfo) -> tuple[str, ...]:
    """Names of an estimator's outputs: clusters have numbers, all else the names that the data have."""
    if entry_of(model).task != "clustering":
        return info.labels
    return tuple(str(number) for number in range(int(arguments_of(model)["n_clusters"])))
