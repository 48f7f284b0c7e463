"""Tensors come out of every format as its own library gives them, as views, within the memory they may take."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivenode.errors import Exhausted, InvalidInput, Refused
from hivenode.models.loading import load, stream

torch = pytest.importorskip("torch")

SAMPLES = Path(__file__).parents[1] / "samples"
PYTORCH = SAMPLES / "pytorch"


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every tensor in what torch loads, under dotted names."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, torch.nn.Module):
        return flat(value.state_dict(), name)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found: dict[str, Any] = {}
    for key, part in pairs:
        found |= flat(part, f"{name}.{key}" if name else str(key))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "state_dict.pt", "legacy.pth", "bfloat16.pt", "tied.pt", "checkpoint.pt", "ema.pt", "gan.pt", "lstm.pt",
        "module.pt", "module_legacy.pt", "regressor.pt",
    ],
)  # fmt: skip
def test_torch_gives_the_same(name: str) -> None:
    loaded = load(PYTORCH / name)
    theirs = flat(torch.load(PYTORCH / name, weights_only=False))
    assert loaded.weights
    for key, weight in loaded.weights.items():
        ours = weight.torch()
        same = [part for place, part in theirs.items() if place == key or place.endswith(f".{key}")]
        assert any(part.dtype == ours.dtype and torch.equal(part, ours) for part in same)


@pytest.mark.parametrize("folder", ["bert", "bert_bin", "llama_sharded", "lora", "stable_diffusion"])
def test_directories_and_shards(folder: str) -> None:
    from safetensors.torch import load_file

    path = SAMPLES / "transformers" / folder
    theirs: dict[str, Any] = {}
    for file in sorted(path.rglob("*.safetensors")):
        part = "" if file.parent == path else f"{file.parent.name}."
        theirs |= {f"{part}{key}": tensor for key, tensor in load_file(file).items()}
    for file in path.glob("*.bin"):
        theirs |= torch.load(file)
    loaded = load(path)
    assert loaded.weights.keys() == theirs.keys()
    assert all(torch.equal(weight.torch(), theirs[name]) for name, weight in loaded.weights.items())


def test_strides_offsets_and_ties(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.bfloat16)
    state = {
        "whole": base, "turned": base.view(4, 6).t(), "part": base[5:11], "every second": base[::2],
        "same": base, "empty": torch.empty(0, 3), "yes": torch.tensor([True, False]),
    }  # fmt: skip
    torch.save(state, tmp_path / "m.pt")
    weights = load(tmp_path / "m.pt").weights
    for name, tensor in state.items():
        assert torch.equal(weights[name].torch(), tensor)
        assert weights[name].torch().stride() == tensor.stride() or not tensor.numel()
    assert weights["same"].shared_with == "whole"
    assert weights["same"].torch().data_ptr() == weights["whole"].torch().data_ptr()
    assert np.array_equal(weights["turned"].numpy(), state["turned"].float().numpy())


def test_a_compressed_checkpoint_is_unpacked(tmp_path: Path) -> None:
    state = {"a": torch.randn(50, 70), "b": torch.zeros(300_000)}
    torch.save(state, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    weights = load(tmp_path / "packed.pt").weights
    assert all(torch.equal(weights[name].torch(), tensor) for name, tensor in state.items())


def test_views_are_of_the_file_and_cannot_be_written() -> None:
    weight = load(PYTORCH / "plain.safetensors").weights["conv.weight"]
    assert not weight.numpy().flags.writeable
    assert not weight.numpy().flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        weight.numpy()[0] = 1


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(PYTORCH / "state_dict.pt") as plain, zipfile.ZipFile(tmp_path / "m.pt", "w") as other:
        for name in plain.namelist():
            other.writestr(name, b"big" if name.endswith("byteorder") else plain.read(name))
    with pytest.raises(InvalidInput, match="big-endian"):
        load(tmp_path / "m.pt")


def test_big_endian_arrays_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    np.save(tmp_path / "m.npy", np.arange(3, dtype=">f4"))
    np.savez(tmp_path / "m.npz", a=np.arange(3, dtype="<f4"), b=np.arange(3, dtype=">i8"))
    for name in ("m.npy", "m.npz"):
        with pytest.raises(InvalidInput, match="big-endian"):
            load(tmp_path / name)
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/a/vars/0"] = np.arange(3, dtype=">f4")
    with pytest.raises(Refused, match="no place to be read from"):
        load(tmp_path / "m.weights.h5")


def test_arrays_in_archives_inside_archives_are_refused() -> None:
    with pytest.raises(Refused, match="no place to be read from"):
        load(SAMPLES / "tabular" / "tabnet_classifier.zip")


def test_gguf_gives_its_plain_tensors_and_the_blocks_of_the_others() -> None:
    weights = load(SAMPLES / "graphs" / "chat.gguf").weights  # its chat template is text to whoever loads weights
    kinds = {weight.dtype for weight in weights.values()}
    assert "float32" in kinds
    for weight in weights.values():
        if weight.dtype == "float32":
            assert weight.numpy().shape == weight.shape
        else:
            assert weight.raw().nbytes == weight.nbytes > 0
            with pytest.raises(InvalidInput, match=weight.dtype):
                weight.numpy()


def test_tensors_of_tensorflow() -> None:
    for path in ("checkpoint", "saved_model"):
        weights = load(SAMPLES / "graphs" / path).weights
        assert all(np.isfinite(weight.numpy()).all() for weight in weights.values())


# what is chosen, and what it may take


def test_only_what_is_asked_for() -> None:
    path = SAMPLES / "transformers" / "llama_sharded"
    layer = load(path, only="model.layers.1.*").weights
    assert layer
    assert all(name.startswith("model.layers.1.") for name in layer)
    assert load(path, only=["lm_head*", "*embed*"]).weights.keys() == {"lm_head.weight", "model.embed_tokens.weight"}
    assert set(load(path, only=lambda name: name.endswith("norm.weight")).weights) < set(load(path).weights)
    with pytest.raises(InvalidInput, match="21 tensors"):
        load(path, only="nothing.*")


def test_too_much_is_refused_with_the_numbers_before_anything_is_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "m.safetensors", 8, 1 << 30)
    with pytest.raises(Exhausted, match=r"takes 8,192\.0 MiB; the budget is 100\.0 MiB") as refused:
        load(path, budget=100 << 20)
    assert "--tensors" in refused.value.fix
    with pytest.raises(Exhausted, match=r"tensor w0 .* takes 1,024\.0 MiB"):
        next(stream(path, budget=100 << 20))


def sparse(path: Path, tensors: int, size: int) -> Path:
    """A safetensors file of float32 zeros that takes no disk."""
    header = {
        f"w{place}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [place * size, (place + 1) * size]}
        for place in range(tensors)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * size)
    return path


LIMITED = """
import resource, sys
import numpy as np
from hivenode.errors import Exhausted
from hivenode.models.loading import load, stream

