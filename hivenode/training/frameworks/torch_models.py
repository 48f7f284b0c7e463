"""Declared architectures as PyTorch modules."""

from __future__ import annotations

import torch
from torch import nn

from hivenode.models.zoo import KERNEL, Conv, Dense, Layer, Pool


def build(layers: tuple[Layer, ...]) -> nn.Module:
    """A module that maps (samples, *input_shape) to logits (samples, classes); its parameters carry the names of
    `zoo.tensor_shapes`. Its weights are whatever PyTorch starts with."""
    return _Stack(layers)


class _Stack(nn.Module):  # type: ignore[misc]  # torch has no types here
    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__()
        self._layers = layers
        for layer in layers:
            match layer:
                case Dense():
                    self.add_module(layer.name, nn.Linear(layer.inputs, layer.outputs))
                case Conv():
                    self.add_module(layer.name, nn.Conv2d(layer.inputs, layer.outputs, KERNEL, padding=KERNEL // 2))
                case Pool():
                    self.add_module(layer.name, nn.MaxPool2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self._layers:
            module = self.get_submodule(layer.name)
            match layer:
                case Dense():
                    x = module(x.flatten(1))
                    if layer.relu:
                        x = torch.relu(x)
                case Conv():
                    x = torch.relu(module(x))
                case Pool():
                    x = module(x)
        return x
