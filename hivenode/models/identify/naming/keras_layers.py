"""What a Keras configuration is made of: the objects known to be harmless, all others as findings, and the layers.

A configuration names classes and functions that Keras looks up when the model is loaded. `safe_mode` is no boundary;
what counts here is that every name is one of Keras's own that runs no code out of the file.

Source of the names: the public namespaces of Keras 3.15 and the serialized forms of Keras 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.naming.graphs import Mix
from hivenode.models.identify.naming.keras_names import ACTIVATIONS, CODE, FUNCTIONS, HARMLESS
from hivenode.models.identify.report import FREE, Port, Report

MOST_VALUES = 2_000_000
MOST_LAYERS = 100_000
_MODULES = re.compile(r"(keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)(\.[a-z_0-9.]+)?")
_NEVER = re.compile(r"\.(utils|saving|config|datasets|legacy|wrappers)(\.|$)")
_OPERATION = re.compile(r"(math|nn|__operators__)\.[a-z_0-9.]+|concat|reshape|expand_dims|cast|shape|transpose|stack|"
                        r"squeeze|tile|split|where|unstack|identity|zeros_like|ones_like|clip_by_value|one_hot|"
                        r"gather|pad|repeat|strided_slice|slice|reverse|broadcast_to|compat\.v1\.(shape|transpose)|"
                        r"image\.resize|linalg\.(matmul|l2_normalize|einsum)|convert_to_tensor")  # fmt: skip
_LOOKUPS = {"StringLookup", "IntegerLookup", "TextVectorization"}
_DEFAULT_NAME = re.compile(r"(functional|sequential|model|network)(_\d+)?")
_KINDS = {
    "Dense": "dense", "EinsumDense": "dense", "Conv1D": "conv1d", "SeparableConv1D": "conv1d", "Conv2D": "conv2d",
    "DepthwiseConv1D": "conv1d", "SeparableConv2D": "conv2d", "DepthwiseConv2D": "conv2d", "Conv3D": "conv3d",
    "Convolution1D": "conv1d", "Convolution2D": "conv2d", "Convolution3D": "conv3d",
    "Conv1DTranspose": "conv_transpose",
    "Conv2DTranspose": "conv_transpose", "Conv3DTranspose": "conv_transpose", "LSTM": "recurrent", "GRU": "recurrent",
    "SimpleRNN": "recurrent", "RNN": "recurrent", "ConvLSTM1D": "recurrent", "ConvLSTM2D": "recurrent",
    "ConvLSTM3D": "recurrent", "CuDNNLSTM": "recurrent", "CuDNNGRU": "recurrent", "MultiHeadAttention": "attention",
    "GroupQueryAttention": "attention", "Attention": "attention", "AdditiveAttention": "attention",
    "LayerNormalization": "norm", "RMSNormalization": "norm", "GroupNormalization": "norm",
    "BatchNormalization": "batch_norm", "Embedding": "embedding", "ReversibleEmbedding": "embedding",
    "UpSampling1D": "upsample", "UpSampling2D": "upsample", "UpSampling3D": "upsample", "MaxPooling2D": "pool",
    "AveragePooling2D": "pool", "GlobalAveragePooling2D": "pool", "MelSpectrogram": "spectrum",
    "STFTSpectrogram": "spectrum", "TextVectorization": "tokens",
}  # fmt: skip
_SAME_SHAPE = {"Activation", "Softmax", "Dropout", "BatchNormalization", "LayerNormalization", "ReLU", "LeakyReLU"}


@dataclass(slots=True)
class Layer:
    """One layer of a configuration, inner ones of models and wrappers included. `trainable`: with all around it."""

    name: str
    kind: str
    config: dict[str, Json]
    build_shape: tuple[int, ...] | None
    trainable: bool


def judge(report: Report, config: Json, where: str, *, only_code: bool = False) -> None:
    """Name each object of a configuration that is not known to be harmless, with its path in the JSON.

    Args:
        only_code: name those that bring code alone; a SavedModel runs its graph in place of classes it doesn't know.
    """
    left = MOST_VALUES
    stack: list[tuple[Json, str]] = [(config, "")]
    while stack:
        value, path = stack.pop()
        left -= 1
        if left < 0:
            raise Exhausted(f"{where} has more than {MOST_VALUES} values.", fix="Refuse it; no model has.")
        if isinstance(value, list):
            stack.extend((inner, f"{path}[{number}]") for number, inner in reversed(list(enumerate(value))))
        elif isinstance(value, dict):
            if "class_name" in value:
                _judge_object(report, value, f"{where}: {path or '.'}", only_code)
            stack.extend((inner, f"{path}.{key[:60]}") for key, inner in reversed(value.items()))
            for key, inner in value.items():
                if not only_code and key.endswith("activation") and isinstance(inner, str) and inner not in ACTIVATIONS:
                    report.find(f"activation {inner}", f"{where}: {path}.{key[:60]}", "It is no activation of Keras.")


def _judge_object(report: Report, value: dict[str, Json], place: str, only_code: bool) -> None:
    name, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    inner = value.get("config")
    label = f"{module}.{name}" if module else str(name)
    if not isinstance(name, str) or name not in HARMLESS:
        why = CODE.get(name) if isinstance(name, str) else None
        if name == "function" and module in ("builtins", None) and isinstance(inner, str) and inner in FUNCTIONS:
            return
        if name in ("TFOpLambda", "SlicingOpLambda") and isinstance(inner, dict):
            function = inner.get("function")
            if isinstance(function, str) and _OPERATION.fullmatch(function):
                return
            label = f"{name} {function}"
        if only_code and why is None:
            return
        report.find(label, place, why or "It is none of Keras's own classes; loading it takes code from elsewhere.")
        return
    if only_code:
        return
    if module not in (None, "builtins") and not (
        isinstance(module, str) and _MODULES.fullmatch(module) and not _NEVER.search(module)
    ):
        report.find(label, place, "The class is looked up in a module that is not Keras's own.")
    if registered not in (None, name, f"keras>{name}", f"Custom>{name}") or registered == f"Custom>{name}":
        report.find(f"{label} registered as {registered}", place, "A registered class takes the place of Keras's own.")
    vocabulary = inner.get("vocabulary") if isinstance(inner, dict) else None
    if name in _LOOKUPS and isinstance(vocabulary, str):
        report.find(vocabulary, place, "The layer reads its vocabulary from a path or address when it is loaded.")


def layers_of(config: Json) -> list[Layer]:
    """All layers of a model's configuration, depth first, in order."""
    return list(_walk(config))


