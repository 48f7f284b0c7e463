"""The file a finished job leaves: weights and all that is needed to use them. Nothing in it tells one member of the
attempt from another, so that every member writes the same bytes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from math import prod
from pathlib import Path

import msgspec
import numpy as np

from hivenode.data.loading import Dataset, Normalisation
from hivenode.errors import Corrupted
from hivenode.models.zoo import Layer, declare, tensor_shapes
from hivenode.spec.job import ModelSpec, Scalar
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Vector, views

FORMAT = "hivenode-model-1"


@dataclass(frozen=True)
class ModelCard:
    """What a model is.

    Attributes:
        labels: name of each output.
        accuracy: on the held-out part, if there was one.
    """

    source: str
    params: dict[str, Scalar]
    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...]
    normalisation: Normalisation
    accuracy: float | None = None

    def layers(self) -> tuple[Layer, ...]:
        """Its declaration; raises InvalidInput when there is no such architecture here."""
        return declare(self.source, self.params, self.input_shape, self.classes)


def card(spec: ModelSpec, data: Dataset) -> ModelCard:
    """Of a declared model on that data."""
    info = data.info
    return ModelCard(
        source=spec.source,
        params=dict(spec.params),
        input_shape=info.input_shape,
        classes=info.classes,
        labels=info.labels,
        normalisation=data.normalisation,
    )


def write(path: Path, card: ModelCard, weights: Vector) -> None:
    """Raises OSError when it cannot be written."""
    tensorfiles.save(path, views(weights, card.layers()), metadata(card))


def metadata(card: ModelCard) -> dict[str, str]:
    """What a model file says beside its tensors."""
    return {
        "format": FORMAT,
        "source": card.source,
        "params": _json(card.params),
        "input_shape": _json(card.input_shape),
        "classes": str(card.classes),
        "labels": _json(card.labels),
        "normalisation": _json({"mean": card.normalisation.mean, "scale": card.normalisation.scale}),
        "accuracy": _json(card.accuracy),
    }


def read(path: Path, limit_bytes: int) -> tuple[ModelCard, Vector]:
    """Raises:
    Corrupted: it is not a model file, or its tensors are not those of its architecture.
    InvalidInput: its architecture is unknown.
    """
    tensors, said = tensorfiles.load(path, limit_bytes)
    try:
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {said['format'][:64]!r}")
        normalisation = msgspec.json.decode(said["normalisation"], type=dict[str, tuple[float, ...]])
        card = ModelCard(
            source=said["source"],
            params=msgspec.json.decode(said["params"], type=dict[str, bool | int | float | str]),
            input_shape=msgspec.json.decode(said["input_shape"], type=tuple[int, ...]),
            classes=int(said["classes"]),
            labels=msgspec.json.decode(said["labels"], type=tuple[str, ...]),
            normalisation=Normalisation(normalisation["mean"], normalisation["scale"]),
            accuracy=msgspec.json.decode(said["accuracy"], type=float | None),
        )
        layers = card.layers()
        if len(card.labels) != card.classes:
            raise ValueError(f"it has {card.classes} outputs and {len(card.labels)} labels")
        used = card.normalisation
        if len(used.mean) != len(used.scale) or len(used.mean) not in (0, prod(card.input_shape)):
            raise ValueError("its normalisation does not fit its inputs")
        if not all(math.isfinite(mean) for mean in used.mean) or not all(0 < scale < math.inf for scale in used.scale):
            raise ValueError("its normalisation cannot be applied")
        return card, flatten(tensors, layers)
    except (KeyError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise Corrupted(f"{path.name} is not a usable model file: {error}.", fix="Train the model again.") from error


def flatten(tensors: dict[str, tensorfiles.Tensor], layers: tuple[Layer, ...]) -> Vector:
    """Named tensors as one vector, in the order of `tensor_shapes`; ValueError if they are not exactly those."""
    shapes = tensor_shapes(layers)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError("its tensors are not those of its architecture")
    return np.concatenate([tensors[name].ravel() for name in shapes])


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
