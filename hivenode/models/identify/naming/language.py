"""State dicts of models that read, write or listen."""

from __future__ import annotations

from typing import NamedTuple

from hivenode.models.identify.naming.state_dicts import Guess, Names, Rule
from hivenode.models.identify.report import FREE, Confidence, Port

NLP = "nlp"
WRITE = "text_generation"


class Encoder(NamedTuple):
    """How transformers names an encoder: what tells it, its blocks, its class names' beginning."""

    mark: str
    blocks: str
    name: str


ENCODERS = (
    Encoder("distilbert.transformer.layer.0.attention.q_lin.weight", "transformer.layer.", "DistilBert"),
    Encoder("roberta.encoder.layer.0.attention.self.query.weight", "encoder.layer.", "Roberta"),
    Encoder("electra.encoder.layer.0.attention.self.query.weight", "encoder.layer.", "Electra"),
    Encoder("deberta.encoder.layer.0.attention.self.query_proj.weight", "encoder.layer.", "DebertaV2"),
    Encoder("transformer.layer.0.attention.q_lin.weight", "transformer.layer.", "DistilBert"),
    Encoder("albert_layers.0.attention.query.weight", "albert_layers.", "Albert"),
    Encoder("encoder.layer.0.attention.self.query.weight", "encoder.layer.", "Bert"),
)
HEADS: tuple[tuple[str, str, str], ...] = (
    ("qa_outputs.weight", "ForQuestionAnswering", "question_answering"),
    ("cls.predictions.transform.dense.weight", "ForMaskedLM", "fill_mask"),
    ("lm_head.dense.weight", "ForMaskedLM", "fill_mask"),
    ("vocab_transform.weight", "ForMaskedLM", "fill_mask"),
)
DECODERS: tuple[tuple[str, str, str], ...] = (
    ("layers.0.block_sparse_moe.gate.weight", "layers.", "MixtralForCausalLM"),
    ("layers.0.pre_feedforward_layernorm.weight", "layers.", "Gemma2ForCausalLM"),
    ("layers.0.self_attn.qkv_proj.weight", "layers.", "Phi3ForCausalLM"),
    ("layers.0.self_attn.q_norm.weight", "layers.", "Qwen3ForCausalLM"),
    ("layers.0.self_attn.q_proj.bias", "layers.", "Qwen2ForCausalLM"),
    ("layers.0.mlp.gate_proj.weight", "layers.", "LlamaForCausalLM"),
    ("gpt_neox.layers.0.attention.query_key_value.weight", "layers.", "GPTNeoXForCausalLM"),
    ("h.0.self_attention.query_key_value.weight", "h.", "BloomForCausalLM"),
    ("h.0.attn.c_attn.weight", "h.", "GPT2LMHeadModel"),
    ("h.0.attn.attention.q_proj.weight", "h.", "GPTNeoForCausalLM"),
    ("h.0.attn.q_proj.weight", "h.", "GPTJForCausalLM"),
    ("layers.0.mixer.in_proj.weight", "layers.", "MambaForCausalLM"),
)
EMBEDDINGS = (
    "embeddings.word_embeddings.weight", "wte.weight", "embed_tokens.weight", "word_embeddings.weight", "shared.weight",
    "tok_embeddings.weight", "embed_in.weight", "embeddings.weight",
)  # fmt: skip
TOKENS = (Port("input_ids", "int64", (FREE, FREE)),)


def _sizes(names: Names, blocks: int) -> dict[str, bool | int | float | str]:
    sizes: dict[str, bool | int | float | str] = {"num_hidden_layers": blocks}
    for ending in EMBEDDINGS:
        prefix = names.prefix(ending)
        shape = names.get(f"{prefix}{ending}") if prefix is not None else ()
        if len(shape) == 2:
            return sizes | {"vocab_size": shape[0], "hidden_size": shape[1]}
    return sizes


def sequence_to_sequence(names: Names) -> Guess | None:
    """T5, BART, Marian, Whisper."""
    if names.has("encoder.block.0.layer.0.SelfAttention.q.weight"):
        blocks = names.blocks("encoder.block.")
        both = names.has("decoder.block.0.layer.1.EncDecAttention.q.weight")
        head = names.has("lm_head.weight") or names.has("shared.weight")
        return Guess(
            "SelfAttention and EncDecAttention", NLP, "text2text_generation" if both else "embedding", "transformer",
            "T5ForConditionalGeneration" if both and head else "T5EncoderModel", layers=blocks,
            sizes=_sizes(names, blocks), inputs=TOKENS,
        )  # fmt: skip
    if names.has("decoder.layers.0.encoder_attn.q_proj.weight"):
        blocks = names.blocks("encoder.layers.")
        if names.has("encoder.conv1.weight"):
            return Guess(
                "an encoder with convolutions and a decoder that attends to it", "audio", "speech_recognition",
                "transformer", "WhisperForConditionalGeneration", layers=blocks, sizes=_sizes(names, blocks),
            )  # fmt: skip
        return Guess(
            "encoder_attn in the decoder", NLP, "text2text_generation", "transformer",
            "BartForConditionalGeneration", how=Confidence.guessed, layers=blocks, sizes=_sizes(names, blocks),
            inputs=TOKENS,
        )  # fmt: skip
    return None


