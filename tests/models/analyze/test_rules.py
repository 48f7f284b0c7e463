"""What headers alone tell of what a model takes."""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivenode.errors import HiveError, InvalidInput
from hivenode.models.analyze import Analysis, Options, analyze, analyze_zoo, keras_shapes, order_for, place
from hivenode.models.analyze.quantities import QUANTITY_NAMES, Method, Quantity, complexity
from hivenode.models.identify import identify
from hivenode.spec.capacity import NodeCapacity
from hivenode.spec.job import parse_job

SAMPLES = Path(__file__).parents[1] / "samples"
EVERY = sorted(
    path
    for group in ("pytorch", "transformers", "graphs", "tabular", "agents")
    for path in (SAMPLES / group).iterdir()
    if path.name != "external.bin"
)
GIB = 1 << 30


def of(name: str, **options: Any) -> Analysis:
    path = SAMPLES / name
    return analyze(path, identify(path), Options(**options))


def quantities(found: Analysis) -> dict[str, Quantity]:
    every = {name: getattr(found, name) for name in QUANTITY_NAMES}
    return {name: quantity for name, quantity in every.items() if quantity is not None}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_sample_has_an_answer_whose_ranges_hold_it(path: Path) -> None:
    report = identify(path)
    found = analyze(path, report, Options(batch=2))
    known = quantities(found)
    assert known["weights"].value >= 0
    assert known["inference_memory"].value > 0
    for quantity in known.values():
        assert quantity.low <= quantity.value <= quantity.high
        assert quantity.why
        assert quantity.method is not Method.traced
    if report.listing and all(tensor.nbytes is not None for tensor in report.listing):
        own = sum(tensor.nbytes or 0 for tensor in report.listing if tensor.shared_with is None)
        assert known["weights"].value == own, "to the byte"
        assert known["weights"].method is Method.exact
    again = msgspec.json.decode(msgspec.json.encode(found.to_dict()), type=Analysis)
    assert again.weights is not None
    assert again.weights.value == round(known["weights"].value)
    assert again.weights.method == known["weights"].method


def test_frameworks_are_not_imported_for_it() -> None:
    """In a process of its own, since tests import them."""
    import subprocess

    script = (
        "import sys\nfrom pathlib import Path\nfrom hivenode.models.identify import identify\n"
        "from hivenode.models.analyze import Options, analyze\n"
        f"path = Path({str(SAMPLES / 'transformers' / 'bert')!r})\n"
        "analyze(path, identify(path), Options())\n"
        "print([name for name in ('torch', 'tensorflow', 'keras', 'transformers', 'onnx', 'numpy') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resnet18_from_its_state_dict() -> None:
    """1.814 G multiply-adds a picture, the number torchvision publishes."""
    found = of("pytorch/resnet18.pth", batch=4)
    assert found.inference_flops is not None
    assert found.inference_flops.value == pytest.approx(4 * 2 * 1.814e9, rel=0.005)
    assert found.complexity == "medium"
    assert found.kv_cache is None


@pytest.mark.parametrize("name", ["graphs/cnn.onnx", "graphs/picture.keras", "graphs/picture.h5"])
def test_a_convolutional_graph_by_its_shapes(name: str) -> None:
    """A convolution of 3x3 from 3 to 4 channels over 16x16 without padding, the mean, and a product of 4 by 5."""
    found, twice = of(name), of(name, batch=2)
    assert found.inference_flops is not None
    assert found.inference_flops.value == 14 * 14 * 4 * 2 * 27 + 2 * 4 * 5
    assert twice.inference_flops is not None
    assert twice.inference_flops.value == 2 * found.inference_flops.value


def test_a_cache_of_keys_and_values() -> None:
    """llama.gguf: 1 layer, 2 of 4 heads hold keys, 8 values each; llama.cpp keeps float16."""
    found = of("graphs/llama.gguf", batch=3, sequence=50)
    assert found.kv_cache is not None
    assert found.kv_cache.value == 2 * 1 * 2 * 8 * 50 * 3 * 2
    assert found.training_memory is None
    assert any("not trained" in note for note in found.notes)


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"), [("sgd", 0), ("momentum", 4), ("adam", 8), ("adamw", 8), ("lion", 4)]
)
def test_an_optimizers_state(optimizer: str, bytes_each: int) -> None:
    found = of("transformers/bert", optimizer=optimizer)
    assert found.optimizer_state is not None
    assert found.gradients is not None
    assert found.optimizer_state.value == 1610 * bytes_each
    assert found.gradients.value == 1610 * 4


