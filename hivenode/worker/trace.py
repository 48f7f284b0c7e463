"""A tracing assignment: build a model that is known here, run it on tensors without storage, say what it took."""

from __future__ import annotations

import json
import os

import msgspec
import torch
import torch._dynamo  # now: it makes a folder for itself, which the walls will not let it

from hivenode.data.info import DataInfo
from hivenode.errors import Exhausted, HiveError, InvalidInput
from hivenode.models.declared import layers_of
from hivenode.net.local import Trace, Traced
from hivenode.spec.model import ModelSpec
from hivenode.spec.tracing import TraceNumbers, TraceOrder
from hivenode.training.frameworks import transformers_models
from hivenode.training.frameworks.torch_models import build
from hivenode.training.frameworks.torch_tracing import Feed, Make, trace


def answer(message: Trace) -> Traced:
    """Raises InvalidInput: the model cannot be built or run without its file, and why."""
    try:
        return Traced(_traced(message.order))
    except (HiveError, MemoryError):
        raise
    except RecursionError:
        raise Exhausted("The model nests too deeply to be traced.", fix="Use the rules.") from None
    except Exception as error:  # the library's own code, on a configuration from elsewhere
        said = str(error).strip().splitlines()
        raise InvalidInput(
            f"It cannot be run without its values: {type(error).__name__}: {said[0] if said else ''}"[:400],
            fix="Nothing to do; the rules say what they can.",
        ) from error


def _traced(order: TraceOrder) -> TraceNumbers:
    make, feed = _declared(order) if order.kind == "declared" else _transformers(order)
    if not order.train or order.train_dtype == order.dtype:
        return trace(make, feed, dtype=order.dtype, train=order.train)
    inference = trace(make, feed, dtype=order.dtype, train=False)
    return msgspec.structs.replace(
        trace(make, feed, dtype=order.train_dtype),
        weight_bytes=inference.weight_bytes,
        forward_bytes=inference.forward_bytes,
        forward_resident_bytes=inference.forward_resident_bytes,
    )


def _declared(order: TraceOrder) -> tuple[Make, Feed]:
    info = msgspec.json.decode(order.info, type=DataInfo)
    layers = layers_of(ModelSpec.model_validate_json(order.config), info)
    if layers is None:
        raise InvalidInput(f"{order.source} is no line of layers.", fix="Nothing to do; the rules say what they can.")

    def feed(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        shape = (order.batch, *info.input_shape)
        return {"input": torch.zeros(shape, dtype=torch.int64) if info.vocabulary else torch.randn(shape)}

    return lambda: build(layers), feed


def _transformers(order: TraceOrder) -> tuple[Make, Feed]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the library is imported: a configuration may name what it would fetch
    config = transformers_models.configuration(json.loads(order.config))
    return (
        lambda: transformers_models.module(order.source, config),
        lambda module: transformers_models.inputs(module, config, order.batch, order.sequence),
    )
