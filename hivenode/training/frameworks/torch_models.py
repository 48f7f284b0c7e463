"""Declared layers as PyTorch modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from hivenode.models.layers import KINDS, Layer

_FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def build(layers: tuple[Layer, ...]) -> nn.Module:
    """A module that maps (samples, *input_shape) to (samples, *output); its parameters and buffers carry the names of
    `layers.tensors` and `layers.buffers`. Its weights are whatever PyTorch starts with."""
    return nn.Sequential(OrderedDict((layer.name, _MODULES[layer.kind](layer)) for layer in layers))


class _Dense(nn.Linear):  # type: ignore[misc]  # torch has no types here
    def __init__(self, layer: Layer) -> None:
        inputs = next(iter(KINDS["dense"].tensors(layer).values())).shape[1]
        super().__init__(inputs, layer.whole("outputs"))
        self._flat = len(layer.input) != 2
        self._function = _FUNCTIONS[layer.text("activation")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(super().forward(x.flatten(1) if self._flat else x))


class _Conv(nn.Conv2d):  # type: ignore[misc]
    def __init__(self, layer: Layer) -> None:
        kernel = layer.whole("kernel")
        super().__init__(layer.input[0], layer.output[0], kernel, layer.whole("stride"), padding=kernel // 2)
        self._function = _FUNCTIONS[layer.text("activation")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(super().forward(x))


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        inputs, outputs, stride = layer.input[0], layer.output[0], layer.whole("stride")
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self._shortcut = layer.input != layer.output
        if self._shortcut:
            self.conv3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.norm3 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + (self.norm3(self.conv3(x)) if self._shortcut else x))


class _Embedding(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.tokens = nn.Embedding(layer.whole("vocabulary"), layer.whole("width"))
        self.positions = nn.Parameter(torch.zeros(layer.output)) if layer.options["positions"] else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        return x if self.positions is None else x + self.positions[: tokens.shape[1]]


class _Patches(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        size = layer.whole("size")
        self.positions = nn.Parameter(torch.zeros(layer.output))
        self.project = nn.Conv2d(layer.input[0], layer.whole("width"), size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.positions


class _Transformer(nn.Module):  # type: ignore[misc]
    """Pre-normalised block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        width = layer.input[1]
        inner = width * layer.whole("expansion")
        self._heads, self._causal = layer.whole("heads"), bool(layer.options["causal"])
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(samples, length, 3, self._heads, width // self._heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self._causal)
        x = x + self.project(mixed.transpose(1, 2).reshape(samples, length, width))
        return x + self.narrow(functional.gelu(self.widen(self.norm2(x))))


class _Lstm(nn.LSTM):  # type: ignore[misc]
    def __init__(self, layer: Layer) -> None:
        super().__init__(layer.input[1], layer.whole("width"), layer.whole("layers"), batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


class _Function(nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x)


def _average(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x.mean(dim=1)


def _steps(x: torch.Tensor) -> torch.Tensor:
    """Rows of an image, or single values, as the steps of a sequence."""
    if x.ndim == 2:
        return x.unsqueeze(2)
    return x if x.ndim == 3 else x.transpose(1, 2).flatten(2)


_MODULES: Mapping[str, Callable[[Layer], nn.Module]] = {
    "dense": _Dense,
    "conv": _Conv,
    "pool": lambda layer: nn.MaxPool2d(layer.whole("size")),
    "residual": _Residual,
    "batch_norm": lambda layer: nn.BatchNorm2d(layer.input[0]),
    "layer_norm": lambda layer: nn.LayerNorm(layer.input[-1]),
    "activation": lambda layer: _Function(_FUNCTIONS[layer.text("function")]),
    "dropout": lambda layer: nn.Dropout(float(layer.options["rate"])),
    "average": lambda layer: _Function(_average),
    "last": lambda layer: _Function(lambda x: x[:, -1]),
    "flatten": lambda layer: nn.Flatten(),
    "upsample": lambda layer: nn.Upsample(scale_factor=layer.whole("factor")),
    "steps": lambda layer: _Function(_steps),
    "embedding": _Embedding,
    "patches": _Patches,
    "lstm": _Lstm,
    "transformer": _Transformer,
}
