"""What readers return, and what most of them share: from columns to inputs and labels."""

from __future__ import annotations

import difflib
import math
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.data import text
from hivenode.data.info import MAX_CLASSES, MAX_LABEL, DataInfo
from hivenode.errors import InvalidInput, NotFound
from hivenode.spec.data import DataSpec, Task

MAX_FILE_BYTES = 16 << 30
FEW_CLASSES = 32
"""Whole numbers with at most so many different values are taken for classes, where data.task is auto."""

Array = npt.NDArray[Any]
Cell = str | int | float | bool | list[float] | None


@dataclass(frozen=True, slots=True)
class Raw:
    """A data set as it was read, in its own order.

    Attributes:
        rows: (samples, features) float64; uint8 images as they are; int64 tokens (samples, length).
        labels: as the task has them.
        tokenizer: as `text.load` takes it.
        notes: sentences on how it was understood.
    """

    info: DataInfo
    rows: Array
    labels: Array
    tokenizer: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be predicted: classes and their names, or values; and sentences on how it was understood."""

    task: Task
    labels: Array
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of equal length, and where row `n` (from 0) is found in the file: "line 7"."""

    path: Path
    columns: dict[str, Sequence[Cell]]
    where: Callable[[int], str]

    def wrong(self, row: int, column: str, what: str, fix: str = "Correct it, or leave it out.") -> InvalidInput:
        return InvalidInput(f"{self.path}, {self.where(row)}, column '{column}': {what}.", fix=fix)


def bounded(path: Path) -> int:
    """Size of a file, bytes. Raises InvalidInput above the limit, or when it is empty."""
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        what = "is empty" if not size else f"has {size >> 30} GiB, more than {MAX_FILE_BYTES >> 30}"
        raise InvalidInput(f"{path} {what}.", fix="Give another file.")
    return size


def tabulate(table: Table, spec: DataSpec) -> Raw:
    """Inputs and labels from a table, as the declaration wishes. Raises InvalidInput."""
    names = list(table.columns)
    count = len(next(iter(table.columns.values()), ()))
    if count < 2:
        raise InvalidInput(f"{table.path} has {count} samples.", fix="Give at least 2.")
    without = spec.task in ("reconstruction", "clustering", "language")
    target = spec.target or ("" if without else names[-1])
    for name in (*spec.features, *((target,) if target else ())):
        if name not in table.columns:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            fix = f"Did you mean '{near[0]}'?" if near else f"It has {', '.join(names[:20])}."
            raise InvalidInput(f"{table.path} has no column '{name}'.", fix=fix)
    features = list(spec.features) or [name for name in names if name != target]
    if target in features or not features:
        raise InvalidInput(
            f"{table.path} leaves no column to learn '{target}' from.", fix="Name others in data.features."
        )
    if spec.task == "text_to_text":
        return _of_pairs(table, features, target, spec)
    if len(features) == 1 and isinstance(table.columns[features[0]][0], str) and not _numeric(table, features[0]):
        return _of_text(table, features[0], target, spec)
    rows = np.concatenate([_numbers(table, name) for name in features], axis=1)
    if spec.task in ("reconstruction", "clustering"):
        outputs = rows.shape[1] if spec.task == "reconstruction" else 1
        info = DataInfo(spec.source, count, (rows.shape[1],), outputs, (), spec.task)
        return Raw(info, rows, rows if spec.task == "reconstruction" else np.zeros(count, np.int64))
    found = _target(table, target, spec)
    info = DataInfo(spec.source, count, (rows.shape[1],), len(found.names), found.names, found.task)
    return Raw(info, rows, found.labels, notes=found.notes)


def tokenizer_of(spec: DataSpec, everything: Callable[[], str]) -> text.Tokenizer:
    """The tokenizer declared. `everything` gives the text whose characters it must know."""
    if spec.tokenizer == "char":
        return text.Characters.of(everything())
    if spec.tokenizer == "byte":
        return text.Bytes()
    path = Path(spec.tokenizer).expanduser()
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > text.MAX_TOKENIZER_BYTES:
            what = f"has {found.st_size >> 20} MiB" if stat.S_ISREG(found.st_mode) else "is no file"
            raise InvalidInput(f"{path} {what}.", fix="Give the tokenizer.json of a model.")
        return text.Pieces(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"There is no tokenizer {path}.", fix='Give "char", "byte" or a tokenizer.json.') from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", fix="Give a tokenizer.json.") from error


