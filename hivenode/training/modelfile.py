"""The file a finished job leaves: weights and all that is needed to use them. Nothing in it tells one member of the
attempt from another, so that every member writes the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from hivenode.data.dataset import Dataset
from hivenode.errors import Corrupted
from hivenode.models.card import FORMAT, ModelCard, card_of
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Floats, Layout, Model, Vector, views


class Kept(Protocol):
    """What a model file is made of."""

    @property
    def layout(self) -> Layout: ...

    @property
    def weights(self) -> Vector: ...

    @property
    def buffers(self) -> Vector: ...

    @property
    def constants(self) -> Mapping[str, Floats]: ...


def card(spec: JobSpec, model: ModelSpec, data: Dataset) -> ModelCard:
    """Of a job's model.

    Args:
        model: what it can be built from again on any node.
    """
    return ModelCard(
        framework=spec.runtime,
        model=model,
        info=data.info,
        normalisation=data.normalisation,
        targets=data.targets,
        tokenizer=data.tokenizer,
    )


def write(path: Path, card: ModelCard, model: Kept) -> None:
    """Raises OSError when it cannot be written."""
    held = views(model.weights, model.layout.parameters) | views(model.buffers, model.layout.buffers)
    tensorfiles.save(path, held | dict(model.constants), metadata(card))


def metadata(card: ModelCard) -> dict[str, str]:
    """What a model file says beside its tensors."""
    return {
        "format": FORMAT,
        "framework": card.framework,
        "model": _json(card.model.model_dump(mode="json", exclude_defaults=True)),
        "data": _json(msgspec.to_builtins(card.info)),
        "normalisation": _json(msgspec.to_builtins(card.normalisation)),
        "targets": _json(msgspec.to_builtins(card.targets)),
        "tokenizer": card.tokenizer,
        "accuracy": _json(card.accuracy),
    }


def read(path: Path, limit_bytes: int) -> tuple[ModelCard, dict[str, Floats]]:
    """The card, and every tensor by name; whoever builds the model checks that they are those of its architecture.

    Raises:
        Corrupted: it is not a model file.
    """
    tensors, said = tensorfiles.load(path, limit_bytes)
    return card_of(path, said), tensors


def fill(path: Path, model: Model, tensors: Mapping[str, Floats]) -> None:
    """Put the tensors of a file in their places. Raises Corrupted when they are not exactly the model's."""
    places = views(model.weights, model.layout.parameters) | views(model.buffers, model.layout.buffers)
    places |= model.constants
    if {name: tensor.shape for name, tensor in tensors.items()} != {n: place.shape for n, place in places.items()}:
        raise Corrupted(
            f"{path.name} is not a usable model file: its tensors are not those of its architecture.",
            fix="Train the model again.",
        )
    for name, place in places.items():
        np.copyto(place, tensors[name])


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
