"""Transformers by formula: sizes from config.json, GGUF keys or the shapes of the tensors.

Sources: products, 2 FLOPs a weight and token, and 4 s h_a for scores and sums of each token and layer (Kaplan et al.,
arXiv 2001.08361, section 2.1); activations of a layer, after Korthikanti et al., arXiv 2205.05198, section 4.1: 17 h
elements a token without scores, 2.5 a s more where scores are kept; cache, 2 x layers x heads x width each token.
"""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.quantities import Quantity, ruled
from hivenode.models.identify.report import Report, Tensor, count

_EMBEDDINGS = ("embed", "wte", "wpe", "token_embd", "position_embd", "shared.weight", "relative_attention_bias",
               "token_types", "position_ids")  # fmt: skip
_ONCE = ("pooler", "classifier", "score.", "pre_classifier", "heads.head", "qa_outputs.none", "fc_norm", "cls.seq")
_DECODER = ("decoder.", "dec.", "model.decoder.")
_GENERATES = ("text_generation", "text2text_generation", "speech_recognition", "translation", "summarization",
              "image_to_text", "image_text_to_text")  # fmt: skip
_ENCODER_DECODER = ("text2text_generation", "speech_recognition", "translation", "summarization")
DEFAULT_SEQUENCE = 512
_FRAMES = 1500


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a transformer. `heads` may be assumed, from 64 values a head."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    longest: int | None
    patches: int | None
    gated: bool
    assumed: tuple[str, ...] = ()
    experts: int = 0
    used_experts: int = 0
    decoder_layers: int = 0


