"""Directories of transformers models as their owners lend them: what is taken, and what is wrong with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hivenode.errors import HiveError
from hivenode.models.pretrained import CONFIG, INDEX, SINGLE, look

CONFIGURATION = {"model_type": "bert", "hidden_size": 2, "id2label": {"0": "a" * 20_000}}
ONE, OTHER = "model-1.safetensors", "model-2.safetensors"
PARTS = {ONE: {"a.weight": np.ones((2, 3), np.float32)}, OTHER: {"b.position_ids": np.arange(4)}}


def save(path: Path, *, shards: bool) -> Path:
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(CONFIGURATION))
    if not shards:
        save_file({**PARTS[ONE], **PARTS[OTHER]}, path / SINGLE)
        return path
    for name, tensors in PARTS.items():
        save_file(tensors, path / name)
    write_index(path, {tensor: name for name, tensors in PARTS.items() for tensor in tensors})
    return path


def write_index(path: Path, weight_map: dict[str, Any]) -> None:
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("shards", [False, True])
def test_what_lies_where_is_known_from_heads_alone(tmp_path: Path, shards: bool) -> None:
    found = look(save(tmp_path, shards=shards))
    assert found.files == ((ONE, OTHER) if shards else (SINGLE,))
    assert {name: (tensor.shape, tensor.file) for name, tensor in found.tensors.items()} == {
        "a.weight": ((2, 3), ONE if shards else SINGLE),
        "b.position_ids": ((4,), OTHER if shards else SINGLE),
    }
    assert found.parameters == 6
    assert json.loads(found.told()) == {"model_type": "bert", "hidden_size": 2}, "labels are not told"


def test_a_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", shards=True), save(tmp_path / "other", shards=True)
    assert look(one).fingerprint() == look(other).fingerprint()
    save_file({"b.position_ids": np.arange(4) + 1}, other / OTHER)
    assert look(one).fingerprint() != look(other).fingerprint()


def test_a_fingerprint_tells_models_apart_that_differ_in_the_middle(tmp_path: Path) -> None:
    weights = np.zeros(3 << 19, np.float32)  # 6 MiB
    one, other = save(tmp_path / "one", shards=False), save(tmp_path / "other", shards=False)
    save_file({"a": weights}, one / SINGLE)
    weights[1 << 19 : 1 << 20] = 1.0
    save_file({"a": weights}, other / SINGLE)
    assert look(one).fingerprint() != look(other).fingerprint()


def configure(**fields: Any) -> Callable[[Path], None]:
    return lambda path: (path / CONFIG).write_text(json.dumps(CONFIGURATION | fields)) and None


def cut_short(path: Path) -> None:
    raw = (path / OTHER).read_bytes()
    (path / OTHER).write_bytes(raw[:-8])


def pickled(path: Path) -> None:
    for file in (INDEX, ONE, OTHER):
        (path / file).unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02.")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / CONFIG).unlink(), "has no config.json"),
        (lambda path: (path / CONFIG).write_text("[" * 100_000), "config.json is no sound JSON"),
        (lambda path: (path / CONFIG).write_text("[1]"), "config.json holds no JSON object"),
        (configure(auto_map={"AutoModel": "modeling.Own"}), r"config.json names code .*auto_map"),
        (configure(quantization_config={"quant_method": "gptq"}), "quantised"),
        (lambda path: (path / "adapter_config.json").write_text("{}"), "holds adapters of another model"),
        (lambda path: (path / OTHER).unlink(), f"lacks {OTHER}, named by its index"),
        (cut_short, f"{OTHER} is no sound safetensors file: it is cut short"),
        (pickled, r"as pytorch_model.bin, a pickle.*hivenode convert"),
        (lambda path: [(path / file).unlink() for file in (INDEX, ONE)], f"has no {SINGLE} and no {INDEX}"),
        (lambda path: write_index(path, {"a": f"../{ONE}"}), "not in the directory"),
        (lambda path: write_index(path, {"a": ".."}), "not in it"),
        (lambda path: write_index(path, {"a": 1}), "does not say where a is"),
        (lambda path: write_index(path, {}), "names 0 files"),
        (lambda path: write_index(path, {"c": ONE}), f"{ONE} in .* lacks c"),
        (lambda path: save_file({**PARTS[ONE], **PARTS[OTHER]}, path / OTHER), "both have a.weight"),
    ],
)
def test_what_is_wrong_is_named_with_the_way_out(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(save(tmp_path, shards=True))
    with pytest.raises(HiveError, match=said) as caught:
        look(tmp_path)
    assert caught.value.fix


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HiveError, match=r"There is no directory .*models\.directories"):
        look(tmp_path / "gone")


def test_a_directory_that_may_not_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(HiveError, match=r"cannot be read: File name too long"):
        look(tmp_path / ("a" * 300))