def language(spec: DataSpec, path: Path, whole: str) -> Raw:
    """A text to go on with, in windows."""
    tokenizer = tokenizer_of(spec, lambda: whole)
    tokens = tokenizer.encode(whole)
    rows, labels = text.windows(tokens, spec.length)
    if len(rows) < 2:
        raise InvalidInput(
            f"{path} has {len(tokens)} tokens, too few for samples of {spec.length}.", fix="Lower data.length."
        )
    info = DataInfo(
        spec.source, len(rows), (spec.length,), tokenizer.vocabulary, (), "language", tokenizer.vocabulary,
        tokenizer.padding,
    )  # fmt: skip
    return Raw(info, rows, labels, tokenizer.dump())


def classes_of(table: Table, column: str, values: Sequence[Cell]) -> tuple[Array, tuple[str, ...]]:
    """Class of each row, and the names of the classes in their order. Raises InvalidInput."""
    numeric = all(isinstance(value, int | float) for value in values)
    if numeric:
        _check_numbers(table, column, values)  # type: ignore[arg-type]
    kinds = sorted(set(values), key=None if numeric else str)  # type: ignore[type-var, arg-type]
    if not 2 <= len(kinds) <= MAX_CLASSES:
        raise InvalidInput(
            f"{table.path}, column '{column}', has {len(kinds)} different values.",
            fix=f"A target of classes has 2 to {MAX_CLASSES}; name another in data.target, or set data.task.",
        )
    numbers = {kind: number for number, kind in enumerate(kinds)}
    names = tuple(_name(kind)[:MAX_LABEL] for kind in kinds)
    return np.array([numbers[value] for value in values], np.int64), names


def _check_numbers(table: Table, column: str, values: Sequence[float]) -> None:
    """Raises InvalidInput for a number that is no class: one that is not whole, and one that no other sample has, out
    of the range that the others fill without a gap."""
    for row, value in enumerate(values):
        if not math.isfinite(value):
            raise table.wrong(row, column, f"the label is {value}", "Give it a class, or leave it out.")
        if value != int(value):
            what = f"the label is {value:g}, and classes have whole numbers"
            raise table.wrong(row, column, what, 'Correct it, or set data.task = "regression" to predict values.')
    counts = Counter(values)
    usual = sorted(value for value, count in counts.items() if count > 1)
    if len(usual) < 2 or usual[-1] - usual[0] != len(usual) - 1:
        return
    first, last = int(usual[0]), int(usual[-1])
    for row, value in enumerate(values):
        if counts[value] == 1 and (value > last + 1 or value < first - 1 or value < 0 <= first):
            what = f"the label {int(value)} is out of range: all others are {first} to {last}"
            raise table.wrong(row, column, what, "Correct it, leave it out, or have more samples of that class.")


def taken_for_values(column: str, numbers: Sequence[float], where: Callable[[int], str]) -> tuple[str, ...]:
    """A sentence where a target would be classes but for a few numbers that are not whole."""
    odd = [row for row, number in enumerate(numbers) if number != round(number)]
    few = 0 < len(odd) * 20 <= len(numbers) and len(set(numbers)) - len(odd) <= FEW_CLASSES
    if not few:
        return ()
    return (
        f"'{column}' is taken for values to predict, not for classes, since {where(odd[0])} has {numbers[odd[0]]:g}; "
        'data.task = "classification" has it otherwise.',
    )


def _name(kind: Cell) -> str:
    return str(int(kind)) if isinstance(kind, float) and kind.is_integer() else str(kind)


def _numeric(table: Table, column: str) -> bool:
    """Whether the first value is a number, also one that is written as text."""
    value = table.columns[column][0]
    return not isinstance(value, str) or _number(value) is not None


