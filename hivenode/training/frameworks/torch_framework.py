"""PyTorch behind `frameworks.model.Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hivenode.data.text import IGNORED
from hivenode.models.layers import Layer, buffers, tensors
from hivenode.spec.data import Task
from hivenode.spec.values import Precision
from hivenode.training.frameworks.model import Floats, Gather, Inputs, Labels, Layout, Vector, initial_weights, views
from hivenode.training.frameworks.torch_models import build
from hivenode.training.frameworks.torch_statistics import Statistics, together

EVALUATION_VALUES = 1 << 22
"""Outputs computed at once while evaluating."""
DRAWING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class Built:
    """A module and what its flat vectors hold.

    Attributes:
        start: first weights, (layout.size,).
        buffers: first running statistics, (layout.buffer_size,).
        forward: from inputs to logits or values; the module itself if None.
        constants: what stands still, by name.
        afresh: parameters of a model from a directory that nothing there began.
    """

    module: nn.Module
    layout: Layout
    start: Vector
    buffers: Vector
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None
    constants: Mapping[str, Floats] = field(default_factory=dict)
    afresh: tuple[str, ...] = ()


def from_layers(layers: tuple[Layer, ...], seed: int) -> Built:
    """A declared line of layers."""
    held, running = tensors(layers), buffers(layers)
    layout = Layout(
        {name: tensor.shape for name, tensor in held.items()}, {name: tensor.shape for name, tensor in running.items()}
    )
    statistics = initial_weights(running, seed) if running else np.zeros(0, np.float32)
    return Built(build(layers), layout, initial_weights(held, seed), statistics)


class TorchModel:
    """`Model` on the CPU.

    Args:
        weights: initial values, (layout.size,); taken over, not copied. Likewise `buffers`.
        gradient: (layout.size,); where gradients go.
        threads: for the operations of one step.
        precision: that `backward` computes in, but for the loss.

    Attributes:
        module, forward: as `Built` has them.
    """

    def __init__(
        self,
        built: Built,
        task: Task,
        weights: Vector,
        buffers: Vector,
        gradient: Vector,
        threads: int,
        precision: Precision = "fp32",
    ) -> None:
        torch.set_num_threads(threads)
        self._statistics: Statistics | None = None
        self.module = built.module
        self.forward = built.forward or built.module
        self._task = task
        self._half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        if self._half is not None and not _HAS_RECURRENT[self._half]():
            for module in built.module.modules():
                if isinstance(module, nn.RNNBase):
                    _in_float32(module)
        self._layout = built.layout
        self._constants = built.constants
        self._draws = any(isinstance(module, DRAWING) and module.p > 0 for module in built.module.modules())
        self.bind(weights, buffers, gradient)

    def bind(self, weights: Vector, buffers: Vector, gradient: Vector) -> None:
        """Keep its numbers there from now on, as the constructor says. Nothing is copied."""
        self._weights, self._buffers, self._gradient = weights, buffers, gradient
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        places, slopes = views(weights, self._layout.parameters), views(gradient, self._layout.parameters)
        for name, place in places.items():
            parameter = parameters.pop(name)
            parameter.data = torch.from_numpy(place)
            parameter.grad = torch.from_numpy(slopes[name])  # backward adds to it in place
        assert not parameters
        running = dict(self.module.named_buffers())
        for name, place in views(buffers, self._layout.buffers).items():
            running[name].data = torch.from_numpy(place)  # batch normalisation changes it in place

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def weights(self) -> Vector:
        return self._weights

    @property
    def buffers(self) -> Vector:
        return self._buffers

    @property
    def constants(self) -> Mapping[str, Floats]:
        return self._constants

    def backward(self, inputs: Inputs, labels: Labels, draw: int = 0, scale: float = 1.0) -> float:
        self._gradient.fill(0.0)
        loss = self.loss_of(inputs, labels, draw, self.forward)
        (loss if scale == 1.0 else loss * scale).backward()
        if scale != 1.0:
            self._gradient *= np.float32(1.0 / scale)
        return float(loss.detach())

    def together(self, gather: Gather) -> bool:
        self._statistics = together(self.module, gather)
        return self._statistics is not None

    def attend(self, inputs: Inputs, labels: Labels) -> None:
        assert self._statistics is not None
        self._statistics.counted = False
        try:
            self.backward(_one_of(inputs), _one_of(labels))
        finally:
            self._statistics.counted = True
            self._gradient.fill(0.0)

    def loss_of(
        self, inputs: Inputs, labels: Labels, draw: int, forward: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The mean loss, for a backward pass of it; see `backward`.

        Args:
            forward: `self.forward`, or what is wrapped around it.
        """
        if not self.module.training:  # to say it to every part takes longer than a small step should
            self.module.train()
        if self._draws:
            torch.manual_seed(draw)
        with torch.autocast("cpu", self._half) if self._half is not None else nullcontext():
            outputs = forward(torch.from_numpy(inputs))
        return mean_loss(self._task, outputs.float(), torch.from_numpy(labels))

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        correct, total = 0, 0.0
        self.module.eval()
        with torch.inference_mode():
            for part in self._parts(inputs):
                outputs = self.forward(torch.from_numpy(inputs[part]))
                expected = torch.from_numpy(labels[part])
                right, some = judged(self._task, outputs, expected)
                correct, total = correct + right, total + some
        return correct, total

    def predict(self, inputs: Inputs) -> Floats:
        self.module.eval()
        found = []
        with torch.inference_mode():
            for part in self._parts(inputs):
                outputs = self.forward(torch.from_numpy(inputs[part]))
                if self._task == "language":
                    outputs = outputs[:, -1]
                if self._task in ("classification", "language", "text_to_text"):
                    outputs = torch.softmax(outputs, dim=-1)
                found.append(outputs.flatten(1).numpy())
        return np.concatenate(found)

    def _parts(self, inputs: Inputs) -> list[slice]:
        step = max(1, min(1024, EVALUATION_VALUES // max(1, prod(inputs.shape[1:]))))
        return [slice(start, start + step) for start in range(0, len(inputs), step)]


_HAS_RECURRENT: Mapping[torch.dtype, Callable[[], bool]] = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}
"""Whether this processor can compute recurrent layers in such numbers: oneDNN has them for some only."""


def _one_of(samples: Inputs) -> Inputs:
    """A sample of their kind, all zero."""
    return np.zeros((1, *samples.shape[1:]), samples.dtype)


def _in_float32(layer: nn.RNNBase) -> None:
    """Have it compute so, whatever is cast around it."""
    compute = layer.forward

    def forward(inputs: torch.Tensor, *state: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return compute(inputs.float(), *state)

    layer.forward = forward


def mean_loss(task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of `losses`; in one operation where samples weigh the same anyway."""
    if task == "classification":
        return functional.cross_entropy(outputs, labels)
    return losses(task, outputs, labels).mean()


def losses(task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(samples,): each one's mean loss."""
    if task == "classification":
        return functional.cross_entropy(outputs, labels, reduction="none")
    if task == "language":
        return functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").mean(dim=1)
    if task == "text_to_text":  # over the places that count, of which each sample has one at least
        each = functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        return each.sum(dim=1) / (labels != IGNORED).sum(dim=1)
    return (outputs.flatten(1) - labels).square().mean(dim=1)


def judged(task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> tuple[int, float]:
    """Labels that were the likeliest output (0 where outputs are values; of text_to_text, texts that were wholly so),
    and the sum of the samples' losses."""
    right = int((outputs.argmax(-1) == labels).sum()) if task in ("classification", "language") else 0
    if task == "text_to_text":
        right = int(((outputs.argmax(-1) == labels) | (labels == IGNORED)).all(dim=1).sum())
    return right, float(losses(task, outputs, labels).sum())
