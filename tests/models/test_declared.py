"""Models by declaration: what does not fit its data is told, and the costs of transformers models are exact."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.declared import describe, layers_of
from hivenode.spec.job import parse_job
from hivenode.spec.model import ModelSpec

IMAGES = DataInfo("test:images", 100, (1, 8, 8), 10, tuple("0123456789"), "classification")
TABLE = DataInfo("test:table", 100, (5,), 3, ("a", "b", "c"), "classification")
TEXT = DataInfo("test:text", 100, (7,), 11, (), "language", 11)
TONES = DataInfo("test:tones", 100, (7,), 2, ("good", "bad"), "classification", 11)
PICTURES = DataInfo("test:pictures", 100, (3, 8, 8), 4, ("a", "b", "c", "d"), "classification")


def layers(*given: dict[str, object]) -> ModelSpec:
    return ModelSpec(source="layers:", layers=given)


def test_a_list_of_layers_becomes_a_model_of_the_right_width() -> None:
    made = layers_of(layers({"type": "conv", "outputs": 4}, {"type": "average"}, {"type": "dense"}), IMAGES)
    assert made is not None
    assert [(layer.name, layer.output) for layer in made] == [
        ("conv1", (4, 8, 8)),
        ("average2", (4,)),
        ("output", (10,)),
    ]
    assert describe(layers({"type": "dense"}), IMAGES).parameters == 65 * 10


@pytest.mark.parametrize(
    ("model", "info", "said"),
    [
        (layers({"type": "cnv"}), IMAGES, "Did you mean 'conv'"),
        (layers({"type": "conv", "output": 4}), IMAGES, "Did you mean 'outputs'"),
        (layers({"type": "conv"}, {"type": "dense"}), IMAGES, "lacks 'outputs'"),
        (
            layers({"type": "conv", "outputs": 4}, {"type": "dense"}),
            TABLE,
            "conv1 (conv) cannot take 5: it needs images",
        ),
        (layers({"type": "dense", "outputs": 4}), IMAGES, "puts out 4; test:images needs 10"),
        (layers({"type": "conv", "outputs": 4}), IMAGES, "puts out 4x8x8"),
        (layers({"type": "dense", "activation": "rely"}), IMAGES, "Did you mean 'relu'"),
        (layers({"type": "dropout", "rate": 2}, {"type": "dense"}), IMAGES, "a number from 0.0 to 0.9"),
        (layers({"type": "dense", "name": "a b"}), IMAGES, "named 'a b'"),
        (layers({"type": "embedding", "vocabulary": 9, "width": 4}, {"type": "dense"}), TABLE, "takes text"),
        (layers({"type": "dense"}), TEXT, "takes numbers"),
        (layers({"type": "embedding", "vocabulary": 9, "width": 4}, {"type": "dense"}), TEXT, "Set vocabulary = 11"),
        (ModelSpec(source="zoo:gpt", params={"width": 10, "heads": 4}), TEXT, "a width that is a multiple of 4 heads"),
        (ModelSpec(source="zoo:gpt"), TONES, "for language"),
        (ModelSpec(source="zoo:vit", params={"patch": 3}), IMAGES, "sides are multiples of 3"),
        (ModelSpec(source="zoo:resnet"), IMAGES, "Did you mean 'zoo:resnet18'"),
        (ModelSpec(source="zoo:autoencoder"), IMAGES, "set data.task = 'reconstruction'"),
        (ModelSpec(source="hf:config", config={"model_type": "bert", "hiden_size": 3}), TONES, "'hidden_size'"),
        (ModelSpec(source="hf:config", config={"hidden_size": 3}), TONES, "no model_type"),
        (
            ModelSpec(source="hf:config", config={"model_type": "bert", "vocab_size": 5}),
            TONES,
            "vocab_size = 11 or more",
        ),
        (ModelSpec(source="hf:config", config={"model_type": "vit", "image_size": 9}), PICTURES, "image_size = 8"),
        (ModelSpec(source="hf:config", config={"model_type": "bert", "hidden_size": -3}), TONES, "not whole numbers"),
    ],
)
def test_what_does_not_fit_is_told_with_the_way_out(model: ModelSpec, info: DataInfo, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        describe(model, info)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"source": "zoo"}, "begins with one of zoo:"),
        ({"source": "hf:"}, "lacks a name"),
        ({"source": "pickle:model"}, "is no model"),
        ({"source": "zoo:mlp", "layers": [{"type": "dense"}]}, "belongs to source"),
        ({"source": "hf:config", "config": {"model_type": "x", "auto_map": {}}}, "never run"),
        ({"source": "zoo:mlp", "lora": {}}, "lora adapts hf: models"),
        ({"source": "zoo:mlp", "weights": "http://elsewhere"}, "are no weights"),
    ],
)
def test_declarations_that_contradict_themselves(model: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_job({"name": "j", "model": model})
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(model)


ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
HUB = [
    ({"model_type": "bert", **ENCODER}, TONES),
    ({"model_type": "bert", **ENCODER}, TEXT),
    ({"model_type": "roberta", **ENCODER}, TONES),
    ({"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, TONES),
    ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, TEXT),
    ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, TONES),
    ({"model_type": "llama", **ENCODER, "num_key_value_heads": 1}, TEXT),
    ({"model_type": "qwen2", **ENCODER, "num_key_value_heads": 1}, TONES),
    ({"model_type": "vit", **ENCODER, "patch_size": 4}, PICTURES),
]


@pytest.mark.parametrize(("config", "info"), HUB)
def test_parameters_of_transformers_models_are_exact(config: dict[str, object], info: DataInfo) -> None:
    pytest.importorskip("transformers")
    from hivenode.net.local import Resources
    from hivenode.training.frameworks.making import make

    model = ModelSpec(source="hf:config", config=config)
    made = make("transformers", model, info, 0, Resources(), 1)
    assert made.model.layout.size == describe(model, info).parameters
    other = make("transformers", made.declared, info, 0, Resources(), 1)
    assert other.model.weights.tobytes() == made.model.weights.tobytes(), "it is built again from what is kept of it"


ALIKE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 256}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 1}


@pytest.mark.parametrize("config", [
    {"model_type": "bert", **ALIKE}, {"model_type": "bert", **ALIKE, **STILL},
    {"model_type": "bert", **ALIKE, "hidden_act": "gelu_new"}, GPT2, {**GPT2, "activation_function": "gelu"},
    {**GPT2, "resid_pdrop": 0.0, "attn_pdrop": 0.0}, {"model_type": "llama", **ALIKE, "num_key_value_heads": 1},
])  # fmt: skip
def test_what_transformers_layers_keep_for_the_backward_pass(config: dict[str, object]) -> None:
    """To a fifth of what autograd is seen to save."""
    pytest.importorskip("transformers")
    import torch

    from hivenode.training.frameworks import hub_models

    model, info = (
        ModelSpec(source="hf:config", config=config),
        DataInfo("test:text", 100, (64,), 11, (), "language", 11),
    )
    made = hub_models.plain(model, info, 0, None)
    made.module.train()
    held = {tensor.untyped_storage().data_ptr() for tensor in (*made.module.parameters(), *made.module.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = (made.forward or made.module)(torch.zeros(2, 64, dtype=torch.int64))
    assert sum(saved.values()) == pytest.approx(2 * describe(model, info).activation_bytes_per_sample, rel=0.2)
    del outputs
