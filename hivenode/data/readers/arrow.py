"""Parquet files, and what `datasets` saves on disk (Arrow streams with a state.json), through pyarrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hivenode.data.readers.raw import Raw, Table, bounded, tabulate
from hivenode.errors import InvalidInput, Unavailable
from hivenode.spec.data import DataSpec

MAX_STATE_BYTES = 16 << 20


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Unavailable(
            "Parquet and Arrow files need pyarrow, which is not installed here.",
            fix="Install it: pip install 'hivenode[data]'.",
        ) from None
    return pyarrow


def read_parquet(path: Path, spec: DataSpec) -> Raw:
    """A file, or a folder of them. Raises InvalidInput, Unavailable."""
    pyarrow = _pyarrow()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InvalidInput(f"{path} holds no .parquet file.", fix="Check data.source.")
    tables: dict[Path, Any] = {}
    for file in files:
        bounded(file)
        try:
            tables[file] = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _broken(file, error) from error
    return _tabulated(path, spec, tables, {})


def read_saved(path: Path, spec: DataSpec) -> Raw:
    """A folder that `Dataset.save_to_disk` wrote, or of a DatasetDict its part "train"."""
    pyarrow = _pyarrow()
    folder = path / "train" if (path / "dataset_dict.json").is_file() else path
    if not folder.is_dir():
        parts = ", ".join(sorted(part.parent.name for part in path.glob("*/state.json"))) or "none"
        raise InvalidInput(
            f"{path} has no part called train; it has {parts}.",
            fix="Name the folder of the part to use: arrow:PATH/PART.",
        )
    if not (folder / "state.json").is_file():
        raise InvalidInput(
            f"{folder} has no state.json.", fix="Give a folder that `datasets` saved with save_to_disk()."
        )
    state = _json(folder / "state.json")
    names = [entry.get("filename") for entry in state.get("_data_files", []) if isinstance(entry, dict)]
    if not names or not all(isinstance(n, str) and "/" not in n and n not in ("", "..") for n in names):
        raise InvalidInput(f"{folder / 'state.json'} names no data files.", fix="Save the dataset again.")
    if state.get("_indices_data_files"):
        raise InvalidInput(f"{folder} is a selection.", fix="Call flatten_indices() before save_to_disk().")
    tables: dict[Path, Any] = {}
    for name in names:
        file = folder / str(name)
        try:
            bounded(file)
            with pyarrow.memory_map(str(file)) as source:
                tables[file] = pyarrow.ipc.open_stream(source).read_all()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise _broken(file, error) from error
    features = _json(folder / "dataset_info.json").get("features", {})
    classes = {
        name: kind["names"]
        for name, kind in (features.items() if isinstance(features, dict) else ())
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }
    return _tabulated(path, spec, tables, classes)


def _tabulated(path: Path, spec: DataSpec, tables: dict[Path, Any], classes: dict[str, list[str]]) -> Raw:
    pyarrow = _pyarrow()
    where = _places(path, tables)
    try:
        whole = pyarrow.concat_tables(tables.values())
    except pyarrow.ArrowException as error:
        raise _differing(tables, error) from error
    columns: dict[str, Any] = {}
    table = Table(path, columns, where)
    for name in whole.column_names:
        column = whole.column(name)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise table.wrong(row, name, "it is empty", "Fill it in, or leave the row out.")
        kind = column.type
        if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
            columns[name] = column.to_numpy() if name not in classes else _named(table, name, column, classes[name])
        elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_list(kind):
            columns[name] = column.to_pylist()
        else:
            if not spec.features or name in (*spec.features, spec.target):
                raise InvalidInput(
                    f"{path}, column '{name}', is of type {kind}.",
                    fix="Use numbers, text or lists, or name the columns to use in data.features.",
                )
    return tabulate(table, spec)


def _places(path: Path, tables: dict[Path, Any]) -> Callable[[int], str]:
    """Where a row of them all, from 0, is found: also in which file, where `path` is a folder."""
    ends = np.cumsum([table.num_rows for table in tables.values()])
    files = list(tables)

    def where(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        place = f"row {row - int(ends[number]) + tables[files[number]].num_rows + 1}"
        return place if files[number] == path else f"{files[number].relative_to(path)}, {place}"

    return where


def _differing(tables: dict[Path, Any], error: Exception) -> InvalidInput:
    """Which file has other columns than the first, and what is other about them."""
    first, *others = tables
    usual = tables[first].schema
    for file in others:
        schema = tables[file].schema
        for name in dict.fromkeys([*usual.names, *schema.names]):
            if name not in schema.names or name not in usual.names:
                has, lacks = (first, file) if name in usual.names else (file, first)
                what = f"{has} has a column '{name}', and {lacks} has none"
            elif schema.field(name).type != usual.field(name).type:
                what = f"column '{name}' is {usual.field(name).type} in {first} and {schema.field(name).type} in {file}"
            else:
                continue
            return InvalidInput(f"{what[0].upper()}{what[1:]}.", fix="Save them with the same columns.")
    said = " ".join(str(error).split())[:200].rstrip(".")
    return InvalidInput(f"The files beside {first} have different columns: {said}.", fix="Save them again.")


def _named(table: Table, name: str, column: Any, names: list[str]) -> list[str]:
    values = column.to_numpy()
    wrong = np.flatnonzero((values < 0) | (values >= len(names)))
    if len(wrong):
        row = int(wrong[0])
        raise table.wrong(row, name, f"class {values[row]}, and there are {len(names)}", "Correct it.")
    return [str(names[value]) for value in values]


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_STATE_BYTES), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}.", fix="Give a folder that `datasets` saved with save_to_disk()."
        ) from error


def _broken(path: Path, error: Exception) -> InvalidInput:
    said = " ".join(str(error).split())[:200].rstrip(".")
    return InvalidInput(f"{path} cannot be read: {said}.", fix="Save it again.")
