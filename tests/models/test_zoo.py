"""Declared architectures: their costs, and that frameworks build exactly what is declared."""

from __future__ import annotations

import pytest
import torch

from hivenode.errors import InvalidInput
from hivenode.models.zoo import declare, describe, tensor_shapes
from hivenode.training.frameworks.torch_models import build

MODELS = [
    ("zoo:logistic", {}, (30,), 2),
    ("zoo:logistic", {}, (1, 8, 8), 10),
    ("zoo:mlp", {}, (13,), 3),
    ("zoo:mlp", {"hidden": 7, "depth": 3}, (1, 8, 8), 10),
    ("zoo:cnn", {}, (1, 8, 8), 10),
    ("zoo:cnn", {"channels": 3, "hidden": 5, "blocks": 1}, (3, 9, 7), 4),
    ("zoo:cnn", {"blocks": 3}, (1, 8, 8), 10),
]


@pytest.mark.parametrize(("source", "params", "shape", "classes"), MODELS)
def test_the_declaration_and_the_torch_module_agree_exactly(source, params, shape, classes) -> None:
    cost = describe(source, params, shape, classes)
    layers = declare(source, params, shape, classes)
    module = build(layers)
    assert sum(parameter.numel() for parameter in module.parameters()) == cost.parameters
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == tensor_shapes(layers)
    assert module(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(("source", "params", "shape", "classes"), MODELS)
def test_activations_are_what_the_layers_put_out(source, params, shape, classes) -> None:
    cost = describe(source, params, shape, classes)
    module = build(declare(source, params, shape, classes))
    outputs: dict[str, int] = {}
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out.numel() * 4))
    module(torch.zeros(1, *shape))
    assert {layer.name: layer.activation_bytes for layer in cost.layers} == outputs
    assert cost.activation_bytes_per_sample == sum(outputs.values())


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
        ("zoo:cnn", {"blocks": 4}, (1, 8, 8), "fewer blocks"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_way_out(source, params, shape, said) -> None:
    with pytest.raises(InvalidInput) as caught:
        describe(source, params, shape, 3)
    assert said in str(caught.value)
