"""What an allowed configuration takes, gives and costs: its layers walked with the shapes of the data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.analyze import keras_shapes
from hivenode.models.analyze.tape import product
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.keras_configs.allowed import LARGEST, LAYERS, examined
from hivenode.models.layers import FLOAT_BYTES, LayerCost, ModelCost
from hivenode.spec.shapes import Shape, spelled

Settings = Mapping[str, Json]
MOST_PARAMETERS = 1 << 40
MOST_VALUES = 1 << 34
"""That a layer gives for one sample."""
_CLASSES = ("softmax", "log_softmax", "linear")
_MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A configuration that fits its data.

    Attributes:
        config: to be built: sizes of the input filled in, the last softmax taken off, since outputs are logits.
        takes: shape of one sample as the model takes it; images have their channels last.
        gives: shape of one output, in which pictures have their channels last, too.
        lines: costs of each layer, in the order in which they are used.
    """

    config: dict[str, Json]
    takes: Shape
    gives: Shape
    lines: tuple[LayerCost, ...]


def describe(source: str, config: Json, info: DataInfo) -> ModelCost:
    """What a model costs; parameters are exact. Raises as `fitted`."""
    return ModelCost.of(source, fitted(config, info).lines)


def fitted(config: Json, info: DataInfo) -> Fitted:
    """The model for these data.

    Raises:
        InvalidInput: it is not allowed (`allowed.examined`), a layer cannot take what comes to it, or the model does
            not fit the data.
    """
    whole = copy.deepcopy(examined(config))
    if info.task == "text_to_text":
        raise InvalidInput(
            "A keras: model does not write a text upon another.", fix='Use hf:config with model_type = "t5".'
        )
    natural = last_channels(info.input_shape)
    takes = _entered(whole, natural, info)
    _put_logits(whole, info)
    walk = _Walk(info)
    gives = walk.model(whole, (1, *takes), "")[1:]
    needed = (*info.input_shape, info.outputs) if info.task == "language" else (info.outputs,)
    if gives != needed and not (info.task == "reconstruction" and gives in (natural, takes)):
        raise InvalidInput(
            f"The Keras model puts out {spelled(gives)}; {info.source} needs {spelled(needed)}.",
            fix=f"End with Dense({info.outputs}), after a Flatten, pooling or recurrent layer where needed.",
        )
    if sum(line.parameters for line in walk.lines) > MOST_PARAMETERS:
        worst = max(walk.lines, key=lambda line: line.parameters)
        raise InvalidInput(
            f"Layer {worst.name} of the Keras configuration has {worst.parameters:,} parameters; a model may have "
            f"{MOST_PARAMETERS:,}.",
            fix="Make it smaller.",
        )
    return Fitted(whole, takes, gives, tuple(walk.lines))


