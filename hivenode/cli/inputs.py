"""Reading what a model is to be asked: samples from JSON, CSV, .npy or text. Nothing in a file is ever run."""

from __future__ import annotations

import csv
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hivenode.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 16 << 20
STDIN = Path("-")

Rows = list[list[float]]


@dataclass(frozen=True)
class Asked:
    """Samples, one flattened row each, or one text each."""

    rows: Rows
    texts: list[str]


def read_inputs(path: Path) -> Asked:
    """Samples from a file.

    Args:
        path: `.json` (a sample, or a list of them; a sample is a list of numbers, a text, or an object with `features`,
            `tokens` or `text`), `.txt` (one text), `.csv` (a sample a line; a first line without any number
            is a heading), `.npy` (one axis: one sample; more: the first axis counts samples), or `-`: JSON or CSV from
            standard input.

    Raises:
        NotFound: the file does not exist.
        InvalidInput: it is not of its kind, too large, empty, or holds something else than finite numbers.
    """
    if path == STDIN:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        kind = ".json" if data.lstrip()[:1] in (b"[", b"{", b'"') else ".csv"
    else:
        kind = path.suffix.lower()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise NotFound(f"There is no input file {path}.", fix="Check the path.") from None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}.", fix="Give a readable file.") from error
    where = "standard input" if path == STDIN else str(path)
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{where} is over {MAX_BYTES >> 20} MiB.", fix="Split it and predict in parts.")
    readers = {".csv": _csv, ".npy": _npy}
    if kind == ".json":
        asked = _json(data, where)
    elif kind == ".txt":
        asked = Asked([], [_text(data, where)])
    elif kind in readers:
        asked = Asked(readers[kind](data, where), [])
    else:
        raise InvalidInput(f"{where} is of no kind that can be read.", fix="Give a .json, .txt, .csv or .npy file.")
    if not asked.texts:
        _check(asked.rows, where)
    return asked


class _Sample(msgspec.Struct, forbid_unknown_fields=True):
    features: list[float] = []
    tokens: list[int] = []
    text: str = ""


def _json(data: bytes, where: str) -> Asked:
    try:
        value = msgspec.json.decode(data)
        single = not isinstance(value, list) or (value and isinstance(value[0], int | float))
        samples = msgspec.convert([value] if single else value, type=list[list[float] | str | _Sample])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is not a JSON list of numbers, a text, or a list of such: {error}.", fix="Correct the file."
        ) from error
    rows: Rows = []
    texts: list[str] = []
    for place, sample in enumerate(samples, 1):
        if isinstance(sample, _Sample):
            given = [part for part in (sample.features, sample.tokens, sample.text) if part]
            if len(given) != 1:
                raise InvalidInput(
                    f"{where}: sample {place} has {len(given)} of features, tokens and text.", fix="Give one of them."
                )
            sample = sample.text or [float(number) for number in sample.features or sample.tokens]
        if isinstance(sample, str):
            texts.append(sample)
        else:
            rows.append(sample)
    if rows and texts:
        raise InvalidInput(f"{where} mixes numbers and texts.", fix="Ask about them in two files.")
    return Asked(rows, texts)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is not UTF-8: {error}.", fix="Save it as UTF-8.") from error


def _csv(data: bytes, where: str) -> Rows:
    try:
        lines = [line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if any(map(str.strip, line))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{where} is not CSV: {error}.", fix="Save it as UTF-8 with commas.") from error
    if lines and not any(_is_number(cell) for cell in lines[0]):
        del lines[0]
    rows: Rows = []
    for place, line in enumerate(lines, 1):
        wrong = next((cell for cell in line if not _is_number(cell)), None)
        if wrong is not None:
            raise InvalidInput(f"{where}, sample {place}: {wrong[:40]!r} is not a number.", fix="Correct that line.")
        rows.append([float(cell) for cell in line])
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _npy(data: bytes, where: str) -> Rows:
    import numpy as np

    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        numbers = array.astype(np.float64, casting="same_kind" if array.dtype.kind == "f" else "safe")
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise InvalidInput(
            f"{where} is not an .npy file of numbers: {error}.", fix="Save it with numpy.save."
        ) from error
    if numbers.size == 0:
        raise InvalidInput(f"{where} holds no samples.", fix="Save one sample a row.")
    shaped = numbers.reshape(1, -1) if numbers.ndim < 2 else numbers.reshape(len(numbers), -1)
    return msgspec.convert(shaped.tolist(), type=Rows)


def _check(rows: Rows, where: str) -> None:
    if not rows or not rows[0]:
        raise InvalidInput(f"{where} holds no sample.", fix="Give at least one row of numbers.")
    for place, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise InvalidInput(
                f"{where}: sample {place} has {len(row)} values, the first has {len(rows[0])}.",
                fix="Give every sample the same number of values.",
            )
        if not all(map(math.isfinite, row)):
            raise InvalidInput(f"{where}: sample {place} holds a value that is not finite.", fix="Replace it.")
