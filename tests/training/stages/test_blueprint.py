"""What a stage knows of the whole model."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from hivenode.data.sources import information
from hivenode.net.local import Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.training.stages import blueprint

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def test_the_whole_model_of_transformers_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    model, info = ModelSpec(source="hf:config", config=BERT), information(DataSpec(source="sklearn:digit_tokens"))
    wholes = []
    build = blueprint.build

    def watched(*given: Any) -> Any:
        made = build(*given)
        wholes.append(weakref.ref(made[0].start))
        return made

    monkeypatch.setattr(blueprint, "build", watched)
    plan = blueprint.blueprint(model, info, 0, Resources())
    name, shape = "classifier.weight", (10, 16)
    assert plan.layout.parameters[name] == shape
    first = np.zeros(160, np.float32)
    plan.start(name, first)
    assert first.any()
    assert {parameter.device.type for parameter in plan.module.parameters()} == {"meta"}
    assert wholes[0]() is not None
    plan.forget()
    gc.collect()
    assert wholes[0]() is None