def last_channels(shape: Shape) -> Shape:
    """Keras's order of axes for one sample of this shape."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _entered(whole: dict[str, Json], natural: Shape, info: DataInfo) -> Shape:
    """What the model takes of a sample; its input layer says it, too, when this returns."""
    settings = _input(whole, natural)
    asked: list[int | None] = settings["batch_shape"][1:]
    takes = natural if len(asked) == len(natural) else tuple(size or 0 for size in asked)
    if len(asked) == len(natural):
        takes = tuple(own if size is None else size for size, own in zip(asked, natural, strict=True))
    alike = [size for size in takes if size != 1] == [size for size in natural if size != 1]
    if not alike and takes != (info.features,):
        order = " (height, width, channels)" if len(natural) == 3 else ""
        raise InvalidInput(
            f"The Keras model takes {spelled(takes)}; a sample of {info.source} is {spelled(natural)}{order}.",
            fix=f"Build it with keras.Input({natural}), or {(info.features,)} for a flat one.",
        )
    settings["batch_shape"] = [None, *takes]
    settings["dtype"] = "int32" if info.vocabulary else "float32"
    return takes


def _input(whole: dict[str, Json], natural: Shape) -> dict[str, Json]:
    """Settings of the input layer; a sequential model may be without."""
    config = whole["config"]
    layers: list[dict[str, Json]] = config["layers"]
    if whole["class_name"] == "Functional":
        name = config["input_layers"][0]
        found = next((layer for layer in layers if layer["config"]["name"] == name), None)
        if found is None or found["class_name"] != "InputLayer":
            raise InvalidInput(
                f"The input of the Keras configuration, {name[:100]}, is no input layer of it.",
                fix="Give the configuration that model.to_json() writes.",
            )
        return found["config"]  # type: ignore[no-any-return]
    if layers[0]["class_name"] != "InputLayer":
        shape = [None, *natural]
        if layers[0]["class_name"] == "Functional":
            shape = _input(layers[0], natural)["batch_shape"]
        first = {"name": "input", "batch_shape": shape}
        layers.insert(0, {"class_name": "InputLayer", "module": "keras.layers", "config": first})
    return layers[0]["config"]  # type: ignore[no-any-return]


def _put_logits(whole: dict[str, Json], info: DataInfo) -> None:
    """Losses are taken of logits: a softmax at the end is left off, and anything else in its place refused."""
    if info.task not in ("classification", "language"):
        return
    config = whole["config"]
    layers: list[dict[str, Json]] = config["layers"]
    last = layers[-1]
    if whole["class_name"] == "Functional":
        name = config["output_layers"][0]
        last = next((layer for layer in layers if layer["config"]["name"] == name), last)
        uses = [take for layer in layers for node in layer.get("inbound_nodes") or [] for take in keras_takes(node)]
        if any(taken == name for taken, _ in uses) or len(last.get("inbound_nodes") or []) > 1:
            raise _wrong(name, "is the output, and is used within the model, too")
    if last["class_name"] in ("Functional", "Sequential"):
        _put_logits(last, info)
        return
    settings = last["config"]
    kind, function = last["class_name"], settings.get("activation")
    if kind == "Softmax":
        last["class_name"], last["config"] = "Identity", {"name": settings["name"]}
    elif function in (*_CLASSES, None):
        if function is not None:
            settings["activation"] = "linear"
    elif kind not in ("LSTM", "GRU", "SimpleRNN"):
        raise InvalidInput(
            f"Layer {settings['name']} of the Keras configuration ends the model with {function}; classes need softmax "
            "or no activation.",
            fix=f'End with Dense({info.outputs}, activation="softmax"), also for two classes.',
        )


class _Walk:
    def __init__(self, info: DataInfo) -> None:
        self._info = info
        self.lines: list[LayerCost] = []
        self._counted: set[str] = set()

    def model(self, given: Json, entering: Shape, within: str) -> Shape:
        """The output's shape of one model; shapes have a batch of 1 in front."""
        config = given["config"]
        if given["class_name"] == "Sequential":
            shape = entering
            for layer in config["layers"]:
                shape = self._one(layer, [shape], within, first=shape is entering)
            return shape
        return self._graph(config, entering, within)

    def _graph(self, config: Settings, entering: Shape, within: str) -> Shape:
        start, end = config["input_layers"], config["output_layers"]
        known: dict[tuple[str, int], Shape] = {(start[0], 0): entering}
        left = [
            (layer, number, keras_takes(node))
            for layer in config["layers"]
            if layer["class_name"] != "InputLayer"
            for number, node in enumerate(layer.get("inbound_nodes") or [])
        ]
        while left:
            later = []
            for layer, number, takes in left:
                if not takes or any(one not in known for one in takes):
                    later.append((layer, number, takes))
                    continue
                shapes = [known[one] for one in takes]
                known[layer["config"]["name"], number] = self._one(layer, shapes, within, (start[0], 0) in takes)
            if len(later) == len(left):
                raise _wrong(within + later[0][0]["config"]["name"], "takes what no layer before it gives")
            left = later
        if (end[0], end[1]) not in known:
            raise _wrong(within + str(end[0]), "is to be the output, and is used nowhere")
        return known[end[0], end[1]]

    def _one(self, layer: Json, shapes: Sequence[Shape], within: str, first: bool = False) -> Shape:
        kind, settings = layer["class_name"], layer["config"]
        name = within + settings["name"]
        if kind == "InputLayer":
            return shapes[0]
        if kind in ("Functional", "Sequential"):
            return self.model(layer, shapes[0], f"{name}/")
        if first and not within:
            self._reads(name, kind, settings)
        try:
            self._fits(kind, settings, shapes)
            found = keras_shapes.given(kind, settings, shapes)
            counted = _parameters(kind, settings, shapes) if found is not None else 0
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError):
            found = None
        taken = " and ".join(spelled(shape[1:]) for shape in shapes[:4])
        if found is None or min(found[0], default=0) < 1:
            raise _wrong(name, f"({kind}) cannot take {taken} with its settings")
        shape, flops, passing = found
        if product(shape) > MOST_VALUES:
            raise _wrong(name, f"gives {product(shape):,} values for each sample; at most {MOST_VALUES:,} are taken")
        parameters = 0 if name in self._counted else counted
        self._counted.add(name)
        elements = product(shape)
        inner = _inner(kind, settings, shapes) + (elements if passing else 0)
        bytes_kept = FLOAT_BYTES * elements
        self.lines.append(LayerCost(name, parameters, round(flops), bytes_kept, FLOAT_BYTES * inner, shape[1:]))
        return shape

    def _reads(self, name: str, kind: str, settings: Settings) -> None:
        """Text is looked up first, and nothing else is."""
        info = self._info
        if (kind == "Embedding") != bool(info.vocabulary):
            what = "is text" if info.vocabulary else f"has {spelled(info.input_shape)} numbers a sample"
            raise InvalidInput(
                f"Layer {name} of the Keras configuration is a {kind}, and {info.source} {what}.",
                fix="Begin with an Embedding for text and with another layer for numbers.",
            )
        entries = settings.get("input_dim")
        if kind == "Embedding" and isinstance(entries, int) and entries < info.vocabulary:
            raise InvalidInput(
                f"Layer {name} of the Keras configuration has {entries} entries; "
                f"{info.source} has {info.vocabulary} tokens.",
                fix=f"Build it with Embedding({info.vocabulary}, ...).",
            )

    def _fits(self, kind: str, settings: Settings, shapes: Sequence[Shape]) -> None:
        """Raises ValueError for numbers and kinds of inputs that a layer does not take."""
        if kind in _MERGES:
            ranks = {len(shape) for shape in shapes}
            if len(shapes) < 2 or len(ranks) != 1:
                raise ValueError(shapes)
            for sizes in zip(*shapes, strict=True):
                if len(set(sizes) - {1}) > 1:
                    raise ValueError(sizes)
        elif kind not in ("Concatenate", "MultiHeadAttention") and len(shapes) != 1:
            raise ValueError(shapes)
        for key in _WHOLE:
            if key in settings and not (isinstance(settings[key], int) and 0 < settings[key] <= LARGEST):
                raise ValueError(key)
        if kind == "MultiHeadAttention" and ("output_shape" in settings or settings.get("attention_axes", [1]) != [1]):
            raise ValueError("output_shape")


