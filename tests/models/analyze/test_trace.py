"""Models run on tensors without storage: in this process, and in a real worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivenode.errors import Exhausted, HiveError, InvalidInput, Unavailable
from hivenode.jobs import tracing
from hivenode.models.analyze import Options, analyze, analyze_zoo, onnx_shapes, order_for, order_for_zoo
from hivenode.models.analyze.quantities import Method
from hivenode.models.identify import identify
from hivenode.models.identify.source import Source
from hivenode.net.local import Trace, WorkerLimits
from hivenode.spec.job import parse_job
from hivenode.spec.tracing import TraceNumbers, TraceOrder

torch = pytest.importorskip("torch")
SAMPLES = Path(__file__).parents[1] / "samples"
JOB = parse_job({"name": "digits", "model": {"source": "zoo:cnn"}, "data": {"source": "sklearn:digits"}})


def run(order: TraceOrder | str) -> TraceNumbers:
    from hivenode.worker.trace import answer

    assert isinstance(order, TraceOrder), order
    return answer(Trace(order)).numbers


def real_flops(module: Any, **inputs: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**inputs)
    return int(counter.get_total_flops())


def test_a_zoo_model_counts_what_a_real_run_counts() -> None:
    from hivenode.data.sources import information
    from hivenode.models.declared import layers_of
    from hivenode.training.frameworks.torch_models import build

    numbers = run(order_for_zoo(JOB, Options(batch=8)))
    module = build(layers_of(JOB.model, information(JOB.data)) or ())
    assert numbers.parameters == sum(p.numel() for p in module.parameters()) == 13_706
    assert numbers.weight_bytes == 4 * 13_706
    assert numbers.forward_flops == real_flops(module, input=torch.zeros(8, 1, 8, 8))
    assert 2 * numbers.forward_flops < numbers.step_flops < 3 * numbers.forward_flops
    assert numbers.step_bytes > numbers.saved_bytes > numbers.forward_bytes / 2 > 0
    assert numbers.gradient_bytes == numbers.weight_bytes


def test_more_samples_take_more_and_the_weights_the_same() -> None:
    few, many = (run(order_for_zoo(JOB, Options(batch=batch))) for batch in (4, 8))
    assert many.forward_flops == 2 * few.forward_flops
    assert many.saved_bytes > 1.9 * few.saved_bytes
    assert many.weight_bytes == few.weight_bytes


def test_a_recurrent_network_counts_every_step() -> None:
    from torch import nn

    from hivenode.training.frameworks.torch_tracing import trace

    def make() -> Any:
        return nn.LSTM(16, 32, num_layers=2, batch_first=True)

    numbers = trace(make, lambda module: {"input": torch.zeros(4, 10, 16)})
    weights = 4 * 32 * (16 + 32) + 4 * 32 * (32 + 32)
    assert numbers.forward_flops == 2 * 4 * 10 * weights


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama_sharded", "t5", "vit", "whisper"])
def test_transformers_from_their_configuration(name: str) -> None:
    pytest.importorskip("transformers")
    path = SAMPLES / "transformers" / name
    report, options = identify(path), Options(batch=2, sequence=8)
    found = analyze(path, report, options, numbers := run(order_for(path, report, options)))
    ruled = analyze(path, report, options)
    for field in ("inference_flops", "step_flops", "inference_memory", "training_memory", "activations"):
        assert getattr(found, field).method is Method.traced
        assert getattr(ruled, field).method is Method.rule
    assert found.inference_flops is not None
    assert found.inference_flops.value == numbers.forward_flops > 0
    assert found.weights == ruled.weights, "the file's own, not the configuration's"


def test_the_rules_come_near_the_trace_at_a_usual_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 128,
              "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 1000,
              "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    report, options = identify(tmp_path), Options(batch=4, sequence=64)
    found = analyze(tmp_path, report, options, run(order_for(tmp_path, report, options)))
    ruled = analyze(tmp_path, report, options)
    assert found.parameters is not None, "a configuration without weights is enough"
    for field, factor in (("inference_flops", 1.05), ("activations", 1.3)):
        value, rule = getattr(found, field).value, getattr(ruled, field).value
        assert value / factor < rule < value * factor, field


def test_training_in_half_the_bits() -> None:
    full, half = (run(order_for_zoo(JOB, Options(batch=8, dtype=dtype))) for dtype in ("float32", "bfloat16"))
    assert half.weight_bytes == full.weight_bytes / 2
    assert half.saved_bytes < 0.7 * full.saved_bytes, "places of maxima stay 8 bytes"
    assert half.forward_flops == full.forward_flops
    mixed = run(order_for_zoo(JOB, Options(batch=8, dtype="mixed")))
    assert mixed.weight_bytes == full.weight_bytes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "no_such"}, "no model type"),
        ({"architectures": ["os"]}, "no model class os"),
        ({"architectures": ["AutoConfig"]}, "no model class"),
        ({"hidden_size": "wide"}, "does not take this configuration"),
        ({"hidden_size": 7}, ""),
        ({"vocab_size": -5}, ""),
    ],
)
def test_a_configuration_that_cannot_be_built_says_why(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    pytest.importorskip("transformers")
    config = json.loads((SAMPLES / "transformers" / "bert" / "config.json").read_text()) | change
    order = TraceOrder("transformers", config["architectures"][0], json.dumps(config).encode(), 1, 4, "float32",
                       "float32", True)  # fmt: skip
    with pytest.raises(InvalidInput) as error:
        run(order)
    assert said in error.value.sentence


def test_code_of_the_models_author_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = SAMPLES / "transformers" / "remote_code"
    report = identify(path)
    found = analyze(path, report, Options(sequence=4), run(order_for(path, report, Options(sequence=4))))
    assert any("hivenode identify" in note for note in found.notes)


def test_a_declared_model_that_cannot_be_says_why() -> None:
    order = msgspec.structs.replace(
        order_for_zoo(JOB, Options()), config=b'{"source": "zoo:mlp", "params": {"depth": 65}}'
    )
    with pytest.raises(InvalidInput, match="depth"):
        run(order)


async def test_a_real_worker_traces_and_is_held_to_its_limits() -> None:
    order = order_for_zoo(JOB, Options(batch=8))
    numbers = await tracing.trace(order)
    assert numbers.parameters == 13_706
    assert analyze_zoo(Path("digits.toml"), JOB, Options(batch=8), numbers).step_flops is not None
    with pytest.raises((Exhausted, Unavailable)) as error:
        await tracing.trace(order, limits=WorkerLimits(threads=1, memory_bytes=1 << 20, nice=0))
    assert isinstance(error.value, HiveError)


def test_an_exported_transformer_with_free_axes_is_counted_by_its_shapes(tmp_path: Path) -> None:
    """What computes the shapes of its reshapes is followed: 2 layers of 32 with 4 heads and 64 within, 16 tokens."""
    pytest.importorskip("onnx")
    from torch import nn

    class Encoder(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(100, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Any) -> Any:
            return self.layers(self.embedding(x))

    path = tmp_path / "encoder.onnx"
    tokens = torch.randint(0, 100, (1, 16))
    axes = {"ids": {0: "n", 1: "s"}}
    torch.onnx.export(Encoder().eval(), (tokens,), path, dynamo=False, input_names=["ids"], dynamic_axes=axes)
    report = identify(path)
    with Source(path) as source:
        tape = onnx_shapes.tape_of(report, source, 3, 16)
    assert tape.unknown == 0
    products = 2 * 3 * 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    attention = 2 * 3 * 4 * 16 * 16 * 32
    assert sum(step.flops for step in tape.steps) == products + attention