def audio(names: Names) -> Guess | None:
    """wav2vec 2.0 and its relatives."""
    if names.has("feature_extractor.conv_layers.0.conv.weight") and names.has("encoder.layers.0.attention.q_proj."):
        spoken = names.has("lm_head.weight")
        return Guess(
            "convolutions over the waveform before a transformer", "audio",
            "speech_recognition" if spoken else "embedding", "transformer",
            "Wav2Vec2ForCTC" if spoken else "Wav2Vec2Model", layers=names.blocks("encoder.layers."),
        )  # fmt: skip
    return None


def encoder(names: Names) -> Guess | None:
    """BERT and its relatives, with their head if there is one."""
    if names.has("patch_embeddings."):
        return None
    for kind in ENCODERS:
        if not names.has(kind.mark):
            continue
        blocks = names.blocks(kind.blocks)
        ending, task, how = "Model", "embedding", Confidence.inferred
        for mark, suffix, meaning in HEADS:
            if names.has(mark):
                ending, task = suffix, meaning
                break
        else:
            top = names.get("classifier.weight") or names.get("classifier.out_proj.weight")
            if top:
                pooled = names.has("pooler.dense.weight") or names.has("pre_classifier.weight")
                pooled = pooled or names.has("classifier.out_proj.weight")
                ending = "ForSequenceClassification" if pooled else "ForTokenClassification"
                task = "text_classification" if pooled else "token_classification"
                if pooled and top[0] == 1 and kind.name == "Bert":
                    how = Confidence.guessed  # ForMultipleChoice and cross-encoders look the same
        return Guess(
            f"{kind.mark}, {blocks} blocks", NLP, task, "transformer", f"{kind.name}{ending}", how=how, layers=blocks,
            sizes=_sizes(names, blocks), inputs=TOKENS,
        )  # fmt: skip
    return None


def decoder(names: Names) -> Guess | None:
    """GPT-2, Llama and their relatives."""
    for mark, blocks_before, model in DECODERS:
        if not names.has(mark):
            continue
        blocks = names.blocks(blocks_before)
        top = names.prefix("score.weight") is not None
        found = f"{model.split('For')[0]}ForSequenceClassification" if top else model
        how = Confidence.inferred if model in {"GPT2LMHeadModel", "BloomForCausalLM"} else Confidence.guessed
        return Guess(
            f"{mark}, {blocks} blocks", NLP, "text_classification" if top else WRITE, "transformer", found, how=how,
            layers=blocks, sizes=_sizes(names, blocks), inputs=TOKENS,
        )  # fmt: skip
    if names.has("decoder.layers.0.self_attn.k_proj.weight") and names.has("decoder.embed_positions.weight"):
        blocks = names.blocks("decoder.layers.")
        return Guess(
            "a decoder with embed_positions and no encoder", NLP, WRITE, "transformer", "OPTForCausalLM", layers=blocks,
            sizes=_sizes(names, blocks), inputs=TOKENS,
        )  # fmt: skip
    return None


def recurrent(names: Names) -> Guess | None:
    """LSTM, GRU and plain recurrent networks: the gates are stacked in weight_ih (4, 3 and 1 times the hidden size)."""
    prefix = names.prefix("weight_ih_l0")
    if prefix is None:
        return _cell(names)
    inward, across = names.get(f"{prefix}weight_ih_l0"), names.get(f"{prefix}weight_hh_l0")
    if len(inward) != 2 or len(across) != 2 or not across[1]:
        return None
    kind = {4: "lstm", 3: "gru", 1: "rnn"}.get(inward[0] // across[1], "rnn")
    layers = 0
    while f"{prefix}weight_ih_l{layers}" in names:
        layers += 1
    embedding = next((shape for name, shape in names.matrices() if "emb" in name.lower() and len(shape) == 2), None)
    convolutions = any(len(shape) >= 3 for _, shape in names.matrices())
    last = next((shape for name, shape in reversed(names.matrices()) if len(shape) == 2), ())
    family: str | None = None
    task: str | None = None
    if embedding and not convolutions:
        family = NLP
        task = "text_generation" if last and last[0] == embedding[0] else "text_classification"
    sizes: dict[str, bool | int | float | str] = {
        "input_size": inward[1], "hidden_size": across[1], "num_layers": layers,
        "bidirectional": f"{prefix}weight_ih_l0_reverse" in names,
    }  # fmt: skip
    if embedding:
        sizes["vocab_size"] = embedding[0]
    return Guess(
        f"{prefix}weight_ih_l0 {list(inward)} and weight_hh_l0 {list(across)}", family, task, "rnn", kind,
        task_how=Confidence.guessed, layers=layers, sizes=sizes, inputs=TOKENS if family == NLP else (),
    )  # fmt: skip


def _cell(names: Names) -> Guess | None:
    """A single step of one, which its owner repeats: LSTMCell, GRUCell, RNNCell."""
    prefix = names.prefix("weight_ih")
    if prefix is None:
        return None
    inward, across = names.get(f"{prefix}weight_ih"), names.get(f"{prefix}weight_hh")
    if len(inward) != 2 or len(across) != 2 or not across[1] or inward[0] != across[0]:
        return None
    kind = {4: "lstm", 3: "gru", 1: "rnn"}.get(inward[0] // across[1], "rnn")
    evidence = f"{prefix}weight_ih {list(inward)} and weight_hh {list(across)}"
    return Guess(evidence, None, None, "rnn", kind, sizes={"input_size": inward[1], "hidden_size": across[1]})


RULES: tuple[Rule, ...] = (sequence_to_sequence, audio, encoder, decoder, recurrent)
