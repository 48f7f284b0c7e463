"""Transformers configurations as plain tables: what they must say to fit the data, and what such models cost.

Parameter counts are exact for the kinds in `_COUNTS` (as transformers builds them, tied weights counted once) and a
plain encoder's for others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.layers import FLOAT_BYTES, LayerCost, ModelCost, nearest
from hivenode.spec.model import ModelSpec

Config = Mapping[str, Any]

_ENCODER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_LLAMA = {
    "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11_008, "max_position_embeddings": 2048,
}  # fmt: skip

DEFAULTS: Mapping[str, Config] = {
    "bert": {**_ENCODER, **_DROPOUT, "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2},
    "roberta": {**_ENCODER, **_DROPOUT, "vocab_size": 50_265, "max_position_embeddings": 512, "type_vocab_size": 2},
    "distilbert": {
        "vocab_size": 30_522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512,
    },
    "gpt2": {
        "vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    },
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
    "qwen2": {
        **_LLAMA, "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    },
    "t5": {
        "vocab_size": 32_128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    },
    "vit": {**_ENCODER, "image_size": 224, "patch_size": 16, "num_channels": 3},
}  # fmt: skip
"""What transformers assumes where a configuration is silent, as far as costs go."""
TASKS = ("classification", "regression", "language", "text_to_text")
ENCODER_DECODERS = ("t5",)
"""Kinds that write a text upon another."""
_LARGEST, _MOST_LAYERS = 2**31 - 1, 1_000
"""Sizes that are taken for such: what says them may come from another node."""
_PATCH = 16
_STEPWISE = frozenset({"gelu_new", "gelu_fast", "gelu_accurate", "quick_gelu", "mish"})
"""Activations that transformers composes of several operations, each of which keeps its input."""
_GATED = frozenset({"llama", "mistral", "qwen2"})
"""Kinds with three wide products, and normalisation in several steps."""
_MODEL_TYPE = re.compile(r"[a-z0-9_.-]{1,64}")


def settle(config: Config, info: DataInfo) -> dict[str, Any]:
    """A configuration with what the data decide filled in where it is silent.

    Raises:
        InvalidInput: it says something that the data contradict, or no model of this kind does such a task.
    """
    settled = dict(config)
    kind = settled.get("model_type", "")
    if not isinstance(kind, str) or not _MODEL_TYPE.fullmatch(kind):
        raise InvalidInput(
            "The transformers configuration has no model_type.",
            fix=f"Give one, such as {', '.join(DEFAULTS)}.",
        )
    no_code(settled, "The transformers configuration")
    if info.task not in TASKS:
        raise InvalidInput(f"hf: models are for {', '.join(TASKS)}, not for {info.task}.", fix="Choose a zoo: model.")
    if (info.task == "text_to_text") != (kind in ENCODER_DECODERS):
        raise InvalidInput(
            f"A model of type {kind} is not for {info.task}.",
            fix=f"{', '.join(ENCODER_DECODERS)} is for text_to_text, and for nothing else.",
        )
    if kind in ENCODER_DECODERS:
        _at_least(settled, "vocab_size", info.vocabulary, f"{info.source} has {info.vocabulary} tokens")
    elif info.vocabulary:
        _at_least(settled, "vocab_size", info.vocabulary, f"{info.source} has {info.vocabulary} tokens")
        limit = "n_positions" if kind == "gpt2" else "max_position_embeddings"
        room = info.input_shape[0] + (2 if kind == "roberta" else 0)  # its positions begin after the padding's
        if info.task == "language" and kind in ("bert", "roberta"):
            settled["is_decoder"] = True  # or each token would see those it is to foretell
        _at_least(settled, limit, room, f"samples of {info.source} have {info.input_shape[0]} tokens")
    elif len(info.input_shape) == 3 and info.input_shape[1] == info.input_shape[2]:
        channels, side, _ = info.input_shape
        _equal(settled, "num_channels", channels, f"images of {info.source} have {channels} channels")
        _equal(settled, "image_size", side, f"images of {info.source} are {side}x{side}")
    else:
        raise InvalidInput(
            f"hf: models take text or square images, and {info.source} is neither.", fix="Choose a zoo: model."
        )
    return settled


def no_code(config: Config, what: str) -> None:
    """Raises InvalidInput: a configuration is of a model that comes with code of its own."""
    if "auto_map" in config:
        raise InvalidInput(
            f"{what} names code of the model's author (auto_map), which is never run.",
            fix="Use a model that transformers itself knows.",
        )


def _at_least(config: dict[str, Any], key: str, least: int, why: str) -> None:
    value = config.setdefault(key, least)
    if not isinstance(value, int) or value < least:
        raise InvalidInput(f"{key} of the configuration is {value!r}, but {why}.", fix=f"Set {key} = {least} or more.")


def _equal(config: dict[str, Any], key: str, value: int, why: str) -> None:
    if config.setdefault(key, value) != value:
        raise InvalidInput(f"{key} of the configuration is {config[key]!r}, but {why}.", fix=f"Set {key} = {value}.")


def check_names(config: Config) -> None:
    """Raise InvalidInput for a size that is misspelled, with the nearest name. Only sizes of known kinds are checked:
    transformers takes any further field."""
    known = DEFAULTS.get(str(config.get("model_type")))
    if known is None:
        return
    for name in config:
        if name not in known and (near := difflib.get_close_matches(name, list(known), n=1, cutoff=0.9)):
            raise InvalidInput(f"The configuration has no field '{name}'.", fix=f"Did you mean '{near[0]}'?")


def told(raw: bytes, what: str) -> dict[str, Any]:
    """A configuration that another node tells of; {} of kinds whose layers are not known here.

    Raises:
        InvalidInput: it is none.
    """
    try:
        config = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(f"{what} is no JSON object.", fix="Correct config.json there.") from None
    kind = config.get("model_type")
    return config if isinstance(kind, str) and kind in DEFAULTS else {}


@dataclass(frozen=True, slots=True)
class _Sizes:
    width: int
    layers: int
    embedding: int
    """Parameters that only look up."""
    layer: int
    """Parameters of one layer."""
    rest: int


def describe(model: ModelSpec, info: DataInfo) -> ModelCost:
    """What a model with a configuration costs, given in the job or by a node that has its directory. Errors as for
    `settle`."""
    if model.source == "hf:config":
        check_names(model.config)
    config = settle(model.config, info)
    kind = str(config["model_type"])
    full = {**DEFAULTS.get(kind, DEFAULTS["bert"]), **config}
    try:
        if kind == "t5":
            return _t5(model.source, full, info)
        sizes = _COUNTS.get(kind, _bert)(full, info)
        length = info.input_shape[0]
        if not info.vocabulary:
            side, patch = _of({"patch_size": _PATCH, **full}, "image_size", "patch_size")
            length = (side // patch) ** 2 + 1
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise InvalidInput(
            f"The sizes in the {kind} configuration are not whole numbers above 0, or too large.",
            fix=nearest(kind, list(DEFAULTS)) if kind not in DEFAULTS else "Correct them.",
        ) from None
    attention = 4 * length * length * sizes.width
    layer_flops = 2 * sizes.layer * length + attention
    kept = length * sizes.width * FLOAT_BYTES
    shape = (length, sizes.width)
    lines = [LayerCost("embeddings", sizes.embedding, length * sizes.width, kept, 0, shape)]
    inside = round(_inside(kind, full) * kept)
    lines += [LayerCost(f"layer{n}", sizes.layer, layer_flops, kept, inside, shape) for n in range(sizes.layers)]
    head_flops = 2 * length * sizes.width * info.outputs if info.task == "language" else 2 * sizes.rest
    outputs = (length if info.task == "language" else 1) * info.outputs * FLOAT_BYTES
    put_out = (length, info.outputs) if info.task == "language" else (info.outputs,)
    lines.append(LayerCost("head", sizes.rest, head_flops, outputs, outputs, put_out))
    return ModelCost(
        source=model.source,
        parameters=sum(line.parameters for line in lines),
        flops_per_sample=sum(line.flops for line in lines),
        activation_bytes_per_sample=sum(line.activation_bytes + line.inner_bytes for line in lines),
        layers=tuple(lines),
    )


def _inside(kind: str, c: Config) -> float:
    """What an encoder's layer keeps for the backward pass besides its output, in outputs; as counted where the inner
    width is four times the outer."""
    times = 15.0
    if _setting(c, "activation_function", "hidden_act", "activation") in _STEPWISE:
        times += 12  # the cube, the tangent, both factors
    if _setting(c, "resid_pdrop", "hidden_dropout_prob", "dropout"):
        times += 2.5  # two masks of bytes, and what they left
    if _setting(c, "attn_pdrop", "attention_probs_dropout_prob", "attention_dropout"):
        times += 2.5  # probabilities before and after, and a mask
    return times + (10 if kind in _GATED else 0)


def _setting(c: Config, *names: str) -> Any:
    return next((c[name] for name in names if name in c), None)


def _t5(source: str, c: Config, info: DataInfo) -> ModelCost:
    """Embeddings, the encoder's blocks, the decoder's, and the head, which has the embeddings' weights; sizes as
    transformers builds them."""
    vocabulary, width, key, inner, layers, heads, buckets = _of(
        c, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets"
    )
    (after,) = _of({"num_decoder_layers": c.get("num_decoder_layers") or layers}, "num_decoder_layers")
    length = info.input_shape[0] // 2
    attention = 4 * width * heads * key + width
    wide = (3 if "gated" in str(c.get("feed_forward_proj", "relu")) else 2) * width * inner + width
    kept, shape = length * width * FLOAT_BYTES, (length, width)

    def blocks(name: str, count: int, attentions: int) -> list[LayerCost]:
        own = attentions * attention + wide
        flops = 2 * own * length + attentions * 4 * length * length * heads * key
        inside = (8 + 8 * attentions) * kept
        extra = [buckets * heads, *[0] * (count - 1)]
        extra[-1] += width  # the norm at the end
        return [LayerCost(f"{name}{n}", own + extra[n], flops, kept, inside, shape) for n in range(count)]

    outputs = length * info.outputs * FLOAT_BYTES
    head = LayerCost("head", 0, 2 * length * width * vocabulary, outputs, outputs, (length, info.outputs))
    first = LayerCost("embeddings", vocabulary * width, 2 * length * width, kept, 0, shape)
    lines = (first, *blocks("encoder", layers, 1), *blocks("decoder", after, 2), head)
    return ModelCost(
        source=source,
        parameters=sum(line.parameters for line in lines),
        flops_per_sample=sum(line.flops for line in lines),
        activation_bytes_per_sample=sum(line.activation_bytes + line.inner_bytes for line in lines),
        layers=lines,
    )


def _block(width: int, inner: int) -> int:
    """An encoder's layer: four projections, two normalisations, two wide products, all with biases."""
    return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width


