"""What the training loop needs of a framework: a model whose weights and gradient are flat float32 vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hivenode.data.partition import uniform
from hivenode.models.zoo import Layer, tensor_shapes

Vector = npt.NDArray[np.float32]
Inputs = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Model(Protocol):
    """A classifier. Its parameter tensors and their gradients are views into two flat vectors, in the order of
    `tensor_shapes`."""

    @property
    def weights(self) -> Vector:
        """(parameters,); writing to it changes the model."""
        ...

    def backward(self, inputs: Inputs, labels: Labels) -> float:
        """Overwrite the gradient vector with the gradient of the mean cross-entropy over these samples, at least one,
        and return that mean."""
        ...

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        """Number of samples classified correctly, and the sum of their cross-entropies."""
        ...

    def predict(self, inputs: Inputs) -> Inputs:
        """Class probabilities, (samples, classes)."""
        ...


def initial_weights(layers: tuple[Layer, ...], seed: int) -> Vector:
    """He's uniform initialisation (arXiv 1502.01852, eq. 10: variance 2 / fan-in), zero biases; the same bits on every
    machine and for every framework, so members need not send each other the start."""
    return np.concatenate([initial_tensor(s, seed, n) for n, s in enumerate(tensor_shapes(layers).values())])


def initial_tensor(shape: tuple[int, ...], seed: int, number: int) -> Vector:
    """First values of the tensor `number` in the order of a model's tensors, flat."""
    if len(shape) == 1:
        return np.zeros(shape[0], np.float32)
    bound = np.sqrt(6.0 / prod(shape[1:]))
    values: Vector = ((2.0 * uniform(prod(shape), seed, number) - 1.0) * bound).astype(np.float32)
    return values


def views(vector: Vector, layers: tuple[Layer, ...]) -> Mapping[str, npt.NDArray[np.float32]]:
    """Named tensors as views into a flat vector."""
    tensors, start = {}, 0
    for name, shape in tensor_shapes(layers).items():
        tensors[name] = vector[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return tensors