_WHOLE = ("units", "filters", "output_dim", "input_dim", "num_heads", "key_dim", "value_dim", "depth_multiplier", "n",
          "groups")  # fmt: skip


def keras_takes(node: Json) -> list[tuple[str, int]]:
    """Layers and their uses, of which one use of a layer takes the outputs."""
    found, stack = list[tuple[str, int]](), [*reversed(node["args"]), *reversed(list(node["kwargs"].values()))]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(reversed(part))
        elif isinstance(part, dict):
            name, use, _ = part["config"]["keras_history"]
            found.append((name, use))
    return found


def _wrong(name: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"Layer {name[:200]} of the Keras configuration {what}.", fix="Change it, or the layer before it."
    )


# --- parameters, as Keras builds them ------------------------------------------------------------------------------


def _parameters(kind: str, s: Settings, shapes: Sequence[Shape]) -> int:
    """Weights that can be trained. `shapes` with the batch in front."""
    first = shapes[0]
    rule = _RULES.get(kind)
    if rule is not None:
        return rule(s, first)
    if kind == "Bidirectional":
        inner = s["layer"]
        return 2 * _parameters(inner["class_name"], inner["config"], shapes)
    if kind == "TimeDistributed":
        inner = s["layer"]
        return _parameters(inner["class_name"], inner["config"], [(first[0], *first[2:])])
    if kind == "MultiHeadAttention":
        return _attention_parameters(s, shapes)
    return 0


