"""Stages of models from directories begin with the bits that one node does, and read their own tensors alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.model import views
from hivenode.training.frameworks.torch_building import build
from hivenode.training.stages import blueprint as blueprints
from tests.training.stages.test_blueprint import HUB, LARGE, PAIRS, PICTURES, SIZES, TEXT, TOKENS, memory_of_a_stage

pytest.importorskip("transformers")
import transformers
from safetensors.torch import load_file, save_file

ROOM = {"vocab_size": 100, "max_position_embeddings": 64}
MODEL = ModelSpec(source="hf:base")


def saved(path: Path, kind: str, config: dict[str, Any], **how: Any) -> Path:
    """Of a class of transformers, by its own numbers."""
    torch.manual_seed(1)
    cls = getattr(transformers, kind)
    cls(cls.config_class(**config)).save_pretrained(path, **how)
    return path


def bert(path: Path, kind: str = "BertForSequenceClassification", **more: Any) -> Path:
    return saved(path, kind, {**SIZES, **ROOM, **more})


def renamed(change: Callable[[str], str], **how: Any) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        tensors = load_file(bert(path, **how) / "model.safetensors")
        tensors = {change(name): tensor for name, tensor in tensors.items()}
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path

    return make


def old(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def halved(path: Path) -> Path:
    cls = transformers.BertForSequenceClassification
    cls(transformers.BertConfig(**SIZES, **ROOM)).to(torch.bfloat16).save_pretrained(path)
    return path


def doubled(path: Path) -> Path:
    """Both names of a tied tensor, as it was written when it was not."""
    saved(path, "GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": True})
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def head_alone(path: Path) -> Path:
    saved(path, "GPT2LMHeadModel", GPT2)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


SIDES = {"image_size": 8, "num_channels": 1}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}
DIRECTORIES: dict[str, tuple[Callable[[Path], Path], DataInfo]] = {
    "another head": (lambda path: bert(path, num_labels=3), TOKENS),
    "the same head": (lambda path: bert(path, num_labels=10), TOKENS),
    "no head": (lambda path: bert(path, "BertModel"), TOKENS),
    "a masked language model": (lambda path: bert(path, "BertForMaskedLM"), TOKENS),
    "gamma and beta": (renamed(old), TOKENS),
    "gamma and beta, no prefix": (renamed(old, kind="BertModel"), TOKENS),
    "bfloat16": (halved, TOKENS),
    "shards": (lambda path: saved(path, "BertModel", {**SIZES, **ROOM}, max_shard_size="4KB"), TOKENS),
    "a decoder": (lambda path: bert(path, "BertLMHeadModel", is_decoder=True), TEXT),
    "tied": (lambda path: saved(path, "GPT2LMHeadModel", GPT2), TEXT),
    "tied and both there": (doubled, TEXT),
    "tied and the other there": (head_alone, TEXT),
    "t5": (
        lambda path: saved(path, "T5ForConditionalGeneration", {**HUB["t5"][0], "vocab_size": 40}),
        PAIRS,
    ),
    "vit": (lambda path: saved(path, "ViTModel", {**SIZES, "patch_size": 4, **SIDES}), PICTURES),
    "llama": (lambda path: saved(path, "LlamaForCausalLM", {**SIZES, **ROOM}), TEXT),
    "resnet": (lambda path: statistics(saved(path, "ResNetModel", {**HUB["resnet"][0], "num_channels": 1})), PICTURES),
}  # fmt: skip


def statistics(path: Path) -> Path:
    """Running means of a model that was trained."""
    tensors = load_file(path / "model.safetensors")
    tensors = {n: torch.full_like(t, 3) if "running" in n or "tracked" in n else t for n, t in tensors.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def unlike(path: Path) -> Path:
    """Both names of a tensor that is no longer tied."""
    tensors = load_file(doubled(path) / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def compare(path: Path, info: DataInfo, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Assert that stages begin as one node does; returns how often the whole was made for them."""
    resources, made = Resources(directories={"base": str(path)}), []
    whole, declared = build(MODEL, info, 3, resources)

    def counted(*given: Any) -> Any:
        made.append(1)
        return build(*given)

    monkeypatch.setattr(blueprints, "build", counted)
    plan = blueprints.blueprint(MODEL, info, 3, resources)
    assert {parameter.device.type for parameter in plan.module.parameters()} == {"meta"}
    assert plan.declared == declared
    assert plan.afresh == whole.afresh
    assert list(plan.layout.parameters.items()) == list(whole.layout.parameters.items())
    assert plan.layout.buffers == whole.layout.buffers
    shapes = {**whole.layout.parameters, **whole.layout.buffers}
    for key, expected in views(np.concatenate([whole.start, whole.buffers]), shapes).items():
        target = np.full(expected.size, np.nan, np.float32)
        plan.start(key, target)
        assert np.array_equal(target, expected.ravel()), key
    ours = {key.removeprefix("model."): buffer for key, buffer in plan.module.named_buffers()}
    assert all(torch.equal(ours[key], buffer) for key, buffer in whole.module.named_buffers())
    return made


@pytest.mark.parametrize("name", DIRECTORIES)
def test_stages_begin_with_what_one_node_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, info = DIRECTORIES[name]
    assert not compare(make(tmp_path), info, monkeypatch), "the whole is never made"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_reads_its_own_part_of_a_directory(tmp_path: Path) -> None:
    large = LARGE | {"hidden_size": 512, "intermediate_size": 2048}
    small = bert(tmp_path / "small")
    other = saved(tmp_path / "large", "BertModel", {**large, **ROOM})
    taken, own, whole = memory_of_a_stage(large, str(small), str(other))
    assert own < whole / 7
    assert taken < own + whole / 5, "its own tensors and their pages, and what the tracer takes"


def test_a_head_that_begins_by_chance_is_told_and_nothing_else_may(tmp_path: Path) -> None:
    lent = Resources(directories={"base": str(bert(tmp_path, "BertModel"))})
    assert build(MODEL, TOKENS, 3, lent)[0].afresh == ("classifier.weight", "classifier.bias")
    tensors = {f"other.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for begin in (build, blueprints.blueprint):
        with pytest.raises(InvalidInput, match="No tensor of hf:base fits a BertForSequenceClassification"):
            begin(MODEL, TOKENS, 3, lent)


def test_what_is_more_than_renamed_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(compare(unlike(tmp_path), TEXT, monkeypatch)) == 1