def _walk(top: Json) -> Iterator[Layer]:
    stack: list[tuple[Json, bool]] = [(top, True)]
    given = 0
    while stack:
        value, trainable = stack.pop()
        if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
            continue
        given += 1
        if given > MOST_LAYERS:
            raise Exhausted(f"A configuration has more than {MOST_LAYERS} layers.", fix="Refuse it; no model has.")
        config = value["config"]
        trainable = trainable and config.get("trainable") is not False
        kind = value.get("class_name")
        inner = config.get("layers")
        built = value.get("build_config")
        name = config.get("name", value.get("name"))
        if value is not top or not isinstance(inner, list):
            yield Layer(
                name if isinstance(name, str) else "",
                kind if isinstance(kind, str) else "",
                config,
                shape_of(built.get("input_shape")) if isinstance(built, dict) else None,
                trainable,
            )
        below = list(inner) if isinstance(inner, list) else []
        for key in ("layer", "backward_layer", "cell"):
            if isinstance(config.get(key), dict) and not (key == "backward_layer" and kind == "Bidirectional"):
                below.append(config[key])
        stack.extend((part, trainable) for part in reversed(below))


def shape_of(value: Json) -> tuple[int, ...] | None:
    """A shape as Keras writes it: a list with null for free axes."""
    if isinstance(value, dict) and value.get("class_name") == "__tuple__":
        value = value.get("items")
    if not isinstance(value, list) or len(value) > 32:
        return None
    if not all(size is None or (isinstance(size, int) and not isinstance(size, bool)) for size in value):
        return None
    return tuple(FREE if size is None else size for size in value)


