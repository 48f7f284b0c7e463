"""What the training loop needs of a framework: a model whose weights and gradient are flat float32 vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.data.partition import uniform_blocks
from hivenode.models.layers import Tensor
from hivenode.spec.shapes import Shape

Vector = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]
Inputs = npt.NDArray[Any]
"""float32 (samples, *input_shape), or int64 tokens (samples, length)."""
Labels = npt.NDArray[Any]
"""int64 classes (samples,); float32 values (samples, outputs) for regression and reconstruction; int64 next tokens
(samples, length) for language."""


Gather = Callable[[Vector, int], Vector]
"""From what this member gives, (values,), at a place of the step, the same on all, to what all give there, (members,
values). Raises what `backward` then raises."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where named tensors lie in flat vectors.

    Attributes:
        parameters: shape of each trained tensor, in the order of the weights.
        buffers: of each running statistic (batch normalisation), in the order of the buffers.
    """

    parameters: Mapping[str, Shape]
    buffers: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Trained values."""
        return sum(map(prod, self.parameters.values()))

    @property
    def buffer_size(self) -> int:
        return sum(map(prod, self.buffers.values()))


class Model(Protocol):
    """A model that fits its data. Its trained tensors and their gradients are views into two flat vectors, in the order
    of `layout.parameters`; its running statistics into a third."""

    @property
    def layout(self) -> Layout: ...

    @property
    def weights(self) -> Vector:
        """(layout.size,); writing to it changes the model."""
        ...

    @property
    def buffers(self) -> Vector:
        """(layout.buffer_size,); `backward` changes it, differently on each member: the loop averages it."""
        ...

    @property
    def constants(self) -> Mapping[str, Floats]:
        """Tensors that training leaves alone (the base under adapters); part of the model, not of checkpoints."""
        ...

    def backward(self, inputs: Inputs, labels: Labels, draw: int = 0, scale: float = 1.0) -> float:
        """Overwrite the gradient vector with the gradient of the mean loss over these samples, at least one, and return
        that mean: cross-entropy, or the squared error where outputs are values.

        Args:
            draw: seed of what the model draws itself (dropout).
            scale: what the loss is multiplied by, and its gradient divided by at the end: numbers of half precision
                between them are larger. Where it was too large, the gradient is not finite.
        """
        ...

    def together(self, gather: Gather) -> bool:
        """From now on, take the samples that members call `backward` with at a time for one batch, where the model's
        result depends on which those are (batch normalisation). Returns whether it does; then all have to call
        `backward` or `attend` each time."""
        ...

    def attend(self, inputs: Inputs, labels: Labels) -> None:
        """Be there for the others, without a sample of one's own; the gradient is zero.

        Args:
            inputs, labels: no samples, (0, ...).
        """
        ...

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        """How many labels were the likeliest output (0 where outputs are values), and the sum over the samples of each
        one's mean loss."""
        ...

    def predict(self, inputs: Inputs) -> Floats:
        """(samples, outputs): probabilities of classes; of the token that follows; or values."""
        ...


def initial_weights(tensors: Mapping[str, Tensor], seed: int) -> Vector:
    """First values by declaration; the same bits on every machine and for every framework, so members need not send
    each other the start."""
    vector, start = np.empty(sum(prod(tensor.shape) for tensor in tensors.values()), np.float32), 0
    for number, tensor in enumerate(tensors.values()):
        size = prod(tensor.shape)
        initial_tensor(vector[start : start + size], tensor, seed, number)
        start += size
    return vector


def initial_tensor(target: Vector, tensor: Tensor, seed: int, number: int) -> None:
    """Write the first values of a tensor, the one of that number in its model, to a flat target."""
    if tensor.start in ("zero", "one"):
        target.fill(float(tensor.start == "one"))
        return
    fan_in = prod(tensor.shape[1:])
    fill_uniform(target, {"fan": 2.0 / fan_in, "unit": 1.0 / fan_in, "small": 0.02**2}[tensor.start], seed, number)


def uniform_values(size: int, variance: float, seed: int, number: int) -> Vector:
    """Values of tensor `number`, uniform around 0."""
    values = np.empty(size, np.float32)
    fill_uniform(values, variance, seed, number)
    return values


def fill_uniform(target: Vector, variance: float, seed: int, number: int) -> None:
    """The same, written to a flat target."""
    bound, start = np.sqrt(3.0 * variance), 0
    for numbers in uniform_blocks(target.size, seed, number):
        target[start : start + numbers.size] = (2.0 * numbers - 1.0) * bound
        start += numbers.size


def views(vector: Vector, shapes: Mapping[str, Shape]) -> dict[str, Floats]:
    """Named tensors as views into a flat vector."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        tensors[name] = vector[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return tensors


def flatten(tensors: Mapping[str, Floats], shapes: Mapping[str, Shape]) -> Vector:
    """Named tensors as one vector, in the order of `shapes`; ValueError if they are not exactly those."""
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        raise ValueError("its tensors are not those of its architecture")
    if not shapes:
        return np.zeros(0, np.float32)
    return np.concatenate([tensors[name].ravel() for name in shapes])
