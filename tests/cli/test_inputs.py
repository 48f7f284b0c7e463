"""What a model may be asked with, and pictures of it."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hivenode.cli.demo import DIGITS
from hivenode.cli.inputs import Asked, read_inputs
from hivenode.cli.output import bar, clean, duration, size
from hivenode.cli.pictures import digit, side_of
from hivenode.errors import InvalidInput, NotFound
from hivenode.spec.job import read_job

EXAMPLES = Path(__file__).parents[2] / "configs" / "jobs"


def file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", "[1, 2.5]", [[1.0, 2.5]]),
        ("a.json", "[[1, 2], [3, 4]]", [[1.0, 2.0], [3.0, 4.0]]),
        ("a.csv", "1,2\n3,4\n\n", [[1.0, 2.0], [3.0, 4.0]]),
        ("a.CSV", "\ufeffwidth,height\r\n1,2\r\n", [[1.0, 2.0]]),
        ("a.npy", npy(np.arange(3.0)), [[0.0, 1.0, 2.0]]),
        ("a.npy", npy(np.arange(8).reshape(2, 2, 2)), [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]),
        ("a.npy", npy(np.array([[0.5]], dtype=np.float16)), [[0.5]]),
    ],
)
def test_samples(tmp_path: Path, name: str, content: str | bytes, rows: list[list[float]]) -> None:
    assert read_inputs(file(tmp_path, name, content)) == Asked(rows, [])


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("a.json", '"once"', Asked([], ["once"])),
        ("a.json", '["once", {"text": "upon"}]', Asked([], ["once", "upon"])),
        ("a.json", '{"tokens": [3, 4]}', Asked([[3.0, 4.0]], [])),
        ("a.json", '[{"features": [0.5]}, [1]]', Asked([[0.5], [1.0]], [])),
        ("a.txt", "once\nupon", Asked([], ["once\nupon"])),
    ],
)
def test_texts_and_objects(tmp_path: Path, name: str, content: str, asked: Asked) -> None:
    assert read_inputs(file(tmp_path, name, content)) == asked


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", "{}", "sample 1 has 0 of features"),
        ("a.json", '[{"text": "x", "tokens": [1]}]', "sample 1 has 2 of features"),
        ("a.json", '{"txt": "x"}', "not a JSON list"),
        ("a.json", '["x", [1]]', "mixes numbers and texts"),
        ("a.json", "[" * 10_000, "not a JSON list"),
        ("a.json", "[]", "no sample"),
        ("a.json", "[[1, 2], [3]]", "sample 2 has 1 values"),
        ("a.json", "[1e999]", "a.json"),
        ("a.csv", "1,2\n3,x\n", "sample 2: 'x' is not a number"),
        ("a.csv", "1,nan\n", "not finite"),
        ("a.csv", b"\xff\xfe", "not CSV"),
        ("a.csv", "", "no sample"),
        ("a.npy", b"\x93NUMPY", "not an .npy file"),
        ("a.npy", npy(np.array([object()]), allow_pickle=True), "not an .npy file"),
        ("a.npy", npy(np.array(["x"])), "not an .npy file"),
        ("a.pkl", b"\x80\x04.", "no kind that can be read"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says.replace(".", r"\.")) as caught:
        read_inputs(file(tmp_path, name, content))
    assert name in caught.value.sentence


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.json"):
        read_inputs(tmp_path / "none.json")


@pytest.mark.parametrize("text", [b" [1, 2]", b"1,2\n"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert read_inputs(Path("-")).rows == [[1.0, 2.0]]


def test_a_digit_in_characters() -> None:
    assert digit([0, 0, 1, 1, 0, 0.5, 0, 0, 0], 3) == "    ██\n██  ▒▒\n"
    assert digit([7.0] * 4, 2) == "\n"
    with pytest.raises(ValueError, match="3 values"):
        digit([0, 0, 0], 2)


def test_what_is_worth_drawing() -> None:
    assert [side_of(count) for count in (9, 16, 30, 64, 784, 1024, 1089)] == [None, 4, None, 8, 28, 32, None]


def test_small_words() -> None:
    assert [duration(s) for s in (-1, 0.44, 9.99, 59.4, 65, 3700, 90_000)] == [
        "0.0 s", "0.4 s", "10.0 s", "59 s", "1 min 05 s", "1 h 01 min", "1 d 1 h",
    ]  # fmt: skip
    assert [size(n) for n in (0, 999, 1_000, 2_500_000, 3e12)] == ["0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 TB"]
    assert bar(0.5, 4) == "██  "
    assert bar(2.0, 2) == "██"
    assert clean("a\x1b[31m\nb") == "a [31m b"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job(path: Path) -> None:
    assert read_job(path).name == path.stem


def test_the_demo_trains_the_example() -> None:
    assert tomllib.loads((EXAMPLES / "digits.toml").read_text()) == DIGITS


def test_the_example_digit_fits_the_model() -> None:
    assert len(read_inputs(EXAMPLES / "digit.json").rows[0]) == 64
    assert json.loads((EXAMPLES / "digit.json").read_text())