def given_name(config: Json) -> str | None:
    """The name its maker gave the model; None for one Keras made up."""
    inner = config.get("config") if isinstance(config, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    return name[:200] if isinstance(name, str) and name and not _DEFAULT_NAME.fullmatch(name) else None


def inputs_of(config: Json, layers: list[Layer]) -> list[Port]:
    """The input layers of the outermost model; for a sequential one without any, what it was built for."""
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return []
    outer = {part.get("config", {}).get("name") for part in inner.get("layers") or [] if isinstance(part, dict)
             and isinstance(part.get("config"), dict)}  # fmt: skip
    ports = [
        Port(
            layer.name,
            _dtype(layer.config),
            shape_of(layer.config.get("batch_shape", layer.config.get("batch_input_shape"))),
        )
        for layer in layers
        if layer.kind == "InputLayer" and layer.name in outer
    ]
    if ports:
        return ports
    shape = shape_of(inner.get("build_input_shape")) or (
        shape_of(layers[0].config.get("batch_input_shape")) if layers else None
    )
    return [Port("input", _dtype(layers[0].config) if layers else None, shape)] if shape else []


def _declared(layer: Layer) -> tuple[int, ...] | None:
    return shape_of(layer.config.get("batch_shape") or layer.config.get("batch_input_shape"))


def outputs_of(config: Json, layers: list[Layer]) -> list[Port]:
    """The layers whose results are the model's, with shapes where they follow from one layer alone."""
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return []
    named = _names(inner.get("output_layers"))
    by_name = {layer.name: layer for layer in layers}
    if not named and layers:
        named = [layers[-1].name]
    places = {layer.name: place for place, layer in enumerate(layers)}
    return [
        Port(name, _dtype(by_name[name].config), _out_shape(layers, places[name])) for name in named if name in by_name
    ]


def _names(value: Json) -> list[str]:
    """`["a", 0, 0]`, `[["a", 0, 0], ...]` or a dict of such."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    if value and isinstance(value[0], str):
        return [value[0]]
    return [part[0] for part in value if isinstance(part, list) and part and isinstance(part[0], str)]


def _out_shape(layers: list[Layer], place: int) -> tuple[int, ...] | None:
    """The shape of what a layer gives: a dense one's from what it was built for, or from a layer before it that leaves
    one row for each sample."""
    layer = layers[place]
    units = layer.config.get("units")
    if layer.kind == "Dense" and isinstance(units, int):
        if layer.build_shape:
            return (*layer.build_shape[:-1], units)
        return (FREE, units) if _gives_rows(layers, place - 1) else None
    if layer.kind in _SAME_SHAPE:
        return layer.build_shape or (_out_shape(layers, place - 1) if 0 < place < 900 else None)
    return None


def _gives_rows(layers: list[Layer], place: int) -> bool:
    while place >= 0 and layers[place].kind in _SAME_SHAPE | {"Dense"}:
        place -= 1
    if place < 0:
        return False
    layer = layers[place]
    if layer.kind == "InputLayer":
        return len(_declared(layer) or ()) == 2
    if layer.kind in ("LSTM", "GRU", "SimpleRNN"):
        return layer.config.get("return_sequences") is False
    return layer.kind == "Flatten" or layer.kind.startswith("Global")


def _dtype(config: dict[str, Json]) -> str | None:
    dtype = config.get("dtype")
    if isinstance(dtype, dict):
        inner = dtype.get("config")
        dtype = inner.get("name") if isinstance(inner, dict) else None
    return dtype if isinstance(dtype, str) else None


def mix_of(layers: list[Layer], inputs: list[Port], outputs: list[Port]) -> Mix:
    """The layers in the words of `naming.graphs`."""
    mix = Mix(inputs=inputs, outputs=outputs, names=[layer.name for layer in layers][:5000])
    for layer in layers:
        if kind := _KINDS.get(layer.kind):
            mix.kinds[kind] += 1
    if layers:
        last = layers[-1].config.get("activation")
        mix.last = last if isinstance(last, str) else {"Softmax": "softmax", "Dense": "linear"}.get(layers[-1].kind)
    return mix
