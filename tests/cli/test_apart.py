"""`hivenode load` and `hivenode convert`: for a person and for a program."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from hivenode.cli.main import main
from hivenode.errors import Exhausted, InvalidInput, NotFound, Refused

SAMPLES = Path(__file__).parents[1] / "models" / "samples"


def test_what_loading_takes(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SAMPLES / "transformers" / "llama_sharded")
    assert main(["load", path, "--tensors", "model.layers.0.*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tensors"]) == 9
    assert found["model"] == ""
    assert found["seconds"] > 0
    assert main(["load", str(SAMPLES / "tabular" / "xgb_multiclass.ubj")]) == 0
    assert "hivenode.models.loading.trees.Trees" in capsys.readouterr().out


def test_what_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", str(SAMPLES / "tabular" / "foreign.skops")]) == Refused.exit_code
    said = capsys.readouterr().err
    assert "posixpath.join" in said
    assert "hivenode convert" in said
    assert main(["load", str(tmp_path / "none.pt"), "--json"]) == NotFound.exit_code
    large = tmp_path / "m.safetensors"
    text = json.dumps({"w": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
    with large.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 30))
    assert main(["load", str(large), "--memory", "256"]) == Exhausted.exit_code
    assert "1,024.0 MiB; the budget is 256.0 MiB" in capsys.readouterr().err


class Prints:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("it ran",)


def test_nothing_runs_without_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy = pytest.importorskip("numpy")
    source, target = tmp_path / "m.pkl", tmp_path / "out"
    source.write_bytes(pickle.dumps([numpy.ones(2), Prints()]))
    assert main(["convert", str(source), str(target)]) == InvalidInput.exit_code
    said = capsys.readouterr().err
    assert "builtins.print" in said
    assert "--yes" in said
    assert not target.exists()
    assert main(["convert", str(source), str(target), "--yes", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["files"] == ["model.safetensors"]
    assert "files: Landlock" in made["layers"]
    assert main(["identify", str(target / "model.safetensors")]) == 0


def test_what_needs_no_running_needs_no_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(SAMPLES / "graphs" / "lambda.keras"), str(tmp_path / "out")]) == 0
    assert "nothing in the file was run" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["format"] == "keras"
