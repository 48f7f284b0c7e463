"""Cut models compute the very bits of whole ones, forward and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from hivenode.errors import InvalidInput
from hivenode.training.stages.graph import Place, StageGraph, cut, hollow

Inputs = dict[str, torch.Tensor]


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.m(**inputs).logits


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.short(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([Residual(4, 4), Residual(4, 8), Residual(8, 8)])
        self.out = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((2, 3)))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.first, self.second = nn.LSTM(16, 32, 2, batch_first=True), nn.LSTM(32, 32, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.first(self.tokens(x))[0])[0][:, -1])


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return Logits(BertForSequenceClassification(BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=60,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )))  # fmt: skip


def gpt() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return Logits(GPT2LMHeadModel(GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=60, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, use_cache=False, bos_token_id=1, eos_token_id=1,
    )))  # fmt: skip


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return Logits(T5ForConditionalGeneration(T5Config(
        d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, vocab_size=60, dropout_rate=0.0, use_cache=False,
        decoder_start_token_id=0,
    )))  # fmt: skip


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return Logits(ViTForImageClassification(ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )))  # fmt: skip


TOKENS = torch.arange(36).view(3, 12)
IMAGES = torch.linspace(-1, 1, 3 * 3 * 8 * 8).view(3, 3, 8, 8)
MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs, tuple[str, ...]]] = {
    "resnet": (ResNet, {"x": IMAGES}, ("blocks.1", "blocks.2", "out")),
    "lstm": (Lstm, {"x": TOKENS}, ("second", "out")),
    "bert": (bert, {"input_ids": TOKENS}, ("m.bert.encoder.layer.1", "m.bert.pooler")),
    "gpt": (gpt, {"input_ids": TOKENS}, ("m.transformer.h.1", "m.lm_head")),
    "t5": (t5, {"input_ids": TOKENS, "decoder_input_ids": TOKENS}, ("m.encoder.block.1", "m.decoder.block.1")),
    "vit": (vit, {"pixel_values": IMAGES}, ("m.vit.layers.1", "m.vit.layers.2")),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(7)
    return make().train()


def through(stages: tuple[StageGraph, ...], whole: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Forward and back through all stages with the tensors of a whole module; returns the outputs."""
    parameters, buffers = dict(whole.named_parameters(remove_duplicate=False)), dict(whole.named_buffers())
    flowing: list[torch.Tensor] = list(inputs.values())
    passed = []
    for stage in stages:
        received = [t.detach().requires_grad_(v.differentiable) for t, v in zip(flowing, stage.receives, strict=True)]
        own = [parameters[name] for name in stage.parameters] + [buffers[name] for name in stage.buffers]
        flowing = list(stage.run(*own, *stage.constants, *received))
        for tensor, value in zip(flowing, stage.sends, strict=True):
            assert (tuple(tensor.shape), tensor.dtype) == (value.shape, value.dtype)
        passed.append((received, flowing))
    outputs = flowing[0]
    gradients: list[torch.Tensor | None] = [torch.autograd.grad(loss(outputs), outputs, retain_graph=True)[0]]
    for stage, (received, sent) in zip(reversed(stages), reversed(passed), strict=True):
        pairs = [(tensor, g) for tensor, g in zip(sent, gradients, strict=True) if g is not None]
        torch.autograd.backward([tensor for tensor, _ in pairs], [g for _, g in pairs])
        gradients = [t.grad if v.differentiable else None for t, v in zip(received, stage.receives, strict=True)]
    return outputs


def loss(outputs: torch.Tensor) -> torch.Tensor:
    rows = outputs.flatten(0, -2)
    return functional.cross_entropy(rows, torch.arange(len(rows)) % outputs.shape[-1])


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_model_is_the_whole_one_to_the_bit(name: str) -> None:
    make, inputs, paths = MODELS[name]
    whole = made(make)
    with hollow():
        empty = made(make)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    stages = cut(empty, inputs, [Place(path) for path in paths])
    assert len(stages) == len(paths) + 1
    assert {n for stage in stages for n in stage.parameters} == {n for n, _ in whole.named_parameters()}
    for before, after in pairwise(stages):
        assert before.sends == after.receives

    pieces = copy.deepcopy(whole)
    outputs = through(stages, pieces, inputs)
    expected = whole(**inputs)
    loss(expected).backward()
    assert torch.equal(outputs, expected)
    for (key, one), (_, other) in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key
    for (key, one), (_, other) in zip(whole.named_buffers(), pieces.named_buffers(), strict=True):
        assert torch.equal(one, other), key


def test_tied_tensors_go_by_one_name() -> None:
    make, inputs, _ = MODELS["gpt"]
    stages = cut(made(make), inputs, [Place("m.lm_head")])
    assert set(stages[0].parameters) & set(stages[1].parameters) == {"m.transformer.wte.weight"}


def test_the_end_of_a_submodule() -> None:
    make, inputs, _ = MODELS["vit"]
    stages = cut(made(make), inputs, [Place("m.vit.layers.2", after=True)])
    assert not any("layers" in name for name in stages[1].parameters)
    assert any("layers.2" in name for name in stages[0].parameters)


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loop, self.out = Loop(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.loop(x))


def test_a_model_that_decides_by_its_values_is_refused_with_the_reason() -> None:
    said = r"tracing it stopped at `return x \* 2 if x.sum\(\) > 0 else x` in loop \(Loop\), with "
    with pytest.raises(InvalidInput, match=said):
        cut(Counting(), {"x": torch.ones(3, 4)}, [Place("out")])


@pytest.mark.parametrize(("places", "why"), [
    ([Place("nowhere")], "cut at nowhere: no operation comes from it"),
    ([Place("stem")], "cut at stem: nothing would be left"),
    ([Place("out", after=True)], "cut at the end of out: nothing would be left"),
    ([Place("blocks.2"), Place("blocks.1")], "cut at blocks.1: nothing would be left"),
])  # fmt: skip
def test_places_that_are_none(places: list[Place], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        cut(ResNet(), {"x": IMAGES}, places)
