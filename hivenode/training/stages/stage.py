"""One stage of a model at work: its own tensors, and passes of small batches through its part of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from hivenode.training.frameworks.model import Vector
from hivenode.training.stages.adding import add_in_place
from hivenode.training.stages.blueprint import WHOLE, Blueprint
from hivenode.training.stages.graph import StageGraph, Value, cut
from hivenode.training.stages.holdings import Holdings, Shapes


class Cutting:
    """A declared model, cut at the same places for every batch size and mode that is asked for.

    Args:
        blueprint: the model.
        example: its input for a batch size; only shape and dtype matter.
        firsts: numbers of the layers with which stages after the first begin.
    """

    def __init__(self, blueprint: Blueprint, example: Callable[[int], torch.Tensor], firsts: Sequence[int]) -> None:
        self.blueprint, self._example = blueprint, example
        self._firsts = [blueprint.place(layer) for layer in firsts]
        self._cuts: dict[tuple[int, bool], tuple[StageGraph, ...]] = {}

    def stages(self, samples: int, *, training: bool) -> tuple[StageGraph, ...]:
        """Names in them are those of the blueprint's layout. Raises InvalidInput where the model cannot be cut."""
        key = samples, training
        if key not in self._cuts:
            self.blueprint.module.train(training)
            made = cut(self.blueprint.module, {"x": self._example(samples)}, self._firsts)
            for stage in made:
                add_in_place(stage.run, len(stage.parameters))
            self._cuts[key] = tuple(
                replace(stage, parameters=_plain(stage.parameters), buffers=_plain(stage.buffers)) for stage in made
            )
        return self._cuts[key]

    def holdings(self, samples: int) -> tuple[Holdings, Holdings]:
        """Which trained tensors, and which running statistics, each stage holds."""
        stages, layout = self.stages(samples, training=True), self.blueprint.layout
        return (
            _held(layout.parameters, [stage.parameters for stage in stages]),
            _held(layout.buffers, [stage.buffers for stage in stages]),
        )


def _plain(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.removeprefix(WHOLE) for name in names)


def _plain_items(items: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name.removeprefix(WHOLE), tensor) for name, tensor in items)


def _held(shapes: Shapes, names: Sequence[tuple[str, ...]]) -> Holdings:
    """What no operation uses stays with the last stage, as it is."""
    idle = set(shapes).difference(*names)
    owned = [*map(set, names[:-1]), set(names[-1]) | idle]
    return Holdings(shapes, tuple(tuple(name for name in shapes if name in own) for own in owned))


class Stage:
    """Args:
        cutting: the model.
        number: place of this stage in the line.
        held, running: what stages hold of trained tensors and of running statistics.

    Attributes:
        weights, gradient: values and gradients of its trained tensors, flat, in the order of the layout.
        vector: the gradient and one more element, for a loss that travels with it.
        buffers: its running statistics, likewise.
        shared: trained tensors that several stages hold -> those stages, ascending.
    """

    def __init__(self, cutting: Cutting, number: int, held: Holdings, running: Holdings) -> None:
        self._cutting, self._number = cutting, number
        self.weights: Vector = np.zeros(held.size(number), np.float32)
        self.vector: Vector = np.zeros(held.size(number) + 1, np.float32)
        self.gradient = self.vector[:-1]
        self.buffers: Vector = np.zeros(running.size(number), np.float32)
        self._parts = held.parts(number)
        self._tensors: dict[str, torch.Tensor] = dict(_plain_items(cutting.blueprint.module.named_buffers()))
        for name, part in running.parts(number).items():
            self._tensors[name] = torch.from_numpy(self.buffers[part].reshape(running.shapes[name]))
        for name, part in self._parts.items():
            tensor = torch.from_numpy(self.weights[part].reshape(held.shapes[name])).requires_grad_()
            tensor.grad = torch.from_numpy(self.gradient[part].reshape(held.shapes[name]))
            self._tensors[name] = tensor
        users = {name: held.holders(name) for name in held.shapes}
        self.shared = {name: stages for name, stages in users.items() if len(stages) > 1}
        self._kept: dict[int, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}

    def graph(self, samples: int, *, training: bool) -> StageGraph:
        return self._cutting.stages(samples, training=training)[self._number]

    def part(self, name: str) -> slice:
        """Where a tensor of this stage lies in its flat vectors."""
        return self._parts[name]

    def begin_step(self) -> None:
        self.gradient.fill(0.0)

    def forward(
        self, number: int, samples: int, received: Sequence[torch.Tensor], draw: int
    ) -> tuple[torch.Tensor, ...]:
        """Pass small batch `number` on; what its backward pass needs is kept.

        Args:
            draw: seed of what the model draws itself (dropout).
        """
        torch.manual_seed(draw)
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
        own = [self._tensors[name] for name in (*graph.parameters, *graph.buffers)]
        outputs: tuple[torch.Tensor, ...] = graph.run(*own, *graph.constants, *inputs)
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
