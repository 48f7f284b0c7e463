"""One JSON object a line, all with the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hivenode.data.readers.raw import Raw, Table, bounded, tabulate
from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec

MAX_LINE = 16 << 20
Value = str | int | float | bool | list[float] | None


def read(path: Path, spec: DataSpec) -> Raw:
    """Raises InvalidInput."""
    bounded(path)
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    decode = msgspec.json.Decoder(dict[str, Value]).decode
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if not line.strip():
                continue
            if len(line) > MAX_LINE:
                raise InvalidInput(f"{path}, line {number}: over {MAX_LINE >> 20} MiB.", fix="Shorten it.")
            try:
                said = decode(line)
            except UnicodeDecodeError as error:
                raise InvalidInput(f"{path}, line {number}, is not UTF-8.", fix="Save it as UTF-8.") from error
            except (msgspec.MsgspecError, RecursionError) as error:
                name = _key(line)
                what = f", column '{name}': it is no number, text or list of numbers" if name else f": {error}"
                raise InvalidInput(f"{path}, line {number}{what}.", fix="Give one flat JSON object a line.") from error
            if not lines:
                columns = {name: [] for name in said}
            if said.keys() != columns.keys():
                odd = sorted(said.keys() ^ columns.keys())[0]
                missing = "lacks" if odd in columns else "also has"
                raise InvalidInput(
                    f"{path}, line {number}, {missing} '{odd}'.", fix="Give every line the same keys as the first."
                )
            lines.append(number)
            for name, value in said.items():
                columns[name].append(value)
    if not lines:
        raise InvalidInput(f"{path} holds no line.", fix="Give one JSON object a line.")
    return tabulate(Table(path, columns, lambda row: f"line {lines[row]}"), spec)  # type: ignore[arg-type]


def _key(line: bytes) -> str:
    """Which value of an object is neither a number nor text nor a list of numbers; "" if the line is no object."""
    try:
        said = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    for name, value in said.items():
        try:
            msgspec.json.decode(value, type=Value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return name
    return ""