@pytest.mark.parametrize(
    "name",
    ["transformers/bert", "transformers/gpt2", "transformers/llama_sharded", "transformers/t5", "pytorch/lstm.pt",
     "graphs/encoder.onnx", "graphs/words.keras", "graphs/llama.gguf"],
)  # fmt: skip
def test_more_samples_and_longer_ones_take_more(name: str) -> None:
    base, wider, longer = (of(name, batch=b, sequence=s) for b, s in ((2, 16), (4, 16), (2, 32)))
    for field in ("inference_flops", "inference_memory", "activations", "kv_cache", "training_memory", "step_flops"):
        first, second = getattr(base, field), getattr(wider, field)
        if first is None:
            continue
        assert second.value > first.value, field
        if name != "graphs/encoder.onnx":  # made for one length
            assert getattr(longer, field).value > first.value, field
    assert base.weights == wider.weights == longer.weights


def test_fewer_bits_take_less() -> None:
    full, half = of("transformers/bert", dtype="float32"), of("transformers/bert", dtype="bfloat16")
    assert full.weights is not None
    assert half.weights is not None
    assert half.weights.value == full.weights.value / 2


def test_a_sequence_of_a_picture_is_ignored_and_told() -> None:
    assert any("ignored" in note for note in of("pytorch/resnet18.pth", sequence=7).notes)
    assert any("ignored" in note for note in of("transformers/vit", sequence=7).notes)
    assert of("pytorch/resnet18.pth", sequence=7).inference_flops == of("pytorch/resnet18.pth").inference_flops


def test_only_what_is_asked_for() -> None:
    assert of("transformers/bert", train=False).training_memory is None
    assert of("transformers/bert", infer=False).inference_memory is None


def test_the_four_classes() -> None:
    edges = (1, 999_999, 1_000_000, 99_999_999, 100_000_000, 999_999_999, 1_000_000_000)
    assert [complexity(count) for count in edges] == ["small"] * 2 + ["medium"] * 2 + ["large"] * 2 + ["xlarge"]


# --- where it fits --------------------------------------------------------------------------------------------------


def node(name: str, memory_bytes: int, flops: float = 1e11, paused: str = "") -> NodeCapacity:
    return NodeCapacity(name, name, 0.6 * flops, flops, memory_bytes, 0, 2, 1e7, paused=paused)


def big(tmp_path: Path) -> tuple[Path, Any]:
    """A sparse file of 10 GiB of float32 weights, and its report."""
    tensors = {f"layers.{i}.weight": [0, 0] for i in range(10)}
    at = 0
    header: dict[str, Any] = {}
    for name in tensors:
        header[name] = {"dtype": "F32", "shape": [16384, 16384], "data_offsets": [at, at + GIB]}
        at += GIB
    raw = json.dumps(header).encode()
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    return path, identify(path)


def test_one_node_or_several_by_the_room_they_have(tmp_path: Path) -> None:
    path, report = big(tmp_path)
    found = analyze(path, report, Options())
    assert found.weights is not None
    assert found.weights.value == 10 * GIB
    nodes = [
        node("large", 40 * GIB),
        node("small", 2 * GIB),
        node("middle", 8 * GIB),
        node("off", 99 * GIB, paused="x"),
    ]
    place(found, nodes, "a test")
    fits = {fit.name: fit for fit in found.nodes}
    assert fits["large"].inference
    assert not fits["large"].training
    assert not fits["small"].inference
    together = {whole.purpose: whole for whole in found.together}
    assert together["inference"].names == ("large",)
    assert together["training"].nodes in (0, 2), "16 bytes a parameter are 40 GiB, before activations"
    place(found, [node(f"n{i}", 8 * GIB) for i in range(3)], "a test")
    assert {whole.purpose: whole.nodes for whole in found.together}["inference"] == 2