def sizes_of(report: Report) -> Sizes | None:
    """None if the file does not say how wide or deep it is."""

    def first(*names: str) -> int | None:
        for name in names:
            value = report.hyperparameters.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
                return value
        return None

    hidden = first("hidden_size", "n_embd", "d_model", "dim")
    layers = report.layers or first("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers")
    if not hidden or not layers or layers > 1 << 20:
        return None
    assumed = []
    heads = first("num_attention_heads", "n_head", "num_heads", "n_heads", "heads", "encoder_attention_heads")
    if heads is None:
        heads, assumed = max(1, hidden // 64), ["heads"]
    image, patch = first("image_size"), first("patch_size")
    if patch and not image and report.family == "computer_vision":
        image, assumed = 224, [*assumed, "image_size 224"]
    names = {tensor.name for tensor in report.listing}
    gated = any(part in name for name in names for part in ("gate_proj", "ffn_gate", "gate_up_proj", "wi_1"))
    both = report.task in _ENCODER_DECODER and report.architecture == "transformer"
    return Sizes(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=first("num_key_value_heads", "kv_heads") or heads,
        head_dim=first("head_dim") or max(1, hidden // heads),
        inner=first("intermediate_size", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim") or 4 * hidden,
        vocabulary=first("vocab_size", "vocabulary") or 0,
        longest=first("max_position_embeddings", "n_positions", "max_sequence"),
        patches=(image // patch) ** 2 + 1 if image and patch and image >= patch else None,
        gated=gated,
        assumed=tuple(assumed),
        experts=first("num_experts", "num_local_experts", "experts") or 0,
        used_experts=first("num_experts_per_tok", "experts_per_token") or 0,
        decoder_layers=(first("decoder_layers", "num_decoder_layers") or layers) if both else 0,
    )


def generates(report: Report) -> bool:
    """Whether it writes token after token, and so keeps keys and values."""
    return report.task in _GENERATES


def usual_sequence(sizes: Sizes) -> int:
    """Of a model that reads tokens, where none was asked for."""
    return min(DEFAULT_SEQUENCE, sizes.longest) if sizes.longest else DEFAULT_SEQUENCE


def parameters_of(sizes: Sizes) -> int:
    """By formula, where there are no tensors to count: products of each layer, norms, and the embedding."""
    width = sizes.heads * sizes.head_dim
    attention = 2 * sizes.hidden * (width + sizes.kv_heads * sizes.head_dim)
    inner = (3 if sizes.gated else 2) * sizes.hidden * sizes.inner * max(1, sizes.experts)
    layers = sizes.layers * (attention + inner) + sizes.decoder_layers * (2 * attention + inner)
    return layers + (sizes.vocabulary + (sizes.longest or 0)) * sizes.hidden + 13 * sizes.hidden * sizes.layers


def costs(report: Report, sizes: Sizes, batch: int, sequence: int, itemsize: float, cache_itemsize: float) -> Costs:
    """Of `batch` sequences of `sequence` tokens; pictures have as many as their patches.

    Args:
        itemsize: bytes of an activation.
        cache_itemsize: bytes of a cached key or value element.
    """
    length = sizes.patches or sequence
    if report.task == "speech_recognition":
        length = _FRAMES
    tokens = batch * length
    said = f"{sizes.layers} layers of {sizes.hidden}, {sizes.heads} heads, {batch} x {length} tokens"
    if sizes.assumed:
        said += f"; assumed: {', '.join(sizes.assumed)}"
    depth = sizes.layers + sizes.decoder_layers
    attention = 4 * tokens * length * sizes.heads * sizes.head_dim * (depth + sizes.decoder_layers)
    products = _products(report, sizes, tokens, batch)
    forward = ruled(products + attention, f"2 FLOPs a weight and token, 4 s h for attention: {said}", 0.85, 1.2, "FLOP")
    per_token = (2 * sizes.inner if not sizes.gated else 4 * sizes.inner) + 9 * sizes.hidden
    scores = 0 if sizes.gated else 2.5 * sizes.heads * length
    kept = depth * tokens * (per_token + scores)
    head = tokens * sizes.vocabulary if generates(report) or report.task == "fill_mask" else 0
    kept += 2 * head
    widest = max(head * 1.2, tokens * (2 * sizes.inner + 4 * sizes.hidden))
    return Costs(
        forward=forward,
        kept=ruled(kept * itemsize, f"{per_token / sizes.hidden:.0f} h and {scores / length:.0f} s elements a token "
                   f"and layer, logits twice: {said}", 0.6, 1.7),
        passing=ruled(widest * itemsize, f"the widest of one layer and the logits: {said}", 0.6, 2.5),
        kv_cache=_cache(sizes, batch, sequence, cache_itemsize) if generates(report) else None,
    )  # fmt: skip


def _cache(sizes: Sizes, batch: int, sequence: int, itemsize: float) -> Quantity:
    depth = 2 * sizes.decoder_layers or sizes.layers
    value = 2 * depth * sizes.kv_heads * sizes.head_dim * sequence * batch * itemsize
    return ruled(
        value,
        f"2 x {depth} layers x {sizes.kv_heads} heads x {sizes.head_dim} x {sequence} tokens x {batch} "
        f"x {itemsize:g} bytes",
        1.0,
        1.0 if not sizes.assumed else 2.0,
    )


def _products(report: Report, sizes: Sizes, tokens: int, batch: int) -> float:
    """FLOPs of all products with weights, from the shapes of the matrices if there are any."""
    matrices = [tensor for tensor in report.listing if len(tensor.shape) >= 2 and tensor.trainable is not False]
    logits = 2.0 * sizes.vocabulary * sizes.hidden * tokens
    if not matrices:
        inner = (3 if sizes.gated else 2) * sizes.hidden * sizes.inner
        width = sizes.heads * sizes.head_dim
        attention = 2 * sizes.hidden * width + 2 * sizes.hidden * sizes.kv_heads * sizes.head_dim
        layers = sizes.layers * (attention + inner) + sizes.decoder_layers * (2 * attention + inner)
        return 2.0 * tokens * layers + (logits if generates(report) else 0)
    total, headed = 0.0, False
    for tensor in matrices:
        if _is_embedding(tensor, sizes):
            headed = headed or tensor.shared_with is not None
            continue
        if sizes.vocabulary > 2 and sizes.vocabulary in tensor.shape[:2]:
            headed = True
        share = sizes.used_experts / sizes.experts if sizes.experts and "exp" in tensor.name else 1.0
        rows = batch if any(part in tensor.name for part in _ONCE) else tokens
        total += 2.0 * rows * count(tensor.shape) * share
    if not headed and (generates(report) or report.task == "fill_mask"):
        total += logits  # tied to the embedding
    return total


def _is_embedding(tensor: Tensor, sizes: Sizes) -> bool:
    name = tensor.name.lower()
    if "patch_embed" in name or "projection" in name or "conv" in name:
        return False
    return any(part in name for part in _EMBEDDINGS) or (
        sizes.vocabulary in tensor.shape[:2] and tensor.shared_with is not None
    )
