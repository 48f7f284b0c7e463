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
    shapes = tensor_shapes(layers).values()
    vector, start = np.empty(sum(map(prod, shapes)), np.float32), 0
    for number, shape in enumerate(shapes):
        initial_tensor(vector[start : start + prod(shape)], shape, seed, number)
        start += prod(shape)
    return vector


def initial_tensor(target: Vector, shape: tuple[int, ...], seed: int, number: int) -> None:
    """Write the first values of tensor `number`, in the order of a model's tensors, to a flat target."""
    if len(shape) == 1:
        target.fill(0.0)
        return
    bound = np.sqrt(6.0 / prod(shape[1:]))
    start = 0
    for numbers in uniform(target.size, seed, number):
        target[start : start + numbers.size] = (2.0 * numbers - 1.0) * bound
        start += numbers.size


def views(vector: Vector, layers: tuple[Layer, ...]) -> Mapping[str, npt.NDArray[np.float32]]:
    """Named tensors as views into a flat vector."""
    tensors, start = {}, 0
    for name, shape in tensor_shapes(layers).items():
        tensors[name] = vector[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return tensors
