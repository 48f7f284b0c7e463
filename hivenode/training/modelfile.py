"""The file a finished job leaves: weights and all that is needed to use them. Nothing in it tells one member of the
attempt from another, so that every member writes the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from pydantic import ValidationError

from hivenode.data import text
from hivenode.data.info import DataInfo
from hivenode.data.loading import AS_THEY_ARE, Normalisation
from hivenode.errors import Corrupted, HiveError
from hivenode.spec.model import ModelSpec
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Floats, Layout, Model, Vector, views

FORMAT = "hivenode-model-2"


@dataclass(frozen=True)
class ModelCard:
    """What a model is.

    Attributes:
        model: a declaration from which it can be built on any node.
        framework: that which builds it.
        targets: scaling of the values it predicts.
        tokenizer: as `data.text.load` takes it; "" where there is no text.
        accuracy: on the held-out part, if there was one.
    """

    framework: str
    model: ModelSpec
    info: DataInfo
    normalisation: Normalisation
    targets: Normalisation = AS_THEY_ARE
    tokenizer: str = ""
    accuracy: float | None = None


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


def write(path: Path, card: ModelCard, model: Kept) -> None:
    """Raises OSError when it cannot be written."""
    metadata = {
        "format": FORMAT,
        "framework": card.framework,
        "model": _json(card.model.model_dump(mode="json", exclude_defaults=True)),
        "data": _json(msgspec.to_builtins(card.info)),
        "normalisation": _json(msgspec.to_builtins(card.normalisation)),
        "targets": _json(msgspec.to_builtins(card.targets)),
        "tokenizer": card.tokenizer,
        "accuracy": _json(card.accuracy),
    }
    held = views(model.weights, model.layout.parameters) | views(model.buffers, model.layout.buffers)
    tensorfiles.save(path, held | dict(model.constants), metadata)


def read(path: Path, limit_bytes: int) -> tuple[ModelCard, dict[str, Floats]]:
    """The card, and every tensor by name; whoever builds the model checks that they are those of its architecture.

    Raises:
        Corrupted: it is not a model file.
    """
    tensors, metadata = tensorfiles.load(path, limit_bytes)
    return card_of(path, metadata), tensors


def card_of(path: Path, metadata: Mapping[str, str]) -> ModelCard:
    """Raises Corrupted when the metadata are not those of a model."""
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format'][:64]!r}")
        card = ModelCard(
            framework=metadata["framework"],
            model=ModelSpec.model_validate_json(metadata["model"]),
            info=msgspec.json.decode(metadata["data"], type=DataInfo),
            normalisation=_scaling(metadata["normalisation"]),
            targets=_scaling(metadata["targets"]),
            tokenizer=metadata["tokenizer"],
            accuracy=msgspec.json.decode(metadata["accuracy"], type=float | None),
        )
        info = card.info
        if info.labels and len(info.labels) != info.outputs:
            raise ValueError(f"it has {info.outputs} outputs and {len(info.labels)} labels")
        if len(card.normalisation.mean) not in (0, info.features) or len(card.targets.mean) not in (0, info.outputs):
            raise ValueError("its normalisation does not fit its inputs")
        if card.tokenizer:
            text.load(card.tokenizer)
        return card
    except (KeyError, ValueError, ValidationError, HiveError) as error:  # msgspec's errors are ValueErrors
        raise Corrupted(f"{path.name} is not a usable model file: {error}.", fix="Train the model again.") from error


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


def _scaling(encoded: str) -> Normalisation:
    made = msgspec.json.decode(encoded, type=Normalisation)
    if len(made.mean) != len(made.scale):
        raise ValueError("its normalisation does not fit its inputs")
    if not all(math.isfinite(mean) for mean in made.mean) or not all(0 < scale < math.inf for scale in made.scale):
        raise ValueError("its normalisation cannot be applied")
    return made


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
