"""Networks from configurations of keras: built by its `from_config`, of classes that were allowed before.

A tensor is called by the names of its layers and its own: `dense/kernel`, `encoder/dense/kernel` within a model called
encoder. First values are spread as the configuration's initialisers say, and are our own numbers: the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.keras_configs.graph import Fitted, fitted, last_channels
from hivenode.training.frameworks.keras_framework import Built, Place, keras, plain
from hivenode.training.frameworks.model import Floats, Layout, Vector, flatten, uniform_values

_TRUNCATED = 0.87962566
"""Deviation of a normal distribution cut at twice its deviation, by that."""


def from_config(config: dict[str, Any], info: DataInfo, seed: int) -> Built:
    """Raises InvalidInput: it is not allowed, does not fit the data, or this version of keras does not build it."""
    fit = fitted(config, info)
    try:
        inner = keras.saving.deserialize_keras_object(fit.config, safe_mode=True)
        network = _around(inner, fit, info)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(
            f"keras {keras.__version__} does not build the configuration: {_why(error)}",
            fix="Build the model with this version of Keras, and take model.to_json() from there.",
        ) from error
    trained = {id(variable) for variable in inner.trainable_variables}
    parameters, running, fixed = dict[str, Floats](), dict[str, Floats](), dict[str, Floats]()
    kept: tuple[list[Place], list[Place], list[Place]] = ([], [], [])
    for number, (name, variable, owner) in enumerate(_variables(inner, "")):
        which = 0 if id(variable) in trained else 1 if _is_statistic(owner) else 2
        values = (parameters, running, fixed)[which]
        if name in parameters.keys() | running.keys() | fixed.keys():
            raise InvalidInput(
                f"Two tensors of the Keras model are called {name}.", fix="Give each layer its own name."
            )
        values[name] = _first(variable, owner, seed, number)
        kept[which].append(plain(variable, name))
    layout = Layout({n: v.shape for n, v in parameters.items()}, {n: v.shape for n, v in running.items()})
    return Built(
        network, layout, kept[0], flatten(parameters, layout.parameters),
        kept[1], flatten(running, layout.buffers), kept[2], fixed,
    )  # fmt: skip


def _why(error: Exception) -> str:
    """Keras repeats the whole configuration before it says what is wrong."""
    return " ".join(str(error).split()).rpartition("Exception encountered: ")[2][:300]


def _around(inner: Any, fit: Fitted, info: DataInfo) -> Any:
    """The model between samples and outputs as hivenode has them: channels first, pictures flat where they are made."""
    natural = last_channels(info.input_shape)
    entered = x = keras.Input(info.input_shape, dtype="int32" if info.vocabulary else "float32")
    if len(natural) == 3 and len(fit.takes) > 1:
        x = keras.layers.Permute((2, 3, 1))(x)
    if x.shape[1:] != fit.takes:
        x = keras.layers.Reshape(fit.takes)(x)
    x = inner(x)
    if info.task == "reconstruction" and fit.gives != (info.outputs,):
        x = keras.layers.Reshape(natural)(x)
        if len(natural) == 3:
            x = keras.layers.Permute((3, 1, 2))(x)
        x = keras.layers.Flatten()(x)
    return keras.Model(entered, x)


def _variables(model: Any, within: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, variable and the layer that made it, in order of layers."""
    for layer in model.layers:
        name = within + layer.name
        if isinstance(layer, keras.Model):
            yield from _variables(layer, f"{name}/")
            continue
        parts = [layer, *layer._flatten_layers(include_self=False)]  # those within come after those around them
        owners = {id(variable): part for part in parts for variable in part.weights}
        for variable in layer.weights:
            own = f"/{variable.path}".partition(f"/{layer.name}/")[2] or variable.path
            yield f"{name}/{own}", variable, owners[id(variable)]


def _is_statistic(owner: Any) -> bool:
    return isinstance(owner, keras.layers.BatchNormalization) and bool(owner.trainable)


def _first(variable: Any, owner: Any, seed: int, number: int) -> Floats:
    """What a tensor begins with."""
    begun = np.array(keras.ops.convert_to_numpy(variable.value), np.float32)
    names = (variable.name, variable.name.removesuffix("_kernel"), "depthwise")
    initializer = next((one for name in names if (one := getattr(owner, f"{name}_initializer", None))), None)
    spread = _spread(initializer, begun.shape)
    if spread is None:
        if initializer is None and begun.min() != begun.max():
            raise InvalidInput(
                f"How {variable.path} of a {type(owner).__name__} begins is not known here.", fix="Use another layer."
            )
        return begun
    mean, variance = spread
    values: Vector = uniform_values(begun.size, variance, seed, number)
    return (values + np.float32(mean)).reshape(begun.shape)


def _spread(initializer: Any, shape: tuple[int, ...]) -> tuple[float, float] | None:
    """Mean and variance of random first values; None for those that are not."""
    known = keras.initializers
    if isinstance(initializer, known.VarianceScaling):
        field = prod(shape[:-2])
        taken, given = (shape[-2] * field, shape[-1] * field) if len(shape) > 1 else (shape[0], shape[0])
        count = {"fan_in": taken, "fan_out": given}.get(initializer.mode, (taken + given) / 2)
        return 0.0, initializer.scale / max(1.0, count)
    if isinstance(initializer, known.RandomUniform):
        least, most = initializer.minval, initializer.maxval
        return (least + most) / 2, (most - least) ** 2 / 12
    if isinstance(initializer, known.RandomNormal):
        return initializer.mean, initializer.stddev**2
    if isinstance(initializer, known.TruncatedNormal):
        return initializer.mean, (_TRUNCATED * initializer.stddev) ** 2
    if isinstance(initializer, known.Orthogonal):
        return 0.0, initializer.gain**2 / max(prod(shape[:-1]), shape[-1])
    return None
