"""PyTorch behind `frameworks.model.Model`."""

from __future__ import annotations

from math import prod

import torch
from torch.nn import functional

from hivenode.models.zoo import Layer, tensor_shapes
from hivenode.training.frameworks.model import Inputs, Labels, Vector
from hivenode.training.frameworks.torch_models import build

EVALUATION_BATCH = 1024


class TorchModel:
    """`Model` on the CPU.

    Args:
        layers: the declared architecture.
        weights: initial values, (parameters,); taken over, not copied.
        gradient: (parameters,); where gradients go.
        threads: for the operations of one step.
    """

    def __init__(self, layers: tuple[Layer, ...], weights: Vector, gradient: Vector, threads: int) -> None:
        torch.set_num_threads(threads)
        self._module = build(layers)
        self._weights = weights
        self._gradient = gradient
        flat_weights, flat_gradient = torch.from_numpy(weights), torch.from_numpy(gradient)
        start = 0
        parameters = dict(self._module.named_parameters())
        for name, shape in tensor_shapes(layers).items():
            parameter = parameters.pop(name)
            end = start + prod(shape)
            parameter.data = flat_weights[start:end].view(shape)
            parameter.grad = flat_gradient[start:end].view(shape)  # backward adds to it in place
            start = end
        assert not parameters
        assert start == len(weights)

    @property
    def weights(self) -> Vector:
        return self._weights

    def backward(self, inputs: Inputs, labels: Labels) -> float:
        self._gradient.fill(0.0)
        logits = self._module(torch.from_numpy(inputs))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        return float(loss.detach())

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        correct, total = 0, 0.0
        with torch.inference_mode():
            for start in range(0, len(inputs), EVALUATION_BATCH):
                logits = self._module(torch.from_numpy(inputs[start : start + EVALUATION_BATCH]))
                expected = torch.from_numpy(labels[start : start + EVALUATION_BATCH])
                correct += int((logits.argmax(1) == expected).sum())
                total += float(functional.cross_entropy(logits, expected, reduction="sum"))
        return correct, total

    def predict(self, inputs: Inputs) -> Inputs:
        with torch.inference_mode():
            probabilities: Inputs = torch.softmax(self._module(torch.from_numpy(inputs)), dim=1).numpy()
        return probabilities
