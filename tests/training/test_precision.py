"""Training in bfloat16 and float16: close to float32 and not the same, for every kind of layer; what is kept stays
float32. In float16 the loss is multiplied so that small gradients do not vanish."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.data.info import DataInfo
from hivenode.data.reading import read
from hivenode.errors import Corrupted, InvalidInput
from hivenode.net.local import Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.job import parse_job
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Precision, Share
from hivenode.training import loss_scale
from hivenode.training.frameworks.making import Made, make
from hivenode.training.loop import Training
from hivenode.training.loss_scale import finite
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.making import way_of
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Course

IMAGES = DataInfo("test", 100, (1, 8, 8), 3, ("a", "b", "c"), "classification")
TEXT = DataInfo("test", 100, (9,), 11, (), "language", vocabulary=11)
TOKENS = DataInfo("test", 100, (9,), 3, ("a", "b", "c"), "classification", vocabulary=11)
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

NORMALISED = ({"type": "conv", "outputs": 4}, {"type": "batch_norm"}, {"type": "flatten"}, {"type": "dense"})

CASES = {
    "cnn": ("torch", IMAGES, ModelSpec(source="zoo:cnn", params={"channels": 4})),
    "batch norm": ("torch", IMAGES, ModelSpec(source="layers:", layers=NORMALISED)),
    "vit": ("torch", IMAGES, ModelSpec(source="zoo:vit", params={"width": 16, "layers": 1, "heads": 2})),
    "lstm": ("torch", TOKENS, ModelSpec(source="zoo:lstm", params={"width": 16})),
    "gpt": ("torch", TEXT, ModelSpec(source="zoo:gpt", params={"width": 16, "layers": 1, "heads": 2})),
    "bert": ("transformers", TOKENS, ModelSpec(source="hf:config", config=BERT)),
    "keras cnn": ("keras", IMAGES, ModelSpec(source="zoo:cnn", params={"channels": 4})),
}


def batch(info: DataInfo) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if not info.vocabulary:
        return rng.normal(size=(16, *info.input_shape)).astype(np.float32), rng.integers(0, info.outputs, 16)
    tokens = rng.integers(1, info.vocabulary, (16, *info.input_shape))
    return tokens, tokens if info.task == "language" else rng.integers(0, info.outputs, 16)


@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_in_half_precision_are_close_to_those_in_fp32(name: str, half: Precision) -> None:
    framework, info, model = CASES[name]
    inputs, labels = batch(info)

    def learnt(precision: Precision) -> tuple[Made, float]:
        made = make(framework, model, info, 1, Resources(), 1, precision)
        return made, made.model.backward(inputs, labels, scale=1024.0 if precision == "fp16" else 1.0)

    exact, loss = learnt("fp32")
    coarse, near = learnt(half)
    assert near == pytest.approx(loss, rel=0.03)
    one, other = exact.vector[:-1], coarse.vector[:-1]
    assert other.dtype == np.float32
    assert not np.array_equal(one, other) or (name, half) == ("lstm", "fp16")  # most processors have none in float16
    assert one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) > 0.98
    assert coarse.model.weights.dtype == np.float32
    assert np.array_equal(exact.model.weights, coarse.model.weights)
    correct, held_out = coarse.model.evaluate(inputs, labels)
    assert 0 <= correct <= labels.size
    assert held_out / 16 == pytest.approx(loss, rel=0.1)


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_estimators_keep_to_their_own(half: str) -> None:
    job = {"name": "x", "model": {"source": "sklearn:SGDClassifier"}, "training": {"precision": half}}
    with pytest.raises(InvalidInput, match="estimators compute in their own"):
        parse_job(job)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_loss_multiplied_by_too_much_is_seen_by_its_gradient(framework: str) -> None:
    made = make(framework, CASES["cnn"][2], IMAGES, 1, Resources(), 1, "fp16")
    loss = made.model.backward(*batch(IMAGES), scale=2.0**30)
    assert math.isfinite(loss)
    assert not finite(made.vector[:-1])


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5))
def test_the_loss_scale_follows_the_rule_of_pytorch(fitting: list[bool], calm: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.amp.GradScaler("cpu", init_scale=loss_scale.FIRST, growth_interval=calm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "CALM_STEPS", calm)
        ours = loss_scale.LossScale()
        for fits in fitting:
            theirs.scale(weight.sum())
            weight.grad = torch.tensor([1.0 if fits else math.inf])
            before = weight.item()
            theirs.step(optimizer)
            theirs.update()
            assert ours.judge(fits) == (weight.item() != before)
            assert ours.value == theirs.get_scale()
            kept, ours = ours.scalars(), loss_scale.LossScale()
            ours.restore(kept)


@pytest.mark.parametrize("scale", [math.inf, math.nan, 0.0, -2.0, 2.0**128])
def test_a_saved_loss_scale_that_makes_no_sense_is_not_taken(scale: float) -> None:
    ours = loss_scale.LossScale()
    with pytest.raises(ValueError, match="cannot be multiplied by"):
        ours.restore({loss_scale.SCALE: scale.hex(), loss_scale.CALM: "0"})
    assert ours.value == loss_scale.FIRST


@pytest.mark.parametrize("calm", [-1, loss_scale.CALM_STEPS])
def test_nor_is_a_count_of_steps_that_it_never_reaches(calm: int) -> None:
    with pytest.raises(ValueError, match=f"unchanged for {calm} steps"):
        loss_scale.LossScale().restore({loss_scale.SCALE: (2.0).hex(), loss_scale.CALM: str(calm)})


def test_a_checkpoint_with_such_a_loss_scale_is_corrupted() -> None:
    data = read(DataSpec(source="sklearn:wine"))
    spec, collective = TrainingSpec(precision="fp16"), Alone("a")
    made = make("torch", ModelSpec(source="zoo:mlp"), data.info, 1, Resources(), 1, "fp16")
    group = Group("a", (Share("a", 0, 1.0, 0.01, 1 << 20),), collective, lambda message: None, lambda: None)
    course = Course(data, spec, group)
    way = way_of(spec, group, course, made.model, made.vector, lambda message: None, "fp16")
    run = Training(
        spec=spec, group=group, way=way, model=made.model, course=course, data=data, collective=collective,
        report=lambda message: None, save=lambda state: None,
    )  # fmt: skip
    state = run.state()
    run.resume(state)
    with pytest.raises(Corrupted, match="step 0 is incomplete: the loss cannot be multiplied by inf"):
        run.resume(replace(state, scalars={**state.scalars, loss_scale.SCALE: math.inf.hex()}))
    with pytest.raises(Corrupted, match="incomplete: 'loss_scale"):
        run.resume(replace(state, scalars={key: said for key, said in state.scalars.items() if "loss" not in key}))