def _bias(s: Settings, size: int) -> int:
    return size if s.get("use_bias", True) else 0


def _window(s: Settings, shape: Shape) -> int:
    size = s["kernel_size"]
    return int(product(size)) if isinstance(size, list) else int(size) ** (len(shape) - 2)


def _conv(s: Settings, shape: Shape) -> int:
    filters = int(s["filters"])
    return _window(s, shape) * (shape[-1] // int(s.get("groups", 1))) * filters + _bias(s, filters)


def _depthwise(s: Settings, shape: Shape) -> int:
    out = shape[-1] * int(s.get("depth_multiplier", 1))
    return _window(s, shape) * out + _bias(s, out)


def _separable(s: Settings, shape: Shape) -> int:
    between = shape[-1] * int(s.get("depth_multiplier", 1))
    return _window(s, shape) * between + between * int(s["filters"]) + _bias(s, s["filters"])


def _recurrent(gates: int) -> Callable[[Settings, Shape], int]:
    def rule(s: Settings, shape: Shape) -> int:
        units = int(s["units"])
        biases = 2 if gates == 3 and s.get("reset_after", True) else 1
        return gates * units * (shape[-1] + units) + _bias(s, gates * units * biases)

    return rule


def _axes(s: Settings, shape: Shape) -> int:
    axis = s.get("axis", -1)
    return product([shape[one] for one in (axis if isinstance(axis, list) else [axis])])


def _norm(s: Settings, shape: Shape) -> int:
    return _axes(s, shape) * (bool(s.get("center", True)) + bool(s.get("scale", True)))


def _prelu(s: Settings, shape: Shape) -> int:
    shared = s.get("shared_axes") or []
    return product([1 if axis in shared else size for axis, size in enumerate(shape[1:], 1)])


def _attention_parameters(s: Settings, shapes: Sequence[Shape]) -> int:
    heads, key = int(s["num_heads"]), int(s["key_dim"])
    value = int(s.get("value_dim") or key)
    asked, given, keys = shapes[0][-1], shapes[min(1, len(shapes) - 1)][-1], shapes[-1][-1]
    total = heads * (asked * key + keys * key + given * value + value * asked)
    return total + _bias(s, heads * (2 * key + value) + asked)


_RULES: Mapping[str, Callable[[Settings, Shape], int]] = {
    "Dense": lambda s, shape: shape[-1] * s["units"] + _bias(s, s["units"]),
    "Conv1D": _conv, "Conv2D": _conv, "Conv3D": _conv,
    "Conv1DTranspose": _conv, "Conv2DTranspose": _conv, "Conv3DTranspose": _conv,
    "DepthwiseConv1D": _depthwise, "DepthwiseConv2D": _depthwise,
    "SeparableConv1D": _separable, "SeparableConv2D": _separable,
    "LSTM": _recurrent(4), "GRU": _recurrent(3), "SimpleRNN": _recurrent(1),
    "Embedding": lambda s, shape: s["input_dim"] * s["output_dim"],
    "BatchNormalization": _norm, "LayerNormalization": _norm, "GroupNormalization": _norm,
    "RMSNormalization": _axes, "PReLU": _prelu,
}  # fmt: skip
assert _RULES.keys() <= LAYERS


def _inner(kind: str, s: Settings, shapes: Sequence[Shape]) -> int:
    """Elements kept within a layer for the backward pass, besides its output: gates of each step, scores of heads."""
    first = shapes[0]
    if kind in ("LSTM", "GRU", "SimpleRNN"):
        return 6 * first[1] * int(s["units"])
    if kind == "Bidirectional":
        return 2 * _inner(s["layer"]["class_name"], s["layer"]["config"], shapes)
    if kind == "MultiHeadAttention":
        heads = int(s["num_heads"])
        return heads * first[1] * (2 * shapes[-1][1] + 4 * int(s["key_dim"]))
    return 0