path, kind, one = sys.argv[1], sys.argv[2], int(sys.argv[3])
load(path, only="w0")  # what is imported on the way counts before
field = {"RLIMIT_DATA": "VmData:", "RLIMIT_AS": "VmSize:"}[kind]
now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) << 10
budget = 2 * one
limit = now + budget + one
resource.setrlimit(getattr(resource, kind), (limit, limit))
try:
    np.empty(4 * one, np.uint8)
except MemoryError:
    print("the limit is real")
try:
    load(path, budget=budget, resident=True)
except Exhausted as error:
    print("refused")
held = load(path, budget=budget, resident=True, only=["w1", "w2"])
print(sorted(held.weights), sum(float(weight.numpy().sum()) for weight in held.weights.values()))
del held
print(sum(weight.numpy().shape[0] for weight in stream(path, budget=budget, only="w[0-5]")))
"""


@pytest.mark.parametrize("kind", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_more_than_memory_goes_through_in_parts(kind: str, tmp_path: Path) -> None:
    one = 128 << 20
    path = sparse(tmp_path / "m.safetensors", 20, one)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), kind, str(one)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["the limit is real", "refused", "['w1', 'w2'] 0.0", str(6 * one // 4)], (
        done.stderr
    )


def test_a_file_that_lies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing is loaded"):
        load(SAMPLES / "tabular" / "catboost_classifier.cbm")
    data = (PYTORCH / "plain.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[:-8])
    with pytest.raises(Exception, match=r"cut short|ends"):
        load(tmp_path / "m.safetensors")
