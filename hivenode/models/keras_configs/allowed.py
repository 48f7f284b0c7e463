"""A Keras configuration brought to the part of it that is taken: layers of Keras's own and plain values.

What comes out names no module, class or function but those listed here, holds no setting that changes nothing, and is
the same again when it goes through once more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import NoReturn

from hivenode.errors import InvalidInput
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.naming.keras_names import ACTIVATIONS, CODE
from hivenode.models.layers import nearest

LAYERS = frozenset((
    "Activation", "Add", "AlphaDropout", "Average", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
    "BatchNormalization", "Bidirectional", "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose",
    "Conv3D", "Conv3DTranspose", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D",
    "DepthwiseConv2D", "Dropout", "ELU", "Embedding", "Flatten", "GRU", "GaussianDropout", "GaussianNoise",
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GroupNormalization", "Identity", "InputLayer", "LSTM",
    "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum",
    "Minimum", "MultiHeadAttention", "Multiply", "PReLU", "Permute", "RMSNormalization", "ReLU", "RepeatVector",
    "Rescaling", "Reshape", "SeparableConv1D", "SeparableConv2D", "SimpleRNN", "Softmax", "SpatialDropout1D",
    "SpatialDropout2D", "SpatialDropout3D", "Subtract", "TimeDistributed", "UnitNormalization", "UpSampling1D",
    "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
))  # fmt: skip
MODELS = {"Sequential": "keras", "Functional": "keras.src.models.functional"}
"""Models of layers, and where Keras has them."""
SPREADS = {
    "VarianceScaling": "VarianceScaling", "GlorotNormal": "GlorotNormal", "GlorotUniform": "GlorotUniform",
    "HeNormal": "HeNormal", "HeUniform": "HeUniform", "LecunNormal": "LecunNormal", "LecunUniform": "LecunUniform",
    "RandomNormal": "RandomNormal", "RandomUniform": "RandomUniform", "TruncatedNormal": "TruncatedNormal",
    "Orthogonal": "Orthogonal", "OrthogonalInitializer": "Orthogonal", "Zeros": "Zeros", "Ones": "Ones",
    "Constant": "Constant", "Identity": "Identity", "IdentityInitializer": "Identity",
}  # fmt: skip
PENALTIES = {"L1": "L1", "L2": "L2", "L1L2": "L1L2"}
MOST_LAYERS = 512
MOST_USES = 2048
"""Of layers, in a graph."""
DEEPEST = 6
"""Models and wrappers within each other."""
LARGEST = 1 << 20
"""Of any whole number: units, filters, words, a side."""
_MODULE = re.compile(r"keras(\.[a-z_0-9]+)*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")
_IGNORED = frozenset(("dtype", "seed", "name", "quantization_config", "autocast"))
_NEVER = frozenset(("cell", "lora_rank"))
_NOT_HERE = (
    ("stateful", True), ("return_state", True), ("data_format", "channels_first"), ("renorm", True),
    ("synchronized", True), ("use_gate", True),
)  # fmt: skip
_WRAPPERS = ("Bidirectional", "TimeDistributed")
_SIMPLE = "Give the configuration that model.to_json() of Keras 3 writes."


def examined(config: Json) -> dict[str, Json]:
    """The whole model.

    Args:
        config: as `model.to_json()` or the config.json of a `.keras` file has it.

    Raises:
        InvalidInput: it is no model of allowed layers; the sentence names the layer.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise InvalidInput("The Keras configuration has no class_name and config.", fix=_SIMPLE)
    kind = config.get("class_name")
    if not isinstance(kind, str) or kind not in MODELS:
        raise InvalidInput(
            f"The Keras configuration is of a {str(kind)[:64]}, which is code of its author.",
            fix="Build the model as a Sequential or functional one: keras.Sequential([...]) or keras.Model(inputs, x).",
        )
    return _Examiner().model(config, "model", 0)


def _wrong(layer: str, what: str, fix: str) -> NoReturn:
    raise InvalidInput(f"Layer {layer[:100]} of the Keras configuration {what}.", fix=fix)


