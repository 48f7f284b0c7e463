"""Comma-separated values, UTF-8; the first line names the columns."""

from __future__ import annotations

import csv
from pathlib import Path

from hivenode.data.readers.raw import Raw, Table, bounded, tabulate
from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec

MAX_CELL = 1 << 20
MAX_COLUMNS = 16_384


def read(path: Path, spec: DataSpec) -> Raw:
    """Raises InvalidInput."""
    bounded(path)
    csv.field_size_limit(MAX_CELL)
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            _check_names(path, names)
            columns: list[list[str]] = [[] for _ in names]
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise InvalidInput(
                        f"{path}, line {reader.line_num}: {len(cells)} columns, and the first line names {len(names)}.",
                        fix="Correct that line.",
                    )
                lines.append(reader.line_num)
                for column, cell in zip(columns, cells, strict=True):
                    column.append(cell.strip())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}, line {_undecodable(path)}, is not UTF-8.", fix="Save it as UTF-8.") from error
    except csv.Error as error:
        last = lines[-1] + 1 if lines else 1  # an open quotation mark is noticed at the end of the file
        fix = "Save it with commas."
        if "unexpected end" in str(error):
            fix = "Look there for a quotation mark that opens and does not close; within quotes it is written twice."
        raise InvalidInput(f"{path}, about line {last}: {error}.", fix=fix) from error
    table = Table(path, dict(zip(names, columns, strict=True)), lambda row: f"line {lines[row]}")
    return tabulate(table, spec)


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8: what is decoded at once is more than a line."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_CELL), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _check_names(path: Path, names: list[str]) -> None:
    if len(names) == 1 and (other := next((mark for mark in (";", "\t", "|") if mark in names[0]), "")):
        raise InvalidInput(
            f"{path}, line 1, is one column, with {other!r} in its name.",
            fix="Save it with commas between the columns.",
        )
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise InvalidInput(f"{path}, line 1, names two columns '{twice[0]}'.", fix="Give each a name of its own.")
    if not 1 <= len(names) <= MAX_COLUMNS or len(set(names)) != len(names) or not all(names):
        raise InvalidInput(
            f"{path}, line 1, does not name the columns, each by a name of its own.", fix="Add a first line of names."
        )
    if all(_is_number(name) for name in names):
        raise InvalidInput(f"{path}, line 1, holds numbers, not names.", fix="Add a first line of names.")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
