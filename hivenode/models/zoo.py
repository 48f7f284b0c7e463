"""Declared architectures: layer by layer, without any framework, so that a daemon can plan with exact sizes.

A declaration is the single source: frameworks build their modules from it (`declare`), the planner reads its
costs (`describe`). Costs of one sample, forward: a multiply-add counts as two operations, a bias or an
activation as one per output element; activations are float32.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from hivenode.errors import InvalidInput
from hivenode.spec.job import Scalar

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Dense:
    """Flattens its input; weight (outputs, inputs), bias (outputs)."""

    name: str
    inputs: int
    outputs: int
    relu: bool


@dataclass(frozen=True, slots=True)
class Conv:
    """3x3, stride 1, padding 1, ReLU; weight (outputs, inputs, 3, 3), bias (outputs); keeps the size."""

    name: str
    inputs: int
    outputs: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum over 2x2, stride 2; odd edges are dropped. `height` and `width` are those of the output."""

    name: str
    channels: int
    height: int
    width: int


Layer = Dense | Conv | Pool
KERNEL = 3


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer. `flops` and `activation_bytes` are of one sample's forward pass."""

    name: str
    parameters: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A whole model. `parameters` is exact."""

    source: str
    parameters: int
    flops_per_sample: int
    activation_bytes_per_sample: int
    layers: tuple[LayerCost, ...]


@dataclass(frozen=True, slots=True)
class _Param:
    default: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Entry:
    params: Mapping[str, _Param]
    build: Callable[[Mapping[str, int], tuple[int, ...], int], tuple[Layer, ...]]


def declare(source: str, params: Mapping[str, Scalar], input_shape: tuple[int, ...], classes: int) -> tuple[Layer, ...]:
    """Layers of a model, input first.

    Args:
        source: `zoo:NAME`.
        params: arguments of that model; missing ones take their defaults.
        input_shape: shape of one sample, without the batch; (channels, height, width) for images.
        classes: width of the output.

    Raises:
        InvalidInput: no such model, parameter or value, or the model cannot take that input.
    """
    name = source.removeprefix("zoo:")
    entry = _ZOO.get(name) if source.startswith("zoo:") else None
    if entry is None:
        raise InvalidInput(f"There is no model {source}.", fix=_nearest(name, list(_ZOO), "zoo:"))
    return entry.build(_arguments(source, entry, params), input_shape, classes)


def describe(source: str, params: Mapping[str, Scalar], input_shape: tuple[int, ...], classes: int) -> ModelCost:
    """Exact parameter count and the costs of one sample; arguments and errors as for `declare`."""
    layers = tuple(_cost(layer) for layer in declare(source, params, input_shape, classes))
    return ModelCost(
        source=source,
        parameters=sum(layer.parameters for layer in layers),
        flops_per_sample=sum(layer.flops for layer in layers),
        activation_bytes_per_sample=sum(layer.activation_bytes for layer in layers),
        layers=layers,
    )


def tensor_shapes(layers: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter tensor by name, in the order in which the flat parameter vector holds them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        match layer:
            case Dense():
                shapes[f"{layer.name}.weight"] = (layer.outputs, layer.inputs)
            case Conv():
                shapes[f"{layer.name}.weight"] = (layer.outputs, layer.inputs, KERNEL, KERNEL)
            case Pool():
                continue
        shapes[f"{layer.name}.bias"] = (layer.outputs,)
    return shapes


def _cost(layer: Layer) -> LayerCost:
    match layer:
        case Dense():
            flops = 2 * layer.inputs * layer.outputs + layer.outputs * (2 if layer.relu else 1)
            parameters = (layer.inputs + 1) * layer.outputs
            return LayerCost(layer.name, parameters, flops, layer.outputs * _FLOAT_BYTES)
        case Conv():
            window = KERNEL * KERNEL * layer.inputs
            outputs = layer.outputs * layer.height * layer.width
            parameters = (window + 1) * layer.outputs
            return LayerCost(layer.name, parameters, (2 * window + 2) * outputs, outputs * _FLOAT_BYTES)
        case Pool():
            outputs = layer.channels * layer.height * layer.width
            return LayerCost(layer.name, 0, 4 * outputs, outputs * _FLOAT_BYTES)


def _arguments(source: str, entry: _Entry, params: Mapping[str, Scalar]) -> dict[str, int]:
    values = {name: param.default for name, param in entry.params.items()}
    for name, value in params.items():
        param = entry.params.get(name)
        if param is None:
            known = list(entry.params)
            fix = _nearest(name, known) if known else f"{source} takes no parameters; remove it."
            raise InvalidInput(f"{source} has no parameter '{name}'.", fix=fix)
        if isinstance(value, bool) or not isinstance(value, int) or not param.low <= value <= param.high:
            raise InvalidInput(
                f"{name} of {source} is {value!r}.",
                fix=f"Give a whole number from {param.low} to {param.high}.",
            )
        values[name] = value
    return values


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{prefix}{near[0]}'?"
    return f"Valid names are {', '.join(prefix + valid for valid in known)}."


def _logistic(params: Mapping[str, int], input_shape: tuple[int, ...], classes: int) -> tuple[Layer, ...]:
    return (Dense("output", prod(input_shape), classes, relu=False),)


def _mlp(params: Mapping[str, int], input_shape: tuple[int, ...], classes: int) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    width = prod(input_shape)
    for number in range(1, params["depth"] + 1):
        layers.append(Dense(f"hidden{number}", width, params["hidden"], relu=True))
        width = params["hidden"]
    return (*layers, Dense("output", width, classes, relu=False))


def _cnn(params: Mapping[str, int], input_shape: tuple[int, ...], classes: int) -> tuple[Layer, ...]:
    blocks = params["blocks"]
    least = 2**blocks
    if len(input_shape) != 3 or min(input_shape[1:]) < least:
        shape = "x".join(map(str, input_shape))
        raise InvalidInput(
            f"zoo:cnn with {blocks} blocks needs images of at least {least}x{least}; these are {shape}.",
            fix="Use zoo:mlp or zoo:logistic for such data, or fewer blocks.",
        )
    layers: list[Layer] = []
    channels, height, width = input_shape
    for number in range(1, blocks + 1):
        outputs = params["channels"] * 2 ** (number - 1)
        layers.append(Conv(f"conv{number}", channels, outputs, height, width))
        channels, height, width = outputs, height // 2, width // 2
        layers.append(Pool(f"pool{number}", channels, height, width))
    layers.append(Dense("hidden", channels * height * width, params["hidden"], relu=True))
    return (*layers, Dense("output", params["hidden"], classes, relu=False))


_ZOO: Mapping[str, _Entry] = {
    "logistic": _Entry({}, _logistic),
    "mlp": _Entry({"hidden": _Param(64, 1, 65_536), "depth": _Param(1, 1, 64)}, _mlp),
    "cnn": _Entry({"channels": _Param(16, 1, 1024), "hidden": _Param(64, 1, 65_536), "blocks": _Param(2, 1, 4)}, _cnn),
}
