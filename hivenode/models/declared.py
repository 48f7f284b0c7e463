"""From a job's declaration of its model to layers and costs, without any framework."""

from __future__ import annotations

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models import compositions, hub, zoo
from hivenode.models.keras_configs import graph
from hivenode.models.layers import Layer, LayerCost, ModelCost, cost, line
from hivenode.spec.model import ModelSpec
from hivenode.spec.shapes import spelled

GUESSED_PARAMETERS = 1_000_000
"""Of a model that cannot be looked into and does not say."""


def layers_of(model: ModelSpec, info: DataInfo) -> tuple[Layer, ...] | None:
    """The line of layers of a `zoo:` or `layers:` model; None for other kinds, which only their framework can build.

    Raises:
        InvalidInput: no such model, layer, parameter or value; or they do not fit the data.
    """
    if model.kind == "zoo":
        layers = zoo.declare(model.name, model.params, info)
    elif model.kind == "layers":
        layers = line(model.layers, info.input_shape, info.outputs)
    else:
        return None
    _fits(model, info, layers)
    return layers


def describe(model: ModelSpec, info: DataInfo) -> ModelCost:
    """Parameters, and the costs of one sample. Exact for `zoo:` and `layers:`; by formula for `keras:`, and for `hf:`
    with a configuration; for others what the job or a node says. Errors as for `layers_of`."""
    layers = layers_of(model, info)
    if layers is not None:
        return cost(model.source, layers)
    if model.kind == "hf" and model.config:
        return hub.describe(model, info)
    if model.source == "keras:config":
        return graph.describe(model.source, model.config, info)
    if model.kind == "sklearn":
        return compositions.describe(model, info)
    parameters = model.parameters or GUESSED_PARAMETERS
    flops = 2 * parameters * (info.features if info.vocabulary else 1)
    kept = 16 * info.sample_bytes
    return ModelCost(model.source, parameters, flops, kept, (LayerCost("whole", parameters, flops, kept),))


def _fits(model: ModelSpec, info: DataInfo, layers: tuple[Layer, ...]) -> None:
    if info.task == "text_to_text":
        raise InvalidInput(
            f"{model.source} does not write a text upon another.", fix='Use hf:config with model_type = "t5".'
        )
    embeds = layers[0].kind == "embedding"
    if embeds != bool(info.vocabulary):
        raise InvalidInput(
            f"{model.source} {'takes text' if embeds else 'takes numbers'}, and {info.source} "
            f"{'is text' if info.vocabulary else f'has {spelled(info.input_shape)} numbers a sample'}.",
            fix="Begin with an embedding for text and with another layer for numbers.",
        )
    if embeds and layers[0].whole("vocabulary") < info.vocabulary:
        raise InvalidInput(
            f"The embedding of {model.source} has {layers[0].whole('vocabulary')} entries; "
            f"{info.source} has {info.vocabulary} tokens.",
            fix=f"Set vocabulary = {info.vocabulary}.",
        )
    expected = (*info.input_shape, info.outputs) if info.task == "language" else (info.outputs,)
    if layers[-1].output != expected:
        raise InvalidInput(
            f"{model.source} puts out {spelled(layers[-1].output)}; {info.source} needs {spelled(expected)}.",
            fix="End with a dense layer without outputs, after an average, last or flatten layer where needed.",
        )
