"""`hivenode analyze`: for a person, for a program, with and without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hivenode.cli.main import main
from hivenode.errors import InvalidInput, NotFound
from tests.cli.conftest import Endpoint

SAMPLES = Path(__file__).parents[1] / "models" / "samples"
RESNET = str(SAMPLES / "pytorch" / "resnet18.pth")
BERT = str(SAMPLES / "transformers" / "bert")


def test_for_a_person_on_a_hive(daemon: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(daemon.home), "analyze", RESNET, "--batch", "8", "--sequence", "3"]) == 0
    shown = capsys.readouterr().out
    for words in ("resnet18", "11,689,512", "medium", "46.8 MB", "exact", "rule", "29 GFLOP", "ash (this one)", "birch",
                  "fits", "--sequence is ignored", "No answer from dogwood", "Not traced"):  # fmt: skip
        assert words in shown


def test_for_a_program(daemon: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(daemon.home), "analyze", BERT, "--no-trace", "--json", "-b", "2", "-s", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complexity"] == "small"
    assert found["weights"] | {"why": ""} == {
        "value": 6440, "low": 6440, "high": 6440, "unit": "bytes", "method": "exact", "why": "",
    }  # fmt: skip
    assert {node["name"] for node in found["nodes"]} == {"ash", "birch", "cedar"}
    assert all(node["training"] for node in found["nodes"])
    assert found["together"][0]["nodes"] == 1
    seconds = found["nodes"][0]["step_seconds"]
    assert seconds["low"] < seconds["value"] < seconds["high"]


def test_without_a_daemon_it_is_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    assert main(["--home", str(home), "analyze", RESNET, "--no-trace", "--infer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["nodes"]) == 1
    assert "this machine alone" in found["nodes_from"]
    assert found["nodes"][0]["inference_seconds"]["value"] > 0
    assert found["training_memory"] is None
    assert not home.exists()


def test_a_job_file_brings_its_batch_and_optimizer(daemon: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    job = str(Path(__file__).parents[2] / "configs" / "jobs" / "digits.toml")
    assert main(["--home", str(daemon.home), "analyze", job, "--no-trace", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"].startswith("zoo:")
    assert found["options"]["batch"] > 1
    assert found["weights"]["value"] == 4 * found["parameters"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([RESNET, "--batch", "0"], InvalidInput.exit_code, "whole number"),
        ([RESNET, "--optimizer", "adamm"], InvalidInput.exit_code, "Did you mean 'adam"),
        ([RESNET, "--dtype", "fp99"], InvalidInput.exit_code, "Valid are"),
        (["none.pt"], NotFound.exit_code, "no file"),
        (["none.toml"], NotFound.exit_code, "none.toml"),
    ],
)
def test_what_cannot_be(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", *arguments]) == code
    assert said in capsys.readouterr().err


def test_names_in_a_file_cannot_act_on_the_terminal(
    daemon: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["\x1b[2JEvil"], "model_type": "bert\x1b[2J", "num_hidden_layers": 2, "hidden_size": 8}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for file in (SAMPLES / "transformers" / "bert").glob("*.safetensors"):
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    assert main(["--home", str(daemon.home), "analyze", str(tmp_path / "m"), "--no-trace"]) == 0
    shown = capsys.readouterr().out
    assert "Evil" in shown
    assert "\x1b[2J" not in shown