def test_a_faster_node_takes_less_time() -> None:
    found = of("transformers/bert")
    place(found, [node("slow", GIB, 1e9), node("fast", GIB, 4e9)], "a test")
    slow, fast = (fit.step_seconds for fit in found.nodes)
    assert slow is not None
    assert fast is not None
    assert slow.value == pytest.approx(4 * fast.value)
    assert slow.low < slow.value < slow.high


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "--batch is 0"),
        ({"batch": 1 << 40}, "--batch"),
        ({"sequence": -1}, "--sequence is -1"),
        ({"optimizer": "adm"}, "Did you mean 'adam'?"),
        ({"optimizer": "zzzz"}, "Valid are"),
        ({"dtype": "float23"}, "Did you mean 'float32'?"),
        ({"train": False, "infer": False}, "Neither"),
    ],
)
def test_impossible_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as error:
        of("transformers/bert", **options)
    assert said in str(error.value)


def test_what_is_no_model_is_refused_as_by_identify(tmp_path: Path) -> None:
    for name, content in (
        ("zeros.pt", b"\0" * 100),
        ("page.bin", b"<html></html>"),
        ("short.safetensors", b"\xff" * 9),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HiveError):
            analyze(tmp_path / name, identify(tmp_path / name), Options())


def test_sizes_made_to_mislead_only_give_numbers(tmp_path: Path) -> None:
    """A configuration may say anything: the answer is still finite, soon there, and valid JSON."""
    shutil_from = SAMPLES / "transformers" / "bert"
    config = json.loads((shutil_from / "config.json").read_text())
    config |= {"hidden_size": 2**30, "num_hidden_layers": 2**20, "num_attention_heads": 1, "vocab_size": 2**30}
    for name in shutil_from.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = identify(tmp_path)
    found = analyze(tmp_path, report, Options(batch=1 << 30, sequence=1 << 30))
    json.loads(msgspec.json.encode(found.to_dict()))
    assert isinstance(order_for(tmp_path, report, Options()), str), "too large to be traced"


def test_a_job_has_the_costs_of_its_model() -> None:
    job = parse_job({"name": "digits", "model": {"source": "zoo:cnn"}, "data": {"source": "sklearn:digits"}})
    found = analyze_zoo(Path("digits.toml"), job, Options(batch=64, optimizer="sgd"))
    assert found.parameters == 13_706
    assert found.weights is not None
    assert found.weights.value == 4 * 13_706
    assert found.optimizer_state is not None
    assert found.optimizer_state.value == 0


@pytest.mark.parametrize(
    "name",
    [
        "graphs/cnn.onnx",
        "graphs/encoder.onnx",
        "graphs/picture.keras",
        "graphs/words.keras",
        "graphs/llama.gguf",
        "graphs/picture.h5",
        "pytorch/gru.safetensors",
    ],
)
def test_a_damaged_file_gives_an_answer_or_a_clean_error(name: str, tmp_path: Path) -> None:
    """Bytes changed at random, and the ends cut off: whatever identify still makes of it can be analyzed."""
    rng = random.Random(name)
    whole = (SAMPLES / name).read_bytes()
    path = tmp_path / Path(name).name
    for _ in range(80):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        try:
            found = analyze(path, identify(path), Options(batch=2, sequence=5))
        except HiveError:
            continue
        msgspec.json.encode(found.to_dict())


def test_a_configuration_of_nonsense_gives_an_answer_or_a_clean_error(tmp_path: Path) -> None:
    """Every setting of every layer replaced by what it can't be, one after the other."""
    import zipfile

    with zipfile.ZipFile(SAMPLES / "graphs" / "picture.keras") as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    config = json.loads(entries["config.json"])
    for layer in range(len(config["config"]["layers"])):
        for key in list(config["config"]["layers"][layer]["config"]):
            for value in (None, -1, 0, [], [0, 0], [None], {}, "x", 2**40, [[1, 2], [3]], True):
                changed = json.loads(entries["config.json"])
                changed["config"]["layers"][layer]["config"][key] = value
                tape = keras_shapes.tape_of(changed, 2, 5)
                if tape is not None:
                    tape.costs(4.0)
