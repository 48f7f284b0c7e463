"""NumPy's .npy and .npz, by a reader of our own: no pickle, and no array larger than the bytes that are there."""

from __future__ import annotations

import difflib
import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from hivenode.data.info import DataInfo
from hivenode.data.readers.raw import (
    FEW_CLASSES,
    MAX_FILE_BYTES,
    Array,
    Raw,
    Table,
    Target,
    bounded,
    classes_of,
    taken_for_values,
)
from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec, Task

INPUTS = ("x", "X", "inputs", "data", "images", "x_train")
TARGETS = ("y", "Y", "labels", "target", "targets", "y_train")
MAX_MEMBERS = 1024
MAX_AXES = 4


def read_array(file: IO[bytes], size: int, named: str) -> Array:
    """One array.

    Args:
        size: bytes that the file has.
        named: what it is, for people.

    Raises:
        InvalidInput: it is no .npy of numbers, or claims to be larger than it is.
    """
    try:
        version = npy.read_magic(file)
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if header is None:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which could run anything and are not loaded")
        if dtype.kind not in "fiub":
            raise ValueError(f"its values are of type {dtype}, not numbers")
        needed = prod(shape) * dtype.itemsize
        if len(shape) > MAX_AXES:
            raise InvalidInput(
                f"{named} has {len(shape)} axes, {shape}, and a sample may have {MAX_AXES - 1}.",
                fix="Reshape it: images are (samples, height, width, channels), all else (samples, values).",
            )
        if needed > size:
            raise ValueError(f"its header claims {shape}, {needed} bytes, and it has {size}")
        data = file.read(needed)
        if len(data) != needed:
            raise ValueError(f"its header claims {needed} bytes of data, and it has {len(data)}")
        array: Array = np.frombuffer(data, dtype)
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise InvalidInput(
            f"{named} is not an array of numbers: {error}.", fix="Save it again, with numbers; of classes, whole ones."
        ) from error


def read_npy(path: Path, spec: DataSpec) -> Raw:
    """A table without names: the last column is the target, unless there is none."""
    size = bounded(path)
    with path.open("rb") as file:
        array = read_array(file, size, str(path))
    if spec.task in ("reconstruction", "clustering"):
        return _raw(path, array, None, spec)
    if array.ndim != 2 or array.shape[1] < 2:
        raise InvalidInput(
            f"{path} is {array.shape}; a column of it should be the target.",
            fix='Save inputs and targets as an .npz, or set data.task = "reconstruction".',
        )
    named = f"column {array.shape[1]}"
    return _raw(path, array[:, :-1], array[:, -1], spec, named, array.shape[1])


def read_npz(path: Path, spec: DataSpec) -> Raw:
    """Inputs and targets by name."""
    bounded(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()[:MAX_MEMBERS]}
            inputs = _member(path, members, spec.features[0] if spec.features else "", INPUTS)
            without = spec.task in ("reconstruction", "clustering")
            target = "" if without else _member(path, members, spec.target, TARGETS)
            arrays: dict[str, Array] = {}
            for name in filter(None, (inputs, target)):
                if members[name].file_size > MAX_FILE_BYTES:
                    raise InvalidInput(f"{name} of {path} is too large.", fix="Split it.")
                with archive.open(members[name]) as file:
                    arrays[name] = read_array(file, members[name].file_size, f"{path}, array '{name}',")
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise InvalidInput(f"{path} is not an .npz: {error}.", fix="Save it with numpy.savez.") from error
    return _raw(path, arrays[inputs], arrays.get(target), spec, target)


def _member(path: Path, members: dict[str, zipfile.ZipInfo], wanted: str, usual: tuple[str, ...]) -> str:
    if wanted and wanted not in members:
        near = difflib.get_close_matches(wanted, list(members), n=1, cutoff=0.5)
        raise InvalidInput(
            f"{path} has no array '{wanted}'.",
            fix=f"Did you mean '{near[0]}'?" if near else f"It has {', '.join(list(members)[:20])}.",
        )
    found = wanted or next((name for name in usual if name in members), "")
    if not found:
        raise InvalidInput(
            f"{path} has no array of a usual name; it has {', '.join(list(members)[:20]) or 'none'}.",
            fix="Name the inputs in data.features and the target in data.target.",
        )
    return found


def _raw(path: Path, inputs: Array, target: Array | None, spec: DataSpec, named: str = "target", first: int = 1) -> Raw:
    """`named`: what the target is called; `first`: the number that its first column has in the file."""
    if inputs.ndim < 1 or len(inputs) < 2:
        raise InvalidInput(f"{path} has {len(inputs) if inputs.ndim else 0} samples.", fix="Give at least 2.")
    images = _images(inputs)
    shape = images.shape[1:] if images.ndim > 1 else (1,)
    count = len(images)
    rows = images.reshape(count, -1)
    if rows.dtype != np.uint8 or len(shape) != 3:
        rows = rows.astype(np.float64)
        _finite(path, "inputs", rows)
    if target is None:
        task: Task = "reconstruction" if spec.task == "reconstruction" else "clustering"
        info = DataInfo(spec.source, count, shape, prod(shape) if task == "reconstruction" else 1, (), task)
        return Raw(info, rows, rows if task == "reconstruction" else np.zeros(count, np.int64))
    if len(target) != count:
        raise InvalidInput(f"{path} has {count} inputs and {len(target)} targets.", fix="Save as many of each.")
    found = _target(path, named, first, target, spec)
    info = DataInfo(spec.source, count, shape, len(found.names), found.names, found.task)
    return Raw(info, rows, found.labels, notes=found.notes)


def _images(inputs: Array) -> Array:
    """(n, height, width) and (n, height, width, channels) with the channels first."""
    if inputs.ndim == 3:
        return inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4) and inputs.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
    return inputs


def _target(path: Path, named: str, first: int, target: Array, spec: DataSpec) -> Target:
    values = target.reshape(len(target), -1)
    whole = values.dtype.kind in "iub" or bool((values == np.round(values)).all())
    few = values.shape[1] == 1 and whole and len(np.unique(values)) <= FEW_CLASSES
    if spec.task == "classification" or (spec.task == "auto" and few):
        if values.shape[1] != 1:
            raise InvalidInput(f"The targets of {path} are {target.shape}.", fix="Give one class a sample.")
        labels, names = classes_of(Table(path, {}, _row), named, values[:, 0].tolist())
        return Target("classification", labels, names)
    numbers = values.astype(np.float64)
    _finite(path, "targets", numbers, first)
    alone = spec.task == "auto" and values.shape[1] == 1
    notes = taken_for_values(named, numbers[:, 0].tolist(), _row) if alone else ()
    return Target("regression", numbers, tuple(f"target{n + 1}" for n in range(numbers.shape[1])), notes)


def _row(number: int) -> str:
    return f"row {number + 1}"


def _finite(path: Path, what: str, values: npt.NDArray[np.float64], first: int = 1) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise InvalidInput(
            f"{path}, {what}, row {row + 1}, column {column + first}: {values[row, column]} is not finite.",
            fix="Replace it, or leave that sample out.",
        )
