"""Models of the transformers library from their configuration alone: no file is read, no remote code is run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from hivenode.errors import InvalidInput

_ANYTHING = 64
"""A vocabulary, a number of labels or a size where the configuration says nothing."""
_SAMPLE_RATE = 16_000
_NOT_TAKEN = frozenset(
    ("auto_map", "quantization_config", "dtype", "torch_dtype", "attn_implementation", "_attn_implementation",
     "_attn_implementation_internal", "experts_implementation", "_experts_implementation", "_name_or_path")
)  # fmt: skip
"""What names code or kernels from elsewhere, and what is decided by whoever traces."""


def configuration(fields: Mapping[str, Any]) -> Any:
    """The library's own configuration object of that `model_type`.

    Raises:
        InvalidInput: the library has no such type, or the values make no sense to it.
    """
    from transformers import CONFIG_MAPPING

    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InvalidInput(f"The installed transformers knows no model type {str(kind)[:80]!r}.", fix="Update it.")
    known = {key: value for key, value in fields.items() if key not in _NOT_TAKEN}
    try:
        return CONFIG_MAPPING[kind].from_dict(known)
    except Exception as error:
        raise InvalidInput(
            f"transformers does not take this configuration: {type(error).__name__}: {error}"[:500],
            fix="Check config.json.",
        ) from error


def module(name: str, config: Any) -> torch.nn.Module:
    """A model of the library by its class name, uninitialised.

    Raises:
        InvalidInput: the library has no such class.
    """
    import transformers
    from transformers.initialization import no_init_weights

    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidInput(f"The installed transformers has no model class {name[:80]}.", fix="Update it.")
    with no_init_weights():
        return kind(config)


def inputs(model: torch.nn.Module, config: Any, batch: int, sequence: int) -> dict[str, torch.Tensor]:
    """What a training step is fed, as `model` names it; `labels` only where its forward pass takes them.

    Raises:
        InvalidInput: it takes something else than tokens, pictures or sound.
    """
    takes = inspect.signature(model.forward).parameters
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None) or _ANYTHING
    tokens = torch.randint(0, vocabulary, (batch, sequence))
    first = getattr(model, "main_input_name", "input_ids")
    fed: dict[str, torch.Tensor] = {}
    match first:
        case "input_ids":
            fed["input_ids"] = tokens
        case "pixel_values":
            fed["pixel_values"] = torch.randn(batch, getattr(config, "num_channels", 3), *_picture(config))
        case "input_features":
            frames = 2 * getattr(config, "max_source_positions", 1500)
            fed["input_features"] = torch.randn(batch, getattr(config, "num_mel_bins", 80), frames)
        case "input_values":
            fed["input_values"] = torch.randn(batch, _SAMPLE_RATE)
        case _:
            raise InvalidInput(f"It is fed {str(first)[:40]}, which is not known here.", fix="Use the rules.")
    if "decoder_input_ids" in takes:
        fed["decoder_input_ids"] = tokens
    if "labels" in takes:
        fed["labels"] = _labels(type(model).__name__, config, tokens, batch)
    elif "start_positions" in takes:
        fed["start_positions"] = fed["end_positions"] = torch.zeros(batch, dtype=torch.long)
    return fed


def _labels(name: str, config: Any, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    per_sample = any(
        part in name for part in ("SequenceClassification", "ImageClassification", "MultipleChoice", "NextSentence")
    )
    if not per_sample:
        return tokens if "TokenClassification" not in name else tokens.clamp(max=1)
    if getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", 2) == 1:
        return torch.randn(batch)
    return torch.randint(0, max(2, getattr(config, "num_labels", 2)), (batch,))


def _picture(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    return int(size), int(size)
