"""Layers by declaration: what each holds, puts out and costs, without any framework, so that a daemon can plan.

A model is a line of layers. A declaration is the single source: frameworks build their modules from it, with exactly
these tensors; the planner reads its costs. Costs are of one sample, forward: a multiply-add counts as two operations, a
bias or an activation as one per output element; activations are float32.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from hivenode.errors import InvalidInput
from hivenode.spec.section import Scalar
from hivenode.spec.shapes import Shape, spelled

FLOAT_BYTES = 4
Start = Literal["fan", "unit", "small", "zero", "one"]
"""First values of a tensor: uniform of variance 2 / fan-in (He, arXiv 1502.01852, eq. 10), of variance 1 / fan-in
(LeCun), or of deviation 0.02 (as GPT-2 and BERT); 0; 1."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter: its shape, and what it starts as."""

    shape: Shape
    start: Start


@dataclass(frozen=True, slots=True)
class Param:
    """An argument of a layer or model. Whole numbers from `low` to `high`; or of `choices`; or, with `real`, any number
    between. `default` None: it must be given."""

    default: Scalar | None
    low: float = 1
    high: float = 65_536
    choices: tuple[str, ...] = ()
    real: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, with every size known. Shapes are of one sample: (channels, height, width) for images, (length, width)
    for sequences, (length,) whole numbers for tokens, (width,) for vectors."""

    name: str
    kind: str
    input: Shape
    output: Shape
    options: Mapping[str, Scalar] = field(default_factory=dict)

    def whole(self, option: str) -> int:
        return int(self.options[option])

    def text(self, option: str) -> str:
        return str(self.options[option])


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to know of a kind of layer.

    Attributes:
        output: shape put out; raises ValueError with a clause on what it takes instead.
        tensors: parameters by name within the layer, in order.
        buffers: running statistics by name within the layer.
        flops: forward, of one sample.
        kept: values kept for the backward pass besides the output.
        passing: values that a library holds beside for a moment, whatever the samples: weights in another order.
    """

    params: Mapping[str, Param]
    output: Callable[[Shape, Mapping[str, Scalar]], Shape]
    tensors: Callable[[Layer], dict[str, Tensor]]
    flops: Callable[[Layer], int]
    buffers: Callable[[Layer], dict[str, Tensor]] = lambda layer: {}
    kept: Callable[[Layer], int] = lambda layer: 0
    passing: Callable[[Layer], int] = lambda layer: 0


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer. `flops` and bytes are of one sample's forward pass.

    Attributes:
        activation_bytes: its output, of shape `output` (empty where that is not known).
        inner_bytes: what is kept inside it for the backward pass besides.
        passing_bytes: what it takes besides for a moment, however many samples there are.
    """

    name: str
    parameters: int
    flops: int
    activation_bytes: int
    inner_bytes: int = 0
    output: Shape = ()
    passing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A whole model. `activation_bytes_per_sample` is all that is kept for the backward pass."""

    source: str
    parameters: int
    flops_per_sample: int
    activation_bytes_per_sample: int
    layers: tuple[LayerCost, ...]

    @classmethod
    def of(cls, source: str, layers: tuple[LayerCost, ...]) -> ModelCost:
        """What these come to."""
        return cls(
            source=source,
            parameters=sum(layer.parameters for layer in layers),
            flops_per_sample=sum(layer.flops for layer in layers),
            activation_bytes_per_sample=sum(layer.activation_bytes + layer.inner_bytes for layer in layers),
            layers=layers,
        )


def resolve(name: str, kind: str, options: Mapping[str, Scalar], input_shape: Shape) -> Layer:
    """A layer with its sizes. Raises InvalidInput: no such kind or option, or it cannot take that input."""
    known = KINDS.get(kind)
    if known is None:
        raise InvalidInput(f"There is no layer '{kind[:64]}'.", fix=nearest(kind, list(KINDS)))
    values = arguments(f"layer {name} ({kind})", known.params, options)
    try:
        output = known.output(input_shape, values)
    except ValueError as error:
        raise InvalidInput(
            f"Layer {name} ({kind}) cannot take {spelled(input_shape)}: it needs {error}.",
            fix="Change the layer before it, or use another one in its place.",
        ) from None
    return Layer(name, kind, input_shape, output, values)


def line(layers: Sequence[Mapping[str, Scalar]], input_shape: Shape, outputs: int) -> tuple[Layer, ...]:
    """Layers declared one by one, input first; each a `type`, perhaps a `name`, and arguments. A last dense layer
    without `outputs` gets as many as the data needs.

    Raises:
        InvalidInput: which layer cannot be, and why.
    """
    made: list[Layer] = []
    shape = input_shape
    for place, given in enumerate(layers, 1):
        options = dict(given)
        kind = str(options.pop("type", ""))
        name = str(options.pop("name", f"{kind}{place}" if place < len(layers) else "output"))
        if not name.isidentifier() or any(name == layer.name for layer in made):
            raise InvalidInput(
                f"Layer {place} is named {name[:64]!r}.",
                fix="Give each layer its own name, of letters and digits.",
            )
        if kind == "dense" and place == len(layers):
            options.setdefault("outputs", outputs)
        layer = resolve(name, kind, options, shape)
        made.append(layer)
        shape = layer.output
    return tuple(made)


