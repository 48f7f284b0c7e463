"""`hivenode identify`: for a person, for a program, for many files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hivenode.cli.main import main
from hivenode.errors import Corrupted, NotFound, Refused

SAMPLES = Path(__file__).parents[1] / "models" / "samples"
RESNET = SAMPLES / "pytorch" / "resnet18.pth"


def test_a_file_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(RESNET)]) == 0
    shown = capsys.readouterr().out
    for words in ("resnet18", "image_classification", "11,689,512", "inferred", "blocks per stage (2, 2, 2, 2)"):
        assert words in shown


def test_a_file_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(RESNET), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "resnet18"
    assert found["parameters"] == 11_689_512
    assert found["confidence"]["parameters"]["how"] == "read"
    assert "listing" not in found


def test_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(RESNET), "--json", "--tensors"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["listing"]) == found["tensors"]
    assert main(["identify", str(SAMPLES / "pytorch" / "bfloat16.pt"), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "weight" in shown
    assert "[4, 4]" in shown


def test_unsafe_and_unreadable_have_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["identify", str(SAMPLES / "transformers" / "remote_code")]) == Refused.exit_code
    assert "modeling_evil.Evil" in capsys.readouterr().out
    assert main(["identify", str(tmp_path / "none.pt"), "--json"]) == NotFound.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "not_found"
    (tmp_path / "zeros.pt").write_bytes(b"\0" * 100)
    assert main(["identify", str(tmp_path / "zeros.pt")]) == Corrupted.exit_code
    assert "zeros" in capsys.readouterr().out


def test_a_folder_of_many_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = SAMPLES / "pytorch" / "bfloat16.pt"
    for place in range(60):
        shutil.copy(source, tmp_path / f"{place:03}.pt")
    shutil.copytree(SAMPLES / "transformers" / "bert", tmp_path / "bert")
    assert main(["identify", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 61
    assert [report["path"] for report in found] == sorted(
        (report["path"] for report in found), key=lambda path: (path.endswith("bert"), path)
    )
    assert {report["parameters"] for report in found} == {20, 1610}
    assert main(["identify", str(tmp_path)]) == 0
    assert "BertForSequenceClassification" in capsys.readouterr().out


def test_names_in_a_file_cannot_act_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["\x1b[2JEvil"], "model_type": "bert"}))
    main(["identify", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "Evil" in shown
    assert "\x1b[2J" not in shown
