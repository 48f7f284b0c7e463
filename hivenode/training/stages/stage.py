"""One stage of a model at work: its own tensors, and passes of small batches through its part of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hivenode.training.frameworks.model import Vector
from hivenode.training.stages.graph import Inputs, StageGraph, Value, cut, hollow

Shapes = Mapping[str, tuple[int, ...]]
Example = Callable[[int], Inputs]


class Cutting:
    """A declared model, cut at the same places for every batch size and mode that is asked for.

    Args:
        build: makes the module; called within `hollow`, so it takes no memory for parameters.
        example: inputs of the module for a batch size; only shapes and dtypes matter.
        firsts: see `graph.cut`.
    """

    def __init__(self, build: Callable[[], nn.Module], example: Example, firsts: Sequence[str]) -> None:
        self._example, self._firsts = example, tuple(firsts)
        with hollow():
            self.module = build()
        self._cuts: dict[tuple[int, bool], tuple[StageGraph, ...]] = {}

    def stages(self, samples: int, *, training: bool) -> tuple[StageGraph, ...]:
        """Raises InvalidInput where the model cannot be cut."""
        key = samples, training
        if key not in self._cuts:
            self.module.train(training)
            self._cuts[key] = cut(self.module, self._example(samples), self._firsts)
        return self._cuts[key]


class Stage:
    """Args:
        cutting: the model.
        number: place of this stage in the line.
        samples: of a small batch, to find out which tensors are this stage's.
        shapes: of all trained tensors of the model, in the order of its flat vector.

    Attributes:
        names: own trained tensors, in that order.
        weights, gradient: their values and gradients, flat, in that order.
        shared: tensors of the model that several stages hold -> those stages, ascending.
    """

    def __init__(self, cutting: Cutting, number: int, samples: int, shapes: Shapes) -> None:
        self._cutting, self._number = cutting, number
        stages = cutting.stages(samples, training=True)
        held = [set(stage.parameters) for stage in stages]
        self.names = tuple(name for name in shapes if name in held[number])
        size = sum(prod(shapes[name]) for name in self.names)
        self.weights: Vector = np.zeros(size, np.float32)
        self.gradient: Vector = np.zeros(size, np.float32)
        self._parameters: dict[str, torch.Tensor] = {}
        self._where: dict[str, slice] = {}
        start = 0
        values, gradients = torch.from_numpy(self.weights), torch.from_numpy(self.gradient)
        for name in self.names:
            end = start + prod(shapes[name])
            tensor = values[start:end].view(shapes[name]).requires_grad_()
            tensor.grad = gradients[start:end].view(shapes[name])
            self._parameters[name], self._where[name] = tensor, slice(start, end)
            start = end
        self._buffers = dict(cutting.module.named_buffers(remove_duplicate=False))
        self.shared: dict[str, tuple[int, ...]] = {}
        for name in shapes:
            users = tuple(place for place, names in enumerate(held) if name in names)
            if len(users) > 1:
                self.shared[name] = users
        self._kept: dict[int, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}

    def graph(self, samples: int, *, training: bool) -> StageGraph:
        return self._cutting.stages(samples, training=training)[self._number]

    def part(self, name: str) -> slice:
        """Where a tensor of this stage lies in its flat vectors."""
        return self._where[name]

    def begin_step(self) -> None:
        self.gradient.fill(0.0)

    def forward(self, number: int, samples: int, received: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Pass small batch `number` on; what its backward pass needs is kept."""
        graph = self.graph(samples, training=True)
        inputs = tuple(
            tensor.requires_grad_(value.differentiable) for tensor, value in zip(received, graph.receives, strict=True)
        )
        outputs = self._run(graph, inputs)
        self._kept[number] = inputs, outputs
        return outputs

    def backward(
        self, number: int, samples: int, gradients: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor | None, ...]:
        """Add to the gradient; returns those of what was received, None where there is none.

        Args:
            gradients: of each tensor that was sent on; at the last stage of the loss with respect to itself.
        """
        inputs, outputs = self._kept.pop(number)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
        graph = self.graph(samples, training=True)
        return tuple(
            _gradient(tensor) if value.differentiable else None
            for tensor, value in zip(inputs, graph.receives, strict=True)
        )

    def loss(self, number: int, loss: Callable[[tuple[torch.Tensor, ...]], torch.Tensor], share: float) -> float:
        """At the last stage: `share` of the mean loss of a small batch, in place of what would be sent on."""
        inputs, outputs = self._kept[number]
        value = loss(outputs) * share
        self._kept[number] = inputs, (value,)
        return float(value.detach())

    def evaluate(self, samples: int, received: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """A forward pass of which nothing is kept."""
        with torch.no_grad():
            return self._run(self.graph(samples, training=False), tuple(received))

    def _run(self, graph: StageGraph, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        own = [self._parameters[name] for name in graph.parameters]
        outputs: tuple[torch.Tensor, ...] = graph.run(
            *own, *(self._buffers[name] for name in graph.buffers), *graph.constants, *inputs
        )
        return outputs


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor on the CPU; a copy where it is not contiguous."""
    array: npt.NDArray[np.uint8] = tensor.detach().contiguous().view(torch.uint8).reshape(-1).numpy()
    return array.data


def as_tensor(body: bytearray, value: Value) -> torch.Tensor:
    """A received message as the tensor that is due; takes the memory over."""
    if not body:
        return torch.empty(value.shape, dtype=value.dtype)
    return torch.frombuffer(body, dtype=value.dtype).view(value.shape)