def _number(value: Cell) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _numbers(table: Table, column: str) -> npt.NDArray[np.float64]:
    """(samples, values): one value a row, or a list of as many in each."""
    values = table.columns[column]
    if isinstance(values, np.ndarray):
        made: npt.NDArray[np.float64] = values.astype(np.float64)
        made = made.reshape(len(made), -1)
    elif isinstance(values[0], list):
        width = len(values[0])
        for row, value in enumerate(values):
            if not isinstance(value, list) or len(value) != width:
                raise table.wrong(row, column, f"{_shown(value)} is not a list of {width} numbers")
        try:
            made = np.array(values, np.float64).reshape(len(values), width)
        except (TypeError, ValueError):
            row = next(n for n, value in enumerate(values) if any(_number(v) is None for v in value))  # type: ignore[union-attr]
            raise table.wrong(row, column, f"{_shown(values[row])} holds something else than numbers") from None
    else:
        made = np.empty((len(values), 1))
        for row, value in enumerate(values):
            number = _number(value)
            if number is None:
                empty = value is None or value == ""
                fix = f"{'Fill it in' if empty else 'Correct it'}, or name the columns to use in data.features."
                raise table.wrong(row, column, "it is empty" if empty else f"{_shown(value)} is not a number", fix)
            made[row, 0] = number
    if not np.isfinite(made).all():
        row = int(np.argwhere(~np.isfinite(made))[0, 0])
        raise table.wrong(row, column, f"{_shown(values[row])} is not finite")
    return made


def _target(table: Table, column: str, spec: DataSpec) -> Target:
    values = list(table.columns[column])
    missing = next((row for row, value in enumerate(values) if value is None or value == ""), None)
    if missing is not None:
        raise table.wrong(missing, column, "it is empty")
    numbers = [_number(value) for value in values]
    numeric = all(number is not None for number in numbers)
    task, notes = spec.task, tuple[str, ...]()
    if task == "auto":
        whole = numeric and all(number == int(number) for number in numbers if number and math.isfinite(number))
        few = whole and len(set(numbers)) <= FEW_CLASSES
        task = "classification" if few or not numeric else "regression"
        if task == "regression":
            notes = taken_for_values(column, [float(n) for n in numbers if n is not None], table.where)
    if task == "classification":
        labels, names = classes_of(table, column, numbers if numeric else values)
        return Target(task, labels, names)
    return Target("regression", _numbers(table, column), (column[:MAX_LABEL],), notes)


def _of_text(table: Table, column: str, target: str, spec: DataSpec) -> Raw:
    samples = table.columns[column]
    for row, value in enumerate(samples):
        if not isinstance(value, str) or not value:
            raise table.wrong(row, column, "it is empty" if not value else f"{_shown(value)} is not text")
    if spec.task == "language":
        return language(spec, table.path, "\n".join(map(str, samples)))
    if not target:
        raise InvalidInput(f"{table.path} is text, without numbers.", fix='Set data.task = "language", or a target.')
    tokenizer = tokenizer_of(spec, lambda: "".join(map(str, samples)))
    rows = np.stack([text.fitted(tokenizer.encode(str(s)), spec.length, tokenizer.padding) for s in samples])
    found = _target(table, target, spec)
    info = DataInfo(
        spec.source, len(rows), (spec.length,), len(found.names), found.names, found.task, tokenizer.vocabulary,
        tokenizer.padding,
    )  # fmt: skip
    return Raw(info, rows, found.labels, tokenizer.dump(), found.notes)


def _of_pairs(table: Table, features: Sequence[str], target: str, spec: DataSpec) -> Raw:
    """A text to be written upon another, each cut to `spec.length`."""
    if len(features) != 1:
        raise InvalidInput(
            f"{table.path} has the columns {', '.join(features)[:200]}, and text_to_text takes one.",
            fix="Name it in data.features, and what is to be written in data.target.",
        )
    columns = (features[0], target)
    for column in columns:
        for row, value in enumerate(table.columns[column]):
            if not isinstance(value, str) or not value:
                raise table.wrong(row, column, "it is empty" if value in ("", None) else f"{_shown(value)} is not text")
    tokenizer = tokenizer_of(spec, lambda: "".join(str(text) for column in columns for text in table.columns[column]))
    given, written = ([tokenizer.encode(str(text)) for text in table.columns[column]] for column in columns)
    end, padding = tokenizer.vocabulary, tokenizer.padding
    pairs = [text.pair(a, b, spec.length, padding, end) for a, b in zip(given, written, strict=True)]
    rows, labels = (np.stack(each) for each in zip(*pairs, strict=True))
    info = DataInfo(spec.source, len(rows), (2 * spec.length,), end + 1, (), "text_to_text", end + 1, tokenizer.padding)
    return Raw(info, rows, labels, tokenizer.dump())


def _shown(value: Cell) -> str:
    return repr(value)[:40]