def tensors(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Each parameter by its full name, in the order in which the flat parameter vector holds them."""
    return {
        f"{layer.name}.{name}": tensor for layer in layers for name, tensor in KINDS[layer.kind].tensors(layer).items()
    }


def buffers(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Running statistics, likewise."""
    return {
        f"{layer.name}.{name}": tensor for layer in layers for name, tensor in KINDS[layer.kind].buffers(layer).items()
    }


def cost(source: str, layers: Sequence[Layer]) -> ModelCost:
    """What a line of layers costs."""
    costs = tuple(
        LayerCost(
            layer.name,
            sum(prod(tensor.shape) for tensor in KINDS[layer.kind].tensors(layer).values()),
            KINDS[layer.kind].flops(layer),
            prod(layer.output) * FLOAT_BYTES,
            KINDS[layer.kind].kept(layer) * FLOAT_BYTES,
            layer.output,
            KINDS[layer.kind].passing(layer) * FLOAT_BYTES,
        )
        for layer in layers
    )
    return ModelCost.of(source, costs)


def arguments(whose: str, params: Mapping[str, Param], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Arguments with defaults filled in. Raises InvalidInput naming the nearest for one that does not exist."""
    values = {name: param.default for name, param in params.items()}
    for name, value in given.items():
        param = params.get(name)
        if param is None:
            fix = nearest(name, list(params)) if params else f"{whose} takes no parameters; remove it."
            raise InvalidInput(f"{whose} has no parameter '{name[:64]}'.", fix=fix)
        values[name] = _checked(whose, name, param, value)
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise InvalidInput(f"{whose} lacks '{missing[0]}'.", fix="Give it.")
    return {name: value for name, value in values.items() if value is not None}


def _checked(whose: str, name: str, param: Param, value: Scalar) -> Scalar:
    if param.choices:
        if value not in param.choices:
            raise InvalidInput(f"{name} of {whose} is {value!r}.", fix=nearest(str(value), list(param.choices)))
        return value
    if isinstance(param.default, bool):
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} of {whose} is {value!r}.", fix="Give true or false.")
        return value
    number = isinstance(value, int | float if param.real else int) and not isinstance(value, bool)
    if not number or not param.low <= float(value) <= param.high:
        kind = "number" if param.real else "whole number"
        raise InvalidInput(f"{name} of {whose} is {value!r}.", fix=f"Give a {kind} from {param.low} to {param.high}.")
    return value


def nearest(name: str, known: list[str], prefix: str = "") -> str:
    """A sentence that names the nearest of what there is, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{prefix}{near[0]}'?"
    return f"Valid names are {', '.join(prefix + valid for valid in known)}."


ACTIVATIONS = ("none", "relu", "gelu", "tanh", "sigmoid")

# --- shapes ---------------------------------------------------------------------------------------------------------


def _image(shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError("images (channels, height, width)")
    return shape[0], shape[1], shape[2]


def _sequence(shape: Shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError("a sequence (length, width); tokens go through an embedding first")
    return shape[0], shape[1]


def _dense_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    return (shape[0], int(o["outputs"])) if len(shape) == 2 else (int(o["outputs"]),)


def _scaled(size: int, stride: int) -> int:
    return -(-size // stride)


def _conv_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    _, height, width = _image(shape)
    if int(o.get("kernel", 3)) % 2 == 0:
        raise ValueError("an odd kernel")
    stride = int(o["stride"])
    return int(o["outputs"]), _scaled(height, stride), _scaled(width, stride)


def _pool_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    channels, height, width = _image(shape)
    size = int(o["size"])
    if min(height, width) < size:
        raise ValueError(f"images of at least {size}x{size}")
    return channels, height // size, width // size


def _upsample_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    channels, height, width = _image(shape)
    return channels, height * int(o["factor"]), width * int(o["factor"])


def _average_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    if len(shape) not in (2, 3):
        raise ValueError("images or a sequence")
    return (shape[0],) if len(shape) == 3 else (shape[1],)


def _patches_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    _, height, width = _image(shape)
    size = int(o["size"])
    if height % size or width % size:
        raise ValueError(f"images whose sides are multiples of {size}")
    return (height // size) * (width // size), int(o["width"])


def _embedding_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    if len(shape) != 1:
        raise ValueError("tokens")
    return shape[0], int(o["width"])


def _steps_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    return (shape[0], 1) if len(shape) == 1 else shape if len(shape) == 2 else (shape[1], shape[0] * shape[2])


def _transformer_output(shape: Shape, o: Mapping[str, Scalar]) -> Shape:
    _, width = _sequence(shape)
    if width % int(o["heads"]):
        raise ValueError(f"a width that is a multiple of {o['heads']} heads")
    return shape


# --- tensors ---------------------------------------------------------------------------------------------------------


def _width(layer: Layer) -> int:
    """Inputs of a dense layer: the last axis of a sequence, everything of anything else."""
    return layer.input[1] if len(layer.input) == 2 else prod(layer.input)


def _dense_tensors(layer: Layer) -> dict[str, Tensor]:
    outputs = layer.whole("outputs")
    start: Start = "fan" if len(layer.input) != 2 else "unit"
    return {"weight": Tensor((outputs, _width(layer)), start), "bias": Tensor((outputs,), "zero")}


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}weight": Tensor((width,), "one"), f"{name}bias": Tensor((width,), "zero")}


def _statistics(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}running_mean": Tensor((width,), "zero"), f"{name}running_var": Tensor((width,), "one")}


def _conv_tensors(layer: Layer) -> dict[str, Tensor]:
    kernel, outputs = layer.whole("kernel"), layer.whole("outputs")
    return {
        "weight": Tensor((outputs, layer.input[0], kernel, kernel), "fan"),
        "bias": Tensor((outputs,), "zero"),
    }


def _shortcut(layer: Layer) -> bool:
    return layer.input != layer.output


def _residual_tensors(layer: Layer) -> dict[str, Tensor]:
    inputs, outputs = layer.input[0], layer.whole("outputs")
    made = {"conv1.weight": Tensor((outputs, inputs, 3, 3), "fan"), **_norm("norm1.", outputs)}
    made |= {"conv2.weight": Tensor((outputs, outputs, 3, 3), "fan"), **_norm("norm2.", outputs)}
    if _shortcut(layer):
        made |= {"conv3.weight": Tensor((outputs, inputs, 1, 1), "fan"), **_norm("norm3.", outputs)}
    return made


def _residual_buffers(layer: Layer) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for number in (1, 2, 3) if _shortcut(layer) else (1, 2):
        made |= _statistics(f"norm{number}.", layer.whole("outputs"))
    return made


def _lstm_tensors(layer: Layer) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    inputs, width = layer.input[1], layer.whole("width")
    for number in range(layer.whole("layers")):
        made |= {
            f"weight_ih_l{number}": Tensor((4 * width, inputs), "unit"),
            f"weight_hh_l{number}": Tensor((4 * width, width), "unit"),
            f"bias_ih_l{number}": Tensor((4 * width,), "zero"),
            f"bias_hh_l{number}": Tensor((4 * width,), "zero"),
        }
        inputs = width
    return made


def _embedding_tensors(layer: Layer) -> dict[str, Tensor]:
    made = {"tokens.weight": Tensor((layer.whole("vocabulary"), layer.whole("width")), "small")}
    if layer.options["positions"]:
        made["positions"] = Tensor(layer.output, "small")
    return made


def _patches_tensors(layer: Layer) -> dict[str, Tensor]:
    width, size = layer.whole("width"), layer.whole("size")
    return {
        "positions": Tensor(layer.output, "small"),
        "project.weight": Tensor((width, layer.input[0], size, size), "unit"),
        "project.bias": Tensor((width,), "zero"),
    }


def _transformer_tensors(layer: Layer) -> dict[str, Tensor]:
    width = layer.input[1]
    inner = width * layer.whole("expansion")
    made = _norm("norm1.", width)
    for name, outputs, inputs in (("qkv", 3 * width, width), ("project", width, width)):
        made |= {f"{name}.weight": Tensor((outputs, inputs), "unit"), f"{name}.bias": Tensor((outputs,), "zero")}
    made |= _norm("norm2.", width)
    for name, outputs, inputs in (("widen", inner, width), ("narrow", width, inner)):
        made |= {f"{name}.weight": Tensor((outputs, inputs), "unit"), f"{name}.bias": Tensor((outputs,), "zero")}
    return made


def _nothing(layer: Layer) -> dict[str, Tensor]:
    return {}


# --- costs -----------------------------------------------------------------------------------------------------------


def _active(layer: Layer) -> int:
    return 0 if layer.text("activation") == "none" else 1


def _dense_flops(layer: Layer) -> int:
    return prod(layer.output) * (2 * _width(layer) + 1 + _active(layer))


def _conv_flops(layer: Layer) -> int:
    return prod(layer.output) * (2 * layer.whole("kernel") ** 2 * layer.input[0] + 1 + _active(layer))


def _residual_flops(layer: Layer) -> int:
    outputs, inputs, values = layer.whole("outputs"), layer.input[0], prod(layer.output)
    flops = values * (2 * 9 * inputs + 5 + 2 * 9 * outputs + 6)  # normalised twice, added, two ReLUs
    return flops + values * (2 * inputs + 4) if _shortcut(layer) else flops


def _lstm_flops(layer: Layer) -> int:
    length, inputs = layer.input
    width = layer.whole("width")
    flops = 0
    for _ in range(layer.whole("layers")):
        flops += length * (8 * width * (inputs + width) + 30 * width)
        inputs = width
    return flops


def _lstm_passing(layer: Layer) -> int:
    """oneDNN copies both matrices of a layer to an order of its own, forward and back, and makes their gradients in
    that and in ours: four times the largest layer."""
    width = layer.whole("width")
    inputs = layer.input[1] if layer.whole("layers") == 1 else max(width, layer.input[1])
    return 4 * 4 * width * (inputs + width)


def _transformer_flops(layer: Layer) -> int:
    length, width = layer.input
    inner = width * layer.whole("expansion")
    products = 2 * length * width * (4 * width + 2 * inner)
    attention = 4 * length * length * width
    return products + attention + length * (20 * width + 10 * inner) + 5 * length * length * layer.whole("heads")


def _transformer_kept(layer: Layer) -> int:
    length, width = layer.input
    return length * width * (8 + 2 * layer.whole("expansion")) + layer.whole("heads") * length * length


KINDS: Mapping[str, Kind] = {
    "dense": Kind(
        {"outputs": Param(None), "activation": Param("none", choices=ACTIVATIONS)},
        _dense_output, _dense_tensors, _dense_flops,
    ),
    "conv": Kind(
        {
            "outputs": Param(None), "kernel": Param(3, 1, 31), "stride": Param(1, 1, 16),
            "activation": Param("relu", choices=ACTIVATIONS),
        },
        _conv_output, _conv_tensors, _conv_flops,
    ),
    "pool": Kind({"size": Param(2, 1, 64)}, _pool_output, _nothing,
                 lambda layer: layer.whole("size") ** 2 * prod(layer.output),
                 kept=lambda layer: 2 * prod(layer.output)),  # int64: where in the input each was
    "residual": Kind(
        {"outputs": Param(None), "stride": Param(1, 1, 16)},
        _conv_output, _residual_tensors, _residual_flops, _residual_buffers,
        lambda layer: (5 if _shortcut(layer) else 4) * prod(layer.output),
    ),
    "batch_norm": Kind(
        {}, lambda shape, o: (_image(shape), shape)[1], lambda layer: _norm("", layer.input[0]),
        lambda layer: 4 * prod(layer.output), lambda layer: _statistics("", layer.input[0]),
    ),
    "layer_norm": Kind({}, lambda shape, o: shape, lambda layer: _norm("", layer.input[-1]),
                       lambda layer: 8 * prod(layer.output)),
    "activation": Kind({"function": Param("relu", choices=ACTIVATIONS[1:])}, lambda shape, o: shape, _nothing,
                       lambda layer: prod(layer.output)),
    "dropout": Kind({"rate": Param(0.1, 0.0, 0.9, real=True)}, lambda shape, o: shape, _nothing,
                    lambda layer: 2 * prod(layer.output)),
    "average": Kind({}, _average_output, _nothing, lambda layer: prod(layer.input)),
    "last": Kind({}, lambda shape, o: (_sequence(shape)[1],), _nothing, lambda layer: 0),
    "flatten": Kind({}, lambda shape, o: (prod(shape),), _nothing, lambda layer: 0),
    "upsample": Kind({"factor": Param(2, 2, 16)}, _upsample_output, _nothing, lambda layer: 0),
    "steps": Kind({}, _steps_output, _nothing, lambda layer: 0),
    "embedding": Kind(
        {"vocabulary": Param(None, 2, 1_000_000), "width": Param(None), "positions": Param(True)},
        _embedding_output, _embedding_tensors, lambda layer: prod(layer.output),
    ),
    "patches": Kind(
        {"size": Param(4, 1, 256), "width": Param(None)}, _patches_output, _patches_tensors,
        lambda layer: prod(layer.output) * (2 * layer.input[0] * layer.whole("size") ** 2 + 2),
    ),
    "lstm": Kind(
        {"width": Param(None), "layers": Param(1, 1, 16)}, lambda shape, o: (_sequence(shape)[0], int(o["width"])),
        _lstm_tensors, _lstm_flops, kept=lambda layer: 6 * layer.whole("layers") * prod(layer.output),
        passing=_lstm_passing,
    ),
    "transformer": Kind(
        {"heads": Param(4, 1, 256), "expansion": Param(4, 1, 16), "causal": Param(False)},
        _transformer_output, _transformer_tensors, _transformer_flops, kept=_transformer_kept,
    ),
}  # fmt: skip