class _Examiner:
    def __init__(self) -> None:
        self._layers = 0
        self._uses = 0

    def model(self, given: Mapping[str, Json], usual: str, depth: int) -> dict[str, Json]:
        kind, config = str(given["class_name"]), given.get("config") or {}
        name = self._named(given, usual)
        self._own(name, given)
        layers = config.get("layers")
        if not isinstance(layers, list) or not layers:
            _wrong(name, "has no list of layers", _SIMPLE)
        within = [self.layer(layer, f"layer{n}", depth + 1) for n, layer in enumerate(layers)]
        made: dict[str, Json] = {"name": name, "layers": within}
        if config.get("trainable") is False:
            made["trainable"] = False
        names = [layer["config"]["name"] for layer in within]
        twice = next((one for one in names if names.count(one) > 1), None)
        if twice is not None:
            _wrong(twice, "is there twice", "Give each layer a name of its own.")
        if kind == "Functional":
            made["input_layers"] = self._end(name, config.get("input_layers"), "input")
            made["output_layers"] = self._end(name, config.get("output_layers"), "output")
        elif within[0]["class_name"] != "InputLayer":
            built = config.get("build_input_shape")
            if built is not None:
                shape = self._values(name, "build_input_shape", built)
                first = {"batch_shape": shape, "name": "input"}
                within.insert(0, {"class_name": "InputLayer", "module": "keras.layers", "config": first})
        return {"class_name": kind, "module": MODELS[kind], "config": made}

    def layer(self, given: Json, usual: str, depth: int) -> dict[str, Json]:
        if not isinstance(given, dict) or not isinstance(given.get("config", {}), dict):
            _wrong(usual, "is no object with class_name and config", _SIMPLE)
        self._layers += 1
        if self._layers > MOST_LAYERS:
            raise InvalidInput(
                f"The Keras configuration has more than {MOST_LAYERS} layers.", fix="Use a smaller model."
            )
        name, kind = self._named(given, usual), given.get("class_name")
        if depth > DEEPEST:
            _wrong(name, f"is more than {DEEPEST} models or wrappers deep", "Put its layers into the model itself.")
        if isinstance(kind, str) and kind in MODELS:
            made = self.model(given, usual, depth)
        else:
            self._own(name, given)
            if not isinstance(kind, str) or kind not in LAYERS:
                why = CODE.get(kind) if isinstance(kind, str) else None
                fix = "Replace it by layers of Keras's own." if why else nearest(str(kind)[:64], sorted(LAYERS))
                _wrong(name, f"is a {str(kind)[:64]}: {why[:-1] if why else 'no layer that is built here'}", fix)
            settings = self._settings(name, kind, given.get("config") or {}, depth)
            made = {"class_name": kind, "module": "keras.layers", "config": {"name": name, **settings}}
        if "inbound_nodes" in given:
            nodes = given["inbound_nodes"]
            made |= {"name": name, "inbound_nodes": [self._use(name, node) for node in self._list(name, nodes)]}
        return made

    def _named(self, given: Mapping[str, Json], usual: str) -> str:
        name = given.get("config", {}).get("name") or given.get("name") or usual
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            _wrong(str(name)[:100], "has a name that cannot be used", "Use letters, digits, _, . and -.")
        return name

    def _own(self, name: str, given: Mapping[str, Json]) -> None:
        """That it is looked up among Keras's own."""
        module, registered = given.get("module"), given.get("registered_name")
        if module is not None and (not isinstance(module, str) or not _MODULE.fullmatch(module)):
            fix = "Use layers of Keras's own; a model with code of yours is for python:MODULE:FACTORY."
            _wrong(name, f"is of module {str(module)[:100]}, which is not Keras's own", fix)
        if registered not in (None, given.get("class_name")):
            _wrong(name, f"is registered as {str(registered)[:100]}, which is code", "Use layers of Keras's own.")

    def _settings(self, name: str, kind: str, config: Mapping[str, Json], depth: int) -> dict[str, Json]:
        made: dict[str, Json] = {}
        self._policy(name, config.get("dtype"))
        for key, value in config.items():
            if key in _IGNORED or (value is None and key != "activation") or (key == "trainable" and value is True):
                continue
            if key == "layer" and kind in _WRAPPERS:
                made[key] = self._wrapped(name, kind, value, depth)
            elif key == "backward_layer":
                made[key] = self._mirrored(name, kind, config.get("layer"), value, depth)
            elif key.endswith("activation"):
                made[key] = self._activation(name, key, value)
            elif key.endswith("initializer"):
                made[key] = self._object(name, key, value, SPREADS, "keras.initializers")
            elif key.endswith("regularizer"):
                made[key] = self._object(name, key, value, PENALTIES, "keras.regularizers")
            elif key.endswith("constraint"):
                _wrong(name, f"has a {key}, which is not kept here", f"Set {key} to None.")
            elif key in _NEVER or (key, value) in _NOT_HERE:
                _wrong(name, f"has {key} = {str(value)[:64]}, which is not built here", "Leave it out.")
            else:
                made[key] = self._values(name, key, value)
        if kind == "InputLayer":
            return self._input(name, made)
        if kind in _WRAPPERS and "layer" not in made:
            _wrong(name, "wraps no layer", _SIMPLE)
        return made

    def _input(self, name: str, settings: Mapping[str, Json]) -> dict[str, Json]:
        shape = settings.get("batch_shape")
        if shape is None and isinstance(settings.get("shape"), list):
            shape = [None, *settings["shape"]]
        if not isinstance(shape, list) or not 2 <= len(shape) <= 5:
            _wrong(name, "has no batch_shape of 2 to 5 axes", "Give keras.Input the shape of one sample.")
        if settings.get("sparse") or settings.get("ragged"):
            _wrong(name, "is sparse or ragged", "Use a dense input.")
        if not all(size is None or (isinstance(size, int) and size > 0) for size in shape[1:]):
            _wrong(name, f"has the batch_shape {shape}", "Give sizes above 0, or None.")
        return {"batch_shape": [None, *shape[1:]]}

    def _wrapped(self, name: str, kind: str, value: Json, depth: int) -> dict[str, Json]:
        inner = self.layer(value, f"{name}_inner", depth + 1)
        takes = ("LSTM", "GRU", "SimpleRNN") if kind == "Bidirectional" else LAYERS - {"InputLayer", *_WRAPPERS}
        if inner["class_name"] not in takes:
            _wrong(name, f"wraps a {inner['class_name']}, which is not built here", "Wrap a layer of one input.")
        return inner

    def _mirrored(self, name: str, kind: str, layer: Json, backward: Json, depth: int) -> dict[str, Json]:
        """The layer of the other direction, which Keras states, too."""
        made = self._wrapped(name, kind, backward, depth)
        pair = [self._wrapped(name, kind, layer, depth), made]
        own = ("name", "go_backwards")
        alike = [(i["class_name"], {k: v for k, v in i["config"].items() if k not in own}) for i in pair]
        if kind != "Bidirectional" or alike[0] != alike[1]:
            _wrong(name, "has a backward_layer unlike its layer, which is not built here", "Leave it out.")
        return made

    def _policy(self, name: str, dtype: Json) -> None:
        """Everything computes in what `training.precision` says."""
        if isinstance(dtype, dict):
            dtype = (dtype.get("config") or {}).get("name") if isinstance(dtype.get("config"), dict) else "?"
        if dtype not in (None, "float32", "mixed_bfloat16", "int32", "int64", "uint8", "bool"):
            _wrong(
                name, f"is to compute in {str(dtype)[:64]}", "Build it in float32; training.precision says the rest."
            )

    def _activation(self, name: str, key: str, value: Json) -> str:
        if value is None:
            return "linear"
        if isinstance(value, str) and value in ACTIVATIONS:
            return value
        if isinstance(value, dict):
            fix = "Use an activation of Keras by its name, or put its layer behind this one."
            _wrong(name, f"has an object ({str(value.get('class_name'))[:64]}) as {key}", fix)
        _wrong(
            name, f"has the {key} {str(value)[:64]!r}, which is not Keras's own", nearest(str(value), [*ACTIVATIONS])
        )

    def _object(self, name: str, key: str, value: Json, known: Mapping[str, str], module: str) -> Json:
        kind, config = value, None
        if isinstance(value, dict):
            self._own(name, value)
            kind, config = value.get("class_name"), value.get("config")
        spelled = known.get("".join(part[:1].upper() + part[1:] for part in str(kind).split("_")))
        if spelled is None:
            _wrong(name, f"has the {key} {str(kind)[:64]}, which is not taken here", f"Use {', '.join(known)}.")
        if not isinstance(config, dict):
            config = {}
        values = {k: self._values(name, key, v) for k, v in config.items() if k not in _IGNORED and v is not None}
        return {"class_name": spelled, "module": module, "config": values} if values else spelled

    def _values(self, name: str, key: str, value: Json, depth: int = 0) -> Json:
        """Plain values alone, of sizes that a model can have."""
        if isinstance(value, dict) and value.get("class_name") == "__tuple__":
            value = value.get("items")
        if isinstance(value, list) and depth < 4 and len(value) <= 64:
            return [self._values(name, key, inner, depth + 1) for inner in value]
        if isinstance(value, int) and abs(value) > LARGEST:
            _wrong(name, f"has {key} = {value}", f"Give at most {LARGEST}.")
        plain = value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value))
        if plain or (isinstance(value, str) and len(value) <= 200):
            return value
        _wrong(name, f"has a {key[:64]} that is no plain value", "Use numbers, texts and lists of numbers.")

    def _list(self, name: str, value: Json) -> list[Json]:
        if not isinstance(value, list) or self._uses + len(value) > MOST_USES:
            _wrong(name, f"has inbound_nodes that are no list, or too many (over {MOST_USES} in all)", _SIMPLE)
        self._uses += len(value)
        return value

    def _use(self, name: str, node: Json) -> dict[str, Json]:
        """One use of a layer: the tensors that it takes, in Keras 3's form."""
        if not isinstance(node, dict) or not isinstance(node.get("args"), list):
            _wrong(
                name, "is in the form of Keras 2", "Load the model with Keras 3, and take model.to_json() from there."
            )
        args = [self._taken(name, part) for part in node["args"]]
        kwargs = {}
        given = node.get("kwargs") or {}
        for key, value in given.items() if isinstance(given, dict) else ():
            if value is None or (key in ("training", "mask", "return_attention_scores") and not value):
                continue
            if isinstance(value, bool) and key == "use_causal_mask":
                kwargs[key] = value
            elif key in ("query", "key", "value", "inputs"):
                kwargs[key] = self._taken(name, value)
            else:
                _wrong(
                    name, f"is called with {str(key)[:64]}, which is not built here", "Call it with its inputs alone."
                )
        return {"args": args, "kwargs": kwargs}

    def _taken(self, name: str, part: Json) -> Json:
        if isinstance(part, list) and len(part) <= 64:
            return [self._taken(name, inner) for inner in part if not isinstance(inner, list)]
        if isinstance(part, dict) and part.get("class_name") == "__keras_tensor__":
            told = part.get("config")
            if isinstance(told, dict) and _history(history := told.get("keras_history")):
                shape = self._values(name, "shape", told.get("shape"))
                config = {"shape": shape, "dtype": "float32", "keras_history": history}
                return {"class_name": "__keras_tensor__", "config": config}
        _wrong(name, "takes something else than the first output of a layer", "Connect layers by their outputs alone.")

    def _end(self, name: str, value: Json, which: str) -> list[Json]:
        """The one input or output of a functional model: `["x", 0, 0]`, in a list or not."""
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        if not _history(value):
            _wrong(name, f"has not one {which}", f"Use a model with one {which}.")
        return list(value)


def _history(value: Json) -> bool:
    """`[layer, use, output]`, of which layers here have one."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(number, int) and 0 <= number < MOST_USES for number in value[1:])
        and value[2] == 0
    )
