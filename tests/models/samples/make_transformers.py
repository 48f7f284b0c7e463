"""Makes the samples in `transformers/` and `transformers.json`: tiny models, each saved by its library's own call.

Needs torch, safetensors, transformers, diffusers, peft and flax:

    python tests/models/samples/make_transformers.py

What is expected of each is what the library says of the model: its class, and its parameters counted by torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import nn

OUT = Path(__file__).parent / "transformers"
EXPECTED: dict[str, dict[str, Any]] = {}
TINY = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
NLP = {"family": "nlp", "architecture": "transformer"}
torch.manual_seed(3)


def expect(name: str, network: nn.Module | None, format: str, **fields: Any) -> None:
    EXPECTED[name] = {"format": format, "safe": True} | fields
    if network is not None:
        EXPECTED[name]["parameters"] = sum(parameter.numel() for parameter in network.parameters())


def save(name: str, network: tf.PreTrainedModel, task: str, **fields: Any) -> None:
    network.save_pretrained(OUT / name)
    fields = {"framework": "transformers", "task": task, "model": type(network).__name__} | NLP | fields
    expect(name, network, "transformers_directory", **fields)


def models() -> None:
    bert = tf.BertForSequenceClassification(tf.BertConfig(**TINY))
    save("bert", bert, "text_classification", layers=2)
    gpt = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=16, vocab_size=20))
    save("gpt2", gpt, "text_generation")
    t5_config = tf.T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)
    t5 = tf.T5ForConditionalGeneration(t5_config)
    save("t5", t5, "text2text_generation")
    vit = tf.ViTForImageClassification(
        tf.ViTConfig(
            **{k: v for k, v in TINY.items() if not k.startswith(("vocab", "max"))}, image_size=8, patch_size=4
        )
    )
    save("vit", vit, "image_classification", family="computer_vision")
    whisper = tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20, max_source_positions=8, max_target_positions=8,
            num_mel_bins=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    save("whisper", whisper, "speech_recognition", family="audio")
    llama = tf.LlamaForCausalLM(tf.LlamaConfig(**TINY, num_key_value_heads=1))
    llama.save_pretrained(OUT / "llama_sharded", max_shard_size="2KB")
    fields = {"framework": "transformers", "task": "text_generation", "model": "LlamaForCausalLM", "layers": 2} | NLP
    expect("llama_sharded", llama, "transformers_directory", **fields)
    expect("llama_sharded/model.safetensors.index.json", llama, "safetensors_sharded", architecture="transformer")
    (OUT / "bert_bin").mkdir()
    bert.config.save_pretrained(OUT / "bert_bin")
    torch.save(bert.state_dict(), OUT / "bert_bin" / "pytorch_model.bin")
    fields = {"task": "text_classification", "model": "BertForSequenceClassification"} | NLP
    expect("bert_bin", bert, "transformers_directory", **fields)
    shutil.copytree(OUT / "bert", OUT / "remote_code")
    config = json.loads((OUT / "bert" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
    (OUT / "remote_code" / "config.json").write_text(json.dumps(config))
    expect("remote_code", bert, "transformers_directory", safe=False)
    adapters(llama)


def adapters(llama: nn.Module) -> None:
    import peft

    adapted = peft.get_peft_model(
        llama, peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    )
    adapted.save_pretrained(OUT / "lora")
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    fields = {"task": "text_generation", "model": "LORA", "parameters": trained, "trainable_parameters": trained}
    expect("lora", None, "peft_adapter", framework="peft", **(fields | NLP))


def pipelines() -> None:
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(2, 4), layers_per_block=1, cross_attention_dim=8, norm_num_groups=1,
        attention_head_dim=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(2,), norm_num_groups=1, latent_channels=4, sample_size=8, layers_per_block=1
    )
    text = tf.CLIPTextModel(
        tf.CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
            max_position_embeddings=8,
        )
    )  # fmt: skip
    folder = OUT / "stable_diffusion"
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        part.half().save_pretrained(folder / name)
    diffusers.PNDMScheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    making = {"family": "computer_vision", "task": "text_to_image", "architecture": "diffusion"}
    whole = nn.ModuleList([unet, vae, text])
    expect("stable_diffusion", whole, "diffusers_directory", model="StableDiffusionPipeline", **making)
    expect("stable_diffusion/unet", unet, "diffusers_directory", model="UNet2DConditionModel", **making)


def flax() -> None:
    from flax import serialization

    rng = np.random.default_rng(3)
    params = {"params": {
        "Dense_0": {"kernel": rng.normal(size=(4, 8)).astype("float32"), "bias": np.zeros(8, "float32")},
        "Dense_1": {"kernel": rng.normal(size=(8, 3)).astype("float32"), "bias": np.zeros(3, "float32")},
    }}  # fmt: skip
    (OUT / "dense.msgpack").write_bytes(serialization.to_bytes(params))
    fields = {"framework": "flax", "parameters": 67, "architecture": "neural_network", "family": "tabular"}
    expect("dense.msgpack", None, "flax_msgpack", **fields)


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    models()
    pipelines()
    flax()
    for unwanted in [*OUT.rglob("generation_config.json"), *OUT.rglob("README.md")]:
        unwanted.unlink()
    (OUT.parent / "transformers.json").write_text(json.dumps(EXPECTED, indent=1) + "\n")
