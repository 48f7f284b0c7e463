"""The same declaration built by keras and by PyTorch: the same tensors, outputs, losses and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.making import make

IMAGES = DataInfo("test", 100, (2, 8, 6), 3, ("a", "b", "c"), "classification")
TEXT = DataInfo("test", 100, (7,), 3, ("a", "b", "c"), "classification", vocabulary=11)
VALUES = DataInfo("test", 100, (5,), 2, ("a", "b"), "regression")

CASES = {
    "cnn": (IMAGES, ModelSpec(source="zoo:cnn")),
    "mlp": (VALUES, ModelSpec(source="zoo:mlp", params={"depth": 2})),
    "strided": (
        IMAGES,
        ModelSpec(
            source="layers:",
            layers=(
                {"type": "conv", "outputs": 4, "kernel": 5, "stride": 2, "activation": "gelu"},
                {"type": "upsample", "factor": 2},
                {"type": "average"},
                {"type": "layer_norm"},
                {"type": "activation", "function": "tanh"},
                {"type": "dense"},
            ),
        ),
    ),
    "normalised": (
        IMAGES,
        ModelSpec(source="layers:", layers=({"type": "batch_norm"}, {"type": "flatten"}, {"type": "dense"})),
    ),
    "lines": (
        IMAGES,
        ModelSpec(
            source="layers:",
            layers=({"type": "steps"}, {"type": "lstm", "width": 5, "layers": 2}, {"type": "last"}, {"type": "dense"}),
        ),
    ),
    "text": (
        TEXT,
        ModelSpec(
            source="layers:",
            layers=(
                {"type": "embedding", "vocabulary": 11, "width": 6, "positions": False},
                {"type": "lstm", "width": 5},
                {"type": "dense", "outputs": 4, "activation": "sigmoid"},
                {"type": "average"},
                {"type": "dense"},
            ),
        ),
    ),
}


def batch(info: DataInfo) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if info.vocabulary:
        inputs = rng.integers(0, info.vocabulary, (9, *info.input_shape))
    else:
        inputs = rng.standard_normal((9, *info.input_shape), np.float32)
    if info.task == "regression":
        return inputs, rng.standard_normal((9, info.outputs), np.float32)
    return inputs, rng.integers(0, info.outputs, 9)


@pytest.mark.parametrize("case", CASES)
def test_keras_computes_what_pytorch_computes(case: str) -> None:
    info, declared = CASES[case]
    torch = make("torch", declared, info, 1, Resources(), 1)
    keras = make("keras", declared, info, 1, Resources(), 1)
    assert keras.model.layout == torch.model.layout
    assert keras.model.weights.tobytes() == torch.model.weights.tobytes()
    inputs, labels = batch(info)
    noise = np.random.default_rng(1).standard_normal(torch.model.weights.size).astype(np.float32) * 0.1
    for made in (torch, keras):
        made.model.weights[:] += noise
    losses = [made.model.backward(inputs, labels) for made in (torch, keras)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert np.allclose(torch.vector[:-1], keras.vector[:-1], atol=1e-5)
    assert np.allclose(torch.model.buffers, keras.model.buffers, atol=0.02)  # PyTorch's variance is the unbiased one
    torch.model.buffers[:] = keras.model.buffers
    first, second = torch.model.evaluate(inputs, labels), keras.model.evaluate(inputs, labels)
    assert first[0] == second[0]
    assert first[1] == pytest.approx(second[1], abs=1e-4)
    assert np.allclose(torch.model.predict(inputs), keras.model.predict(inputs), atol=1e-5)


def test_a_layer_that_keras_does_not_build_is_named() -> None:
    layers = ({"type": "residual", "outputs": 4}, {"type": "average"}, {"type": "dense"})
    with pytest.raises(InvalidInput, match=r"keras does not build the layer \w+ \(residual\)"):
        make("keras", ModelSpec(source="layers:", layers=layers), IMAGES, 1, Resources(), 1)
