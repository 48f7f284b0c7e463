"""Declared architectures: their costs, and that frameworks build exactly what is declared."""

from __future__ import annotations

import pytest
import torch

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.declared import describe as describe_model
from hivenode.models.declared import layers_of
from hivenode.models.layers import buffers, tensors
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.torch_models import build

MODELS = [
    ("zoo:logistic", {}, (30,), 2),
    ("zoo:logistic", {}, (1, 8, 8), 10),
    ("zoo:mlp", {}, (13,), 3),
    ("zoo:mlp", {"hidden": 7, "depth": 3}, (1, 8, 8), 10),
    ("zoo:cnn", {}, (1, 8, 8), 10),
    ("zoo:cnn", {"channels": 3, "hidden": 5, "blocks": 1}, (3, 9, 7), 4),
    ("zoo:cnn", {"blocks": 3}, (1, 8, 8), 10),
    ("zoo:resnet18", {"width": 4}, (3, 9, 8), 4),
    ("zoo:lstm", {"width": 5, "layers": 2}, (1, 8, 8), 3),
    ("zoo:lstm", {"width": 5}, (6,), 3),
    ("zoo:vit", {"width": 64, "layers": 2, "heads": 2, "patch": 2}, (1, 8, 8), 3),
]
TEXTS = [
    ("zoo:gpt", {"width": 8, "layers": 2, "heads": 2}, "language"),
    ("zoo:lstm", {"width": 8}, "language"),
    ("zoo:lstm", {"width": 8}, "classification"),
    ("zoo:mlp", {}, "classification"),
]


def data(shape: tuple[int, ...], outputs: int, task: str = "classification", vocabulary: int = 0) -> DataInfo:
    labels = tuple(map(str, range(outputs))) if task == "classification" else ()
    return DataInfo("test:data", 100, shape, outputs, labels, task, vocabulary)


def describe(source, params, shape, classes):
    return describe_model(ModelSpec(source=source, params=params), data(shape, classes))


def declare(source, params, shape, classes):
    layers = layers_of(ModelSpec(source=source, params=params), data(shape, classes))
    assert layers is not None
    return layers


def agrees(layers, cost, inputs, expected) -> None:
    module = build(layers)
    assert sum(parameter.numel() for parameter in module.parameters()) == cost.parameters
    found = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert found == {name: tensor.shape for name, tensor in tensors(layers).items()}
    running = {name: tuple(b.shape) for name, b in module.named_buffers() if b.is_floating_point()}
    assert running == {name: tensor.shape for name, tensor in buffers(layers).items()}
    assert module(inputs).shape == expected


@pytest.mark.parametrize(("source", "params", "shape", "classes"), MODELS)
def test_the_declaration_and_the_torch_module_agree_exactly(source, params, shape, classes) -> None:
    cost, layers = describe(source, params, shape, classes), declare(source, params, shape, classes)
    agrees(layers, cost, torch.zeros(2, *shape), (2, classes))


@pytest.mark.parametrize(("source", "params", "task"), TEXTS)
def test_so_do_those_of_models_for_text(source, params, task) -> None:
    info = data((7,), 11, task, vocabulary=11)
    model = ModelSpec(source=source, params=params)
    layers = layers_of(model, info)
    expected = (2, 7, 11) if task == "language" else (2, 11)
    agrees(layers, describe_model(model, info), torch.ones(2, 7, dtype=torch.int64), expected)


def test_a_decoder_does_not_look_ahead() -> None:
    module = build(
        layers_of(ModelSpec(source="zoo:gpt", params={"width": 8, "heads": 2}), data((7,), 11, "language", 11))
    )
    tokens = torch.randint(1, 11, (1, 7))
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % 11
    assert torch.equal(module(tokens)[:, :-1], module(other)[:, :-1])


@pytest.mark.parametrize(("source", "params", "shape", "classes"), MODELS)
def test_activations_are_what_the_layers_put_out(source, params, shape, classes) -> None:
    cost = describe(source, params, shape, classes)
    module = build(declare(source, params, shape, classes))
    outputs: dict[str, int] = {}
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out.numel() * 4))
    module(torch.zeros(2, *shape))
    assert {layer.name: 2 * layer.activation_bytes for layer in cost.layers} == outputs
    assert cost.activation_bytes_per_sample * 2 >= sum(outputs.values())


@pytest.mark.parametrize(("source", "params", "shape", "classes"), MODELS)
def test_the_products_counted_are_those_that_torch_counts(source, params, shape, classes) -> None:
    """To 40 %: ours count activations too, and torch's leave out recurrent layers."""
    from torch.utils.flop_counter import FlopCounterMode

    if source == "zoo:lstm":
        pytest.skip("torch does not count them")
    with FlopCounterMode(display=False) as counter:
        build(declare(source, params, shape, classes))(torch.zeros(2, *shape))
    flops = describe(source, params, shape, classes).flops_per_sample
    assert counter.get_total_flops() / 2 <= flops <= 1.4 * counter.get_total_flops() / 2 + 1000


def test_costs_of_a_small_model_by_hand() -> None:
    cost = describe("zoo:mlp", {"hidden": 5, "depth": 1}, (4,), 3)
    hidden, output = cost.layers
    assert (hidden.parameters, hidden.flops) == (4 * 5 + 5, 2 * 4 * 5 + 5 + 5)
    assert (output.parameters, output.flops) == (5 * 3 + 3, 2 * 5 * 3 + 3)
    assert cost.parameters == 43
    assert cost.flops_per_sample == 50 + 33


@pytest.mark.parametrize(
    ("source", "params", "shape", "said"),
    [
        ("zoo:cmn", {}, (1, 8, 8), "Did you mean 'zoo:cnn'?"),
        ("zoo:vgg", {}, (1, 8, 8), "zoo:logistic, zoo:mlp, zoo:cnn"),
        ("zoo:mlp", {"hiden": 3}, (4,), "Did you mean 'hidden'?"),
        ("zoo:mlp", {"hidden": 0}, (4,), "1 to 65536"),
        ("zoo:mlp", {"hidden": "64"}, (4,), "whole number"),
        ("zoo:mlp", {"depth": True}, (4,), "whole number"),
        ("zoo:logistic", {"hidden": 3}, (4,), "no parameters"),
        ("zoo:cnn", {}, (30,), "zoo:mlp"),
        ("zoo:cnn", {"blocks": 4}, (1, 8, 8), "at least 16x16"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_way_out(source, params, shape, said) -> None:
    with pytest.raises(InvalidInput) as caught:
        describe(source, params, shape, 3)
    assert said in str(caught.value)
