"""From the declaration of a model to a network of keras."""

from __future__ import annotations

from collections.abc import Mapping

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.declared import layers_of
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import Precision
from hivenode.training.frameworks.given_weights import overlay
from hivenode.training.frameworks.keras_configs import from_config
from hivenode.training.frameworks.keras_framework import KerasModel, from_layers, keras
from hivenode.training.frameworks.making import Made
from hivenode.training.frameworks.model import views

_POLICIES: Mapping[Precision, str] = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def make(model: ModelSpec, info: DataInfo, seed: int, resources: Resources, threads: int, precision: Precision) -> Made:
    """See `making.make`."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    keras.config.set_dtype_policy(_POLICIES[precision])
    layers = layers_of(model, info)
    if layers is not None:
        built = from_layers(layers, seed)
    elif model.source == "keras:config":
        built = from_config(model.config, info, seed)
    else:
        raise InvalidInput(
            f"keras cannot build {model.source}.", fix='Use framework = "torch", or a zoo:, layers: or keras: model.'
        )
    made = KerasModel(built, info.task)
    afresh: tuple[str, ...] = ()
    if model.weights:
        places = views(made.weights, made.layout.parameters) | views(made.buffers, made.layout.buffers)
        afresh = overlay(places | dict(made.constants), model, resources, "np")
    return Made(made, made.vector, model.model_copy(update={"weights": ""}), afresh)
