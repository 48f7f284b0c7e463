"""What a stage knows of the whole model, and that it never holds it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hivenode.data.info import DataInfo
from hivenode.data.sources import information
from hivenode.errors import InvalidInput
from hivenode.net.local import Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks.model import views
from hivenode.training.frameworks.torch_building import build
from hivenode.training.stages import blueprint

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS, TEXT, PICTURES = (
    information(DataSpec(source=f"sklearn:{n}")) for n in ("digit_tokens", "descriptions", "digits")
)
PAIRS = DataInfo("pairs", 60, (16,), 30, (), "text_to_text", vocabulary=30)
BERT = {"model_type": "bert", **SIZES}
HUB: dict[str, tuple[dict[str, Any], DataInfo]] = {
    "bert": (BERT, TOKENS),
    "bert-decoder": (BERT, TEXT),
    "gpt2": ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}, TEXT),
    "t5": ({"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2}, PAIRS),
    "vit": ({"model_type": "vit", "patch_size": 4, **SIZES}, PICTURES),
    "llama": ({"model_type": "llama", **SIZES}, TEXT),
    "resnet": ({"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, PICTURES),
}


@pytest.mark.parametrize("name", HUB)
def test_stages_begin_with_the_bits_that_one_node_does(name: str) -> None:
    pytest.importorskip("transformers")
    config, info = HUB[name]
    model = ModelSpec(source="hf:config", config=config)
    whole, declared = build(model, info, 3, Resources())
    plan = blueprint.blueprint(model, info, 3, Resources())
    assert {parameter.device.type for parameter in plan.module.parameters()} == {"meta"}
    assert plan.declared == declared
    assert list(plan.layout.parameters.items()) == list(whole.layout.parameters.items())
    assert plan.layout.buffers == whole.layout.buffers
    shapes = {**whole.layout.parameters, **whole.layout.buffers}
    for key, expected in views(np.concatenate([whole.start, whole.buffers]), shapes).items():
        target = np.full(expected.size, np.nan, np.float32)
        plan.start(key, target)
        assert np.array_equal(target, expected.ravel()), key
    ours = {key.removeprefix(blueprint.WHOLE): buffer for key, buffer in plan.module.named_buffers()}
    theirs = dict(whole.module.named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], buffer) for key, buffer in theirs.items())


class Odd(nn.Module):
    """Begun in every way that is followed, and in one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)
        self.given = nn.Parameter(torch.full((3,), 0.25))
        self.ramp = nn.Parameter(torch.arange(3.0))
        self.scaled, self.chosen, self.gates, self.copied, self.turned, self.still, self.sorted = (
            nn.Parameter(torch.zeros(4, 4) if number % 2 else torch.empty(4, 4)) for number in range(7)
        )
        nn.init.constant_(self.scaled, 2.0)
        nn.init.trunc_normal_(self.chosen)
        nn.init.ones_(self.gates)
        nn.init.normal_(self.still, 3.0, 0.0)
        nn.init.orthogonal_(self.turned)
        with torch.no_grad():
            self.scaled.mul_(-0.1).add_(1)
            self.chosen[1].zero_()
            self.gates[:2].fill_(1.0)
            self.copied.copy_(torch.full((4, 4), 7.0))
            self.sorted.copy_(self.chosen.sort().values)


def test_what_tensors_would_begin_as_is_told_without_their_memory() -> None:
    pytest.importorskip("transformers")
    from hivenode.training.stages.starts import UNKNOWN, VARIED, Starts

    starts = Starts()
    with starts.watching():
        empty = Odd()
    told = {name: starts.of(parameter) for name, parameter in empty.named_parameters()}
    assert told.pop("sorted") == UNKNOWN
    real = {name: parameter for name, parameter in Odd().named_parameters() if name in told}
    assert told == {
        name: float(parameter.flatten()[0]) if parameter.min() == parameter.max() else VARIED
        for name, parameter in real.items()
    }


LARGE = {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 4096}
"""Of 103 million parameters, 412 MB; a stage of one block has 13 million."""
CHILD = """
import sys, torch
from hivenode.data.sources import information
from hivenode.errors import InvalidInput
from hivenode.net.local import Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import hub_models
from hivenode.training.stages.blueprint import blueprint
from hivenode.training.stages.stage import Cutting, Stage

def begun(sizes, cuts, directory=None):
    model = ModelSpec(source="hf:config", config={"model_type": "bert", **sizes})
    lent = Resources(directories={"base": directory})
    model = model if directory is None else ModelSpec(source="hf:base")
    made = blueprint(model, information(DataSpec(source="sklearn:digit_tokens")), 0, lent)
    cutting = Cutting(made, lambda samples: torch.zeros(samples, 64, dtype=torch.int64), cuts)
    held, running = cutting.holdings(2)
    stage = Stage(cutting, 1, held, running)
    for name, part in held.parts(1).items():
        made.start(name, stage.weights[part])
    return len(stage.weights), sum(map(torch.Size.numel, map(torch.Size, made.layout.parameters.values())))

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

begun(SMALL, (1, 2), *sys.argv[1:2])
before = peak()
own, whole = begun(LARGE, (4, 5), *sys.argv[2:])
print(peak() - before, 4 * own, 4 * whole)
"""


def memory_of_a_stage(large: dict[str, int], *directories: str) -> tuple[int, ...]:
    """What beginning the fifth block took in a process of its own, what its tensors take, and those of all; bytes.

    Args:
        directories: of a small model, and of the large one; begun from their configurations if none.
    """
    code = CHILD.replace("SMALL", repr(SIZES)).replace("LARGE", repr(large))
    command = [sys.executable, "-c", code, *directories]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_of_transformers_takes_its_own_part_of_the_memory() -> None:
    pytest.importorskip("transformers")
    taken, own, whole = memory_of_a_stage(LARGE)
    assert own < whole / 7
    assert taken < own + whole / 5, "its own tensors, and what the tracer takes"


def still(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Of which only the last layer is trained."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, outputs))
    model[1].requires_grad_(False)
    return model


def test_what_stands_still_is_not_cut() -> None:
    model = ModelSpec(source=f"python:{__name__}:still", parameters=300)
    with pytest.raises(InvalidInput, match=r"not cut into stages: 1\.weight of it is not trained"):
        blueprint.blueprint(model, PICTURES, 0, Resources(packages=("tests",)))


def test_a_model_that_had_to_be_made_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(blueprint, "_of_hub", lambda *given: None)
    model, wholes = ModelSpec(source="hf:config", config=BERT), []
    make = blueprint.build

    def watched(*given: Any) -> Any:
        made = make(*given)
        wholes.append(weakref.ref(made[0].start))
        return made

    monkeypatch.setattr(blueprint, "build", watched)
    plan = blueprint.blueprint(model, TOKENS, 0, Resources())
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
