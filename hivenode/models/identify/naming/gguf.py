"""GGUF's numbers and words: tensor types, file types, architectures.

Sources: ggml.h and llama.h of llama.cpp, gguf-py/gguf/constants.py (0.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hivenode.models.identify.report import Confidence, Report


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Kind(NamedTuple):
    """A tensor type: its name, and how many bytes a block of how many elements takes."""

    name: str
    block: int
    bytes: int


KINDS: dict[int, Kind] = {
    number: Kind(*kind)
    for number, kind in {
        0: ("float32", 1, 4), 1: ("float16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
        7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
        12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
        16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
        20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
        24: ("int8", 1, 1), 25: ("int16", 1, 2), 26: ("int32", 1, 4), 27: ("int64", 1, 8), 28: ("float64", 1, 8),
        29: ("iq1_m", 256, 56), 30: ("bfloat16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
        39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
    }.items()
}  # fmt: skip
FILE_TYPES: dict[object, str] = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
    13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs", 20: "iq2_xs",
    21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m", 28: "iq2_s",
    29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0", 37: "tq2_0", 38: "mxfp4", 39: "nvfp4", 40: "q1_0",
}  # fmt: skip
_ENCODERS = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "t5encoder", "pangu-embedded", "llama-embed",
}  # fmt: skip
_STATE_SPACE = {"mamba", "mamba2"}
_RECURRENT = {"rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_SIZES = {
    "context_length": "max_sequence", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "heads", "attention.head_count_kv": "kv_heads", "attention.key_length": "head_dim",
    "expert_count": "experts", "expert_used_count": "experts_per_token", "vocab_size": "vocabulary",
    "block_count": "layers",
}  # fmt: skip
Values = Mapping[str, bool | int | float | str]


def recognise(report: Report, values: Values, lengths: Mapping[str, int]) -> None:
    """Architecture, task and sizes from the keys and values; `lengths` are those of the arrays."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        return
    kind = values.get("general.type", "model")
    name = values.get("general.name") or values.get("general.basename")
    label = f"{name} ({architecture})" if isinstance(name, str) and name else architecture
    report.know(Confidence.read, "general.architecture, general.name", model=label[:200])
    for key, ours in _SIZES.items():
        value = values.get(f"{architecture}.{key}")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            report.hyperparameters[ours] = value
    if tokens := lengths.get("tokenizer.ggml.tokens"):
        report.hyperparameters["vocabulary"] = tokens
    blocks = values.get(f"{architecture}.block_count")
    if isinstance(blocks, int) and blocks > 0:
        report.know(Confidence.read, f"{architecture}.block_count", layers=blocks)
    evidence = f"general.architecture = {architecture[:40]}"
    if architecture == "clip" or kind == "mmproj":
        report.know(
            Confidence.inferred,
            evidence,
            family="computer_vision",
            architecture="transformer",
            task="feature_extraction",
        )
    elif architecture == "wavtokenizer-dec":
        report.know(Confidence.inferred, evidence, family="audio", architecture="cnn", task="speech_synthesis")
    elif report.tensors == 0:
        report.know(Confidence.inferred, "a tokenizer without tensors", family="nlp", task="tokenization")
    else:
        others = dict.fromkeys(_RECURRENT, "rnn") | dict.fromkeys(_STATE_SPACE, "state_space")
        shape = others.get(architecture, "transformer")
        known = architecture in KNOWN
        how = Confidence.inferred if known else Confidence.guessed
        report.know(how, evidence, family="nlp", architecture=shape)
        report.know(how, evidence, task="feature_extraction" if architecture in _ENCODERS else "text_generation")


KNOWN = (
    _ENCODERS
    | _STATE_SPACE
    | _RECURRENT
    | _words(
        """
    llama llama4 deci falcon baichuan grok gpt2 gptj gptneox mpt starcoder refact bloom stablelm qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe phi2 phi3 phimoe plamo plamo2 plamo3 codeshell
    orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 starcoder2 jamba xverse command-r cohere2 dbrx
    olmo olmo2 olmoe openelm arctic deepseek deepseek2 chatglm glm4 glm4moe bitnet t5 jais jais2 nemotron nemotron_h
    exaone exaone4 granite granitemoe granitehybrid chameleon plm bailingmoe bailingmoe2 dots1 arcee ernie4_5
    ernie4_5-moe falcon-h1 hunyuan-moe hunyuan-dense smollm3 gpt-oss lfm2 lfm2moe dream smallthinker llada llada-moe
    seed_oss apertus minimax-m2 cogvlm mistral3 mistral4 kimi-linear
    """
    )
)
"""Architectures whose nature we know; what comes later is guessed to be a language model too."""
