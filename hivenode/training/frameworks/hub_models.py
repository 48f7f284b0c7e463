"""Transformers' own architectures, from a configuration or a local directory. Nothing is downloaded, and no code that
comes with a model is run."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo  # transformers needs it; its import makes a directory, which a worker behind walls could not
from torch import nn

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput, Unavailable
from hivenode.models.hub import ENCODER_DECODERS, settle
from hivenode.models.pretrained import Pretrained
from hivenode.spec.model import LoraSpec, ModelSpec
from hivenode.training.frameworks.model import uniform_values
from hivenode.training.frameworks.torch_framework import Built
from hivenode.training.frameworks.torch_modules import of_module

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_NOT_TAKEN = ("id2label", "label2id", "transformers_weights", "torch_dtype")
"""Labels are those of the data; weights those of `Pretrained`, in float32."""
_DEVIATION = 0.02
"""Of first weights, where the configuration does not say."""


def from_hub(model: ModelSpec, info: DataInfo, seed: int, directory: Pretrained | None) -> tuple[Built, dict[str, Any]]:
    """A model with as many outputs as the data need, and its whole configuration.

    Args:
        directory: what `hf:NAME` stands for here; None for `hf:config`.

    Raises:
        InvalidInput: transformers has no such model, or not for this task; or it does not fit the data.
        Unavailable: peft is needed and not installed.
    """
    config = _config(model, info, directory)
    module, fresh = _made(model, info, config, directory)
    _begin(module, config, seed, fresh)
    afresh = begun_afresh(model, module, fresh or ())
    if model.lora is not None:
        module = _adapted(module, model.lora, info, seed)
    return replace(of_module(module, _forward(module, info)), afresh=afresh), config.to_diff_dict()


def begun_afresh(model: ModelSpec, module: nn.Module, fresh: Collection[str]) -> tuple[str, ...]:
    """The parameters of a module that are among these. Raises InvalidInput if all are."""
    names = [name for name, _ in module.named_parameters()]
    if found := tuple(name for name in names if name in fresh):
        if len(found) < len(names):
            return found
        raise InvalidInput(
            f"No tensor of {model.source} fits a {type(module).__name__} of its configuration, which has "
            f"{', '.join(names[:3])}, ...",
            fix="Give weights and config.json of the same model.",
        )
    return ()


@dataclass(frozen=True)
class Chance:
    """How a tensor begins unless it is a constant: the arguments of `fill_uniform`."""

    variance: float
    seed: int
    number: int


@dataclass(frozen=True)
class Plain:
    """A model before its first values.

    Attributes:
        module: as the library begins it; without memory if made within `hollow`.
        forward: from inputs to logits.
        config: the whole configuration.
        chances: of each of its parameters.
    """

    module: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    config: dict[str, Any]
    chances: Mapping[str, Chance]


def plain(model: ModelSpec, info: DataInfo, seed: int, directory: Pretrained | None) -> Plain:
    """A model without adapters; of a directory its configuration alone. Raises InvalidInput as `from_hub`."""
    config = _config(model, info, directory)
    module, _ = _made(model, info, config, None)
    chances = _chances(module, config, seed)
    return Plain(module, _forward(module, info), config.to_diff_dict(), chances)


def _made(
    model: ModelSpec, info: DataInfo, config: Any, directory: Pretrained | None
) -> tuple[nn.Module, set[str] | None]:
    """A module, and which of its tensors no file has given; None for all."""
    kind = _auto(info)
    try:
        if directory is None:
            return kind.from_config(config, trust_remote_code=False).float(), None
        module, told = kind.from_pretrained(
            directory.path, config=config, trust_remote_code=False, local_files_only=True, use_safetensors=True,
            dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
        raise InvalidInput(
            f"transformers {transformers.__version__} cannot build {model.source} for {info.task}: "
            f"{' '.join(str(error).split())[:300]}",
            fix="Check the configuration, and that a model of this kind does such a task.",
        ) from error
    return module.float(), {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}


def _config(model: ModelSpec, info: DataInfo, directory: Pretrained | None) -> Any:
    kind = ""
    try:
        given = settle(model.config if directory is None else directory.config, info)
        kind = str(given.pop("model_type"))
        given |= {"use_cache": False, "dtype": "float32"}
        for name in _NOT_TAKEN:
            given.pop(name, None)
        if info.task in ("classification", "regression"):
            given["num_labels"] = info.outputs
        if info.vocabulary:
            given["pad_token_id"] = info.padding
            if info.task == "text_to_text":
                given |= {"decoder_start_token_id": info.padding, "eos_token_id": info.vocabulary - 1}
            else:
                given |= {"bos_token_id": None, "eos_token_id": None}
        return transformers.AutoConfig.for_model(kind, **given)
    except (ValueError, TypeError, KeyError, OSError, AttributeError) as error:
        known = transformers.CONFIG_MAPPING
        near = difflib.get_close_matches(kind, list(known), n=1) if kind not in known else []
        usual = "Correct it; `model_type` and sizes are spelled as in a config.json."
        raise InvalidInput(
            f"transformers {transformers.__version__} does not take the configuration of {model.source}: "
            f"{' '.join(str(error).split()).partition(' Should contain one of ')[0][:300].rstrip('.')}.",
            fix=f"Did you mean model_type = '{near[0]}'?" if near else usual,
        ) from error


def _auto(info: DataInfo) -> Any:
    if info.task == "language":
        return AutoModelForCausalLM
    if info.task == "text_to_text":
        return AutoModelForSeq2SeqLM
    return AutoModelForSequenceClassification if info.vocabulary else AutoModelForImageClassification


def _deviation(name: str, parameter: nn.Parameter, config: Any) -> float:
    """Of a tensor's first values. T5's attention is not scaled, so its numbers are (arXiv 1910.10683; as transformers
    has them)."""
    if config.model_type not in ENCODER_DECODERS:
        return float(getattr(config, "initializer_range", _DEVIATION))
    if name.startswith("shared."):
        return 1.0
    if name.endswith(".q.weight"):
        return float((config.d_model * config.d_kv) ** -0.5)
    return float(parameter.shape[-1] ** -0.5) if "relative" not in name else float(config.d_model**-0.5)


def _chances(module: nn.Module, config: Any, seed: int) -> dict[str, Chance]:
    return {
        name: Chance(_deviation(name, parameter, config) ** 2, seed, number)
        for number, (name, parameter) in enumerate(module.named_parameters())
    }


def _begin(module: nn.Module, config: Any, seed: int, fresh: set[str] | None) -> None:
    """First values by our own numbers, equal on every machine. What the architecture starts as a constant (biases,
    scales) stays.

    Args:
        fresh: names to fill; None for all.
    """
    chances = _chances(module, config, seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if (fresh is not None and name not in fresh) or parameter.min() == parameter.max():
                continue
            chance = chances[name]
            values = uniform_values(parameter.numel(), chance.variance, chance.seed, chance.number)
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))


def _adapted(module: nn.Module, lora: LoraSpec, info: DataInfo, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError:
        raise Unavailable(
            "model.lora needs peft, which is not installed here.",
            fix="Install it: pip install 'hivenode[transformers]'.",
        ) from None
    heads = [name for name in ("classifier", "score") if hasattr(module, name)]
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none",
        target_modules=list(lora.targets) or None, modules_to_save=heads or None if info.task != "language" else None,
    )  # fmt: skip
    try:
        adapted = peft.get_peft_model(module, config)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in module.named_modules() if isinstance(m, nn.Linear)})
        raise InvalidInput(
            f"model.lora cannot adapt this model: {' '.join(str(error).split())[:200]}",
            fix=f"Name modules in model.lora.targets; it has {', '.join(names[:12]) or 'no linear ones'}.",
        ) from error
    with torch.no_grad():
        for number, (name, parameter) in enumerate(adapted.named_parameters()):
            if parameter.requires_grad and "lora_A" in name:
                values = uniform_values(parameter.numel(), 1 / (3 * parameter.shape[1]), seed, (1 << 24) + number)
                parameter.copy_(torch.from_numpy(values).view(parameter.shape))
    return adapted


def _forward(module: nn.Module, info: DataInfo) -> Any:
    if not info.vocabulary:
        return lambda x: module(pixel_values=x).logits
    if info.task == "language":
        return lambda x: module(input_ids=x).logits
    padding = info.padding
    if info.task == "text_to_text":
        half = info.input_shape[0] // 2
        return lambda x: (
            module(
                input_ids=x[:, :half], attention_mask=(x[:, :half] != padding).long(), decoder_input_ids=x[:, half:]
            ).logits
        )
    return lambda x: module(input_ids=x, attention_mask=(x != padding).long()).logits
