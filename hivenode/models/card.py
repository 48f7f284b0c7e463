"""The card in a model file's metadata: what the model is, and all that is needed to build and use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import ValidationError

from hivenode.data import text
from hivenode.data.info import DataInfo
from hivenode.data.normalisation import AS_THEY_ARE, Normalisation
from hivenode.errors import Corrupted, HiveError
from hivenode.spec.model import ModelSpec

FORMAT = "hivenode-model-2"
MAX_HEADER_BYTES = 24 << 20


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


def read_card(path: Path) -> ModelCard:
    """From the head of a model file, without its tensors. Raises Corrupted."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError("its header does not fit")
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.get("__metadata__", b"{}"), type=dict[str, str])
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise Corrupted(f"{path.name} is not a usable model file: {error}.", fix="Use another copy of it.") from error
    return card_of(path, metadata)


def _scaling(encoded: str) -> Normalisation:
    made = msgspec.json.decode(encoded, type=Normalisation)
    if len(made.mean) != len(made.scale):
        raise ValueError("its normalisation does not fit its inputs")
    if not all(math.isfinite(mean) for mean in made.mean) or not all(0 < scale < math.inf for scale in made.scale):
        raise ValueError("its normalisation cannot be applied")
    return made