def _of(config: Config, *names: str) -> list[int]:
    values = [config[name] for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, int) or not 0 < value <= (_MOST_LAYERS if "layer" in name else _LARGEST):
            raise ValueError(name)
    return values


def _bert(c: Config, info: DataInfo) -> _Sizes:
    vocabulary, width, layers, inner = _of(c, "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    positions, types = _of(c, "max_position_embeddings", "type_vocab_size")
    embedding = (vocabulary + positions + types) * width + 2 * width
    if info.task == "language":
        return _Sizes(width, layers, embedding, _block(width, inner), width * width + 3 * width + vocabulary)
    pooler = width * width + width
    return _Sizes(width, layers, embedding, _block(width, inner), pooler + (width + 1) * info.outputs)


def _distilbert(c: Config, info: DataInfo) -> _Sizes:
    vocabulary, width, layers, inner, positions = _of(
        c, "vocab_size", "dim", "n_layers", "hidden_dim", "max_position_embeddings"
    )
    rest = width * width + width + (width + 1) * info.outputs
    return _Sizes(width, layers, (vocabulary + positions) * width + 2 * width, _block(width, inner), rest)


def _gpt2(c: Config, info: DataInfo) -> _Sizes:
    vocabulary, positions, width, layers = _of(c, "vocab_size", "n_positions", "n_embd", "n_layer")
    (inner,) = _of({"n_inner": c.get("n_inner") or 4 * width}, "n_inner")
    head = 0 if info.task == "language" else width * info.outputs
    return _Sizes(width, layers, (vocabulary + positions) * width, _block(width, inner), 2 * width + head)


def _llama(c: Config, info: DataInfo) -> _Sizes:
    vocabulary, width, layers, heads, inner = _of(
        c, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    )
    each, groups = _of(
        {"head_dim": c.get("head_dim") or width // heads, "groups": c.get("num_key_value_heads") or heads},
        "head_dim", "groups",
    )  # fmt: skip
    groups, own = groups * each, heads * each
    layer = 2 * width * own + 2 * width * groups + 3 * width * inner + 2 * width
    if c["model_type"] == "qwen2":
        layer += own + 2 * groups
    tied = c.get("tie_word_embeddings", False)
    head = (0 if tied else vocabulary * width) if info.task == "language" else width * info.outputs
    return _Sizes(width, layers, vocabulary * width, layer, width + head)


def _vit(c: Config, info: DataInfo) -> _Sizes:
    width, layers, inner, side, patch, channels = _of(
        c, "hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size", "num_channels"
    )
    patches = (side // patch) ** 2
    embedding = width + (patches + 1) * width + channels * patch * patch * width + width
    return _Sizes(width, layers, embedding, _block(width, inner), 2 * width + (width + 1) * info.outputs)


_COUNTS: Mapping[str, Callable[[Config, DataInfo], _Sizes]] = {
    "bert": _bert, "roberta": _bert, "distilbert": _distilbert, "gpt2": _gpt2,
    "llama": _llama, "mistral": _llama, "qwen2": _llama, "vit": _vit,
}  # fmt: skip
