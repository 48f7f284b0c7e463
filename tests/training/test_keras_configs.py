"""Configurations of keras as models that train: their tensors, first values, order of axes, and what stays fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.declared import describe
from hivenode.models.keras_configs.files import read
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.making import Made, make

PICTURES = DataInfo("pictures", 100, (2, 8, 6), 3, ("a", "b", "c"), "classification")
LINES = DataInfo("lines", 100, (96,), 3, ("a", "b", "c"), "classification")
TEXT = DataInfo("text", 100, (7,), 11, (), "language", vocabulary=11)
SAME = DataInfo("same", 100, (2, 8, 6), 96, (), "reconstruction")

Config = dict[str, Any]


def layer(kind: str, **config: object) -> Config:
    return {"class_name": kind, "config": config}


def model(*layers: Config) -> ModelSpec:
    return ModelSpec(source="keras:config", config={"class_name": "Sequential", "config": {"layers": list(layers)}})


def built(spec: ModelSpec, info: DataInfo, seed: int = 1) -> Made:
    return make("keras", spec, info, seed, Resources(), 1)


def batch(info: DataInfo, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if info.vocabulary:
        tokens = rng.integers(0, info.vocabulary, (count, info.input_shape[0] + 1))
        return tokens[:, :-1], tokens[:, 1:]
    inputs = rng.standard_normal((count, *info.input_shape), np.float32)
    if info.task == "reconstruction":
        return inputs, inputs.reshape(count, -1)
    return inputs, rng.integers(0, info.outputs, count)


END = (layer("Flatten"), layer("Dense", units=3, activation="softmax"))
LSTM = layer("LSTM", units=3, return_sequences=True, dropout=0.1)
CASES = {
    "pictures": (
        PICTURES,
        model(
            layer("Conv2D", filters=4, kernel_size=[3, 3], padding="same", activation="relu"),
            layer("BatchNormalization"),
            layer("SeparableConv2D", filters=6, kernel_size=[3, 3], depth_multiplier=2),
            layer("DepthwiseConv2D", kernel_size=[3, 3]),
            layer("PReLU", shared_axes=[1, 2]),
            layer("Conv2DTranspose", filters=4, kernel_size=[3, 3], strides=[2, 2]),
            layer("GroupNormalization", groups=2),
            layer("RMSNormalization"),
            layer("UpSampling2D", size=[2, 2]),
            layer("ZeroPadding2D", padding=[[1, 1], [0, 2]]),
            layer("Cropping2D", cropping=[[1, 2], [1, 1]]),
            layer("MaxPooling2D", pool_size=[2, 2]),
            layer("GlobalAveragePooling2D"),
            *END,
        ),
    ),
    "lines": (
        LINES,
        model(
            layer("Reshape", target_shape=[12, -1]),
            layer("Conv1D", filters=6, kernel_size=[3], padding="causal", dilation_rate=[2]),
            layer("TimeDistributed", layer=layer("Dense", units=5)),
            layer("LayerNormalization"),
            layer("Bidirectional", layer=LSTM),
            layer("GRU", units=4, return_sequences=True, reset_after=False),
            layer("SimpleRNN", units=4),
            layer("RepeatVector", n=3),
            layer("Permute", dims=[2, 1]),
            layer("Conv1DTranspose", filters=3, kernel_size=[2]),
            *END,
        ),
    ),
    "text": (
        TEXT,
        model(
            layer("Embedding", input_dim=11, output_dim=6),
            layer("GRU", units=4, return_sequences=True),
            layer("Dense", units=11),
        ),
    ),
    "same": (
        SAME,
        model(
            layer("Conv2D", filters=4, kernel_size=[3, 3], padding="same"),
            layer("Conv2D", filters=2, kernel_size=[3, 3], padding="same"),
        ),
    ),
    "within": (
        PICTURES,
        model(
            layer("Flatten"),
            {
                "class_name": "Sequential",
                "config": {"name": "inner", "layers": [layer("Dense", units=5, name="dense")]},
            },
            layer("Dense", units=3, name="dense"),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_what_was_described_and_learns(case: str) -> None:
    info, spec = CASES[case]
    made, again = built(spec, info), built(spec, info)
    assert made.model.layout.size == describe(spec, info).parameters
    assert made.model.weights.tobytes() == again.model.weights.tobytes()
    assert built(spec, info, 2).model.weights.tobytes() != made.model.weights.tobytes()
    inputs, labels = batch(info)
    before = made.model.backward(inputs, labels, 7)
    slopes = made.vector[:-1].copy()
    assert again.model.backward(inputs, labels, 7) == before
    assert np.abs(slopes).max() > 0
    made.model.weights[:] -= 0.01 / np.linalg.norm(slopes) * slopes
    assert made.model.backward(inputs, labels, 7) < before
    assert np.isfinite(made.model.predict(inputs)).all()


def test_tensors_are_called_by_their_layers_and_begin_as_declared() -> None:
    info, spec = CASES["within"]
    made = built(spec, info).model
    shapes = {"inner/dense/kernel": (96, 5), "inner/dense/bias": (5,), "dense/kernel": (5, 3), "dense/bias": (3,)}
    assert dict(made.layout.parameters) == shapes
    assert made.weights[:480].std() == pytest.approx((2 / 101) ** 0.5, rel=0.1)  # Glorot's
    assert not made.weights[480:485].any()


def test_pictures_come_channels_last_and_go_as_they_came() -> None:
    inputs, _ = batch(SAME)
    nothing = model(layer("DepthwiseConv2D", kernel_size=[1, 1], use_bias=False, depthwise_initializer="ones"))
    assert np.array_equal(built(nothing, SAME).model.predict(inputs), inputs.reshape(len(inputs), -1))
    mean = model(layer("GlobalAveragePooling2D"), layer("Dense", units=3, kernel_initializer="Ones"))
    outputs = built(mean, PICTURES).model
    outputs.weights[:] = [1, 0, 0, 0, 1, 0, 0, 0, 0]
    found = np.log(outputs.predict(inputs))
    means = inputs.mean((2, 3))
    assert np.allclose(found[:, 0] - found[:, 1], means[:, 0] - means[:, 1], atol=1e-5)


def test_a_softmax_at_the_end_is_not_taken_twice() -> None:
    inputs, labels = batch(LINES)
    models = [built(model(layer("Dense", units=3, **given)), LINES).model for given in ({"activation": "softmax"}, {})]
    assert models[0].backward(inputs, labels) == models[1].backward(inputs, labels)
    assert np.array_equal(models[0].predict(inputs), models[1].predict(inputs))


def test_regularisers_count_and_frozen_layers_stay(tmp_path: Path) -> None:
    penal = {"class_name": "L2", "config": {"l2": 0.5}}
    plain, heavy = (
        built(model(layer("Dense", units=3, name="d", **given)), LINES) for given in ({}, {"kernel_regularizer": penal})
    )
    inputs, labels = batch(LINES)
    added = heavy.model.backward(inputs, labels) - plain.model.backward(inputs, labels)
    kernel = plain.model.weights[: 96 * 3]
    assert added == pytest.approx(0.5 * float(np.square(kernel).sum()), rel=1e-4)
    assert np.allclose(heavy.vector[: 96 * 3] - plain.vector[: 96 * 3], kernel, atol=1e-5)
    frozen = model(layer("Dense", units=4, name="base", trainable=False), layer("Dense", units=3, name="head"))
    made = built(frozen, LINES)
    assert list(made.model.layout.parameters) == ["head/kernel", "head/bias"]
    assert describe(frozen, LINES).parameters == 96 * 4 + 4 + made.model.layout.size
    path = tmp_path / "base.safetensors"
    given = np.random.default_rng(3).standard_normal((96, 4), np.float32)
    save_file({"base/kernel": given}, path)
    onward = frozen.model_copy(update={"weights": f"blob:{'a' * 64}/1"})
    again = make("keras", onward, LINES, 1, Resources(blobs={"a" * 64: str(path)}), 1)
    assert np.array_equal(again.model.constants["base/kernel"], given)
    assert again.afresh == ("head/kernel", "head/bias", "base/bias")
    assert not np.allclose(again.model.predict(inputs), made.model.predict(inputs))


def test_a_setting_that_keras_does_not_have_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"keras [\d.]+ does not build the configuration: .*unites"):
        built(model(layer("Dense", units=3, unites=4)), LINES)


def test_the_ready_configuration_is_built_as_it_is_described() -> None:
    spec = ModelSpec(source="keras:config", config=read(Path("configs/jobs/keras_config.json").resolve()))
    info = DataInfo("digits", 100, (1, 8, 8), 10, tuple("0123456789"), "classification")
    assert built(spec, info).model.layout.size == describe(spec, info).parameters
