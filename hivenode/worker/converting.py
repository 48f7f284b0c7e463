"""Conversion inside a process set apart: what a model holds, written in forms that hold data alone.

Where our readers can tell every tensor, they are copied and nothing of the file runs. Else the framework's own loader
is called, and with it whatever the file makes it run: that is what the walls are for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hivenode.errors import Refused
from hivenode.models.apart import Convert
from hivenode.models.identify import identify
from hivenode.models.identify.report import Tensor
from hivenode.models.loading import order
from hivenode.models.loading.weights import BITS, NUMPY, Files

MOST_PARTS = 200_000
MOST_NOTES = 50
DEEPEST = 64
CHUNK = 16 << 20
_TORCH = frozenset({"torch_zip", "torch_legacy", "torch_tar", "ultralytics_pt", "torch_distributed"})
_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3": "F8_E4M3", "complex64": "C64",
}  # fmt: skip


class Plain(NamedTuple):
    """A tensor to be written: `rows` makes its contiguous bytes when they are wanted."""

    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[], Any]


def convert(work: Convert) -> list[str]:
    """Write what `work.path` holds into `work.out`.

    Returns:
        what was done, and what was not carried over, in sentences.

    Raises:
        Refused: nothing in it could be carried over.
    """
    path, out = Path(work.path), Path(work.out)
    report = identify(path)
    form = report.format or ""
    if not work.run:
        return _copied(path, out)
    sys.path[:0] = work.code
    if form in _TORCH:
        return _tensors(_torch(path, form), out)
    if form == "torchscript":
        import torch

        return _tensors(torch.jit.load(str(path), map_location="cpu").state_dict(), out)
    if form in {"keras", "keras_h5"}:
        return _keras(path, out, safe=report.safe is True)
    if form == "xgboost_binary":
        import xgboost

        return [_saved(xgboost.Booster(model_file=str(path)), "model", out)]
    if form in {"pickle", "joblib", "skops", "npz", "npy"} or form == "":
        return _objects(_unpickled(path, form), out)
    raise Refused(f"{path} is {form}, which is not converted.", fix="Convert it with the library that wrote it.")


# our own readers


def _copied(path: Path, out: Path) -> list[str]:
    """Every tensor as `identify` lists it, one after the other; memory for one at a time."""
    report = identify(path)
    order.check(path, report)
    files = Files(path, resident=True)
    plain: dict[str, Plain] = {}
    lost: list[str] = []
    for tensor in report.listing:
        if tensor.dtype in _SAFETENSORS:
            plain[tensor.name] = Plain(tensor.dtype, tensor.shape, partial(_read, files, tensor))
        else:
            lost.append(f"{tensor.name} ({tensor.dtype}) was left out: safetensors has no such dtype.")
    if not plain:
        raise Refused(f"{path} holds no tensors that can be copied.", fix="Try --run, which asks its own framework.")
    write(out / "model.safetensors", plain)
    done = f"{len(plain)} tensors were copied by hivenode's own readers; nothing in the file was run."
    return [done, *lost[:MOST_NOTES]]


def _read(files: Files, tensor: Tensor) -> Any:
    kind = np.dtype(NUMPY.get(tensor.dtype) or BITS[tensor.dtype])
    steps = None if tensor.stride is None else tuple(step * kind.itemsize for step in tensor.stride)
    made = np.ascontiguousarray(np.ndarray(tensor.shape, kind, files.weight(tensor).raw(), 0, steps))
    files.forget()
    return made


# the frameworks' loaders, which run what the file says


def _torch(path: Path, form: str) -> Any:
    import torch

    if form == "torch_distributed":
        from torch.distributed.checkpoint import format_utils

        whole = Path.home() / "whole.pt"
        format_utils.dcp_to_torch_save(path, whole)
        path = whole
    return torch.load(path, map_location="cpu", weights_only=False)


def _unpickled(path: Path, form: str) -> Any:
    if form in {"npz", "npy"}:
        made = np.load(path, allow_pickle=True)
        return dict(made) if form == "npz" else made
    if form == "skops":
        from skops import io

        return io.load(path, trusted=io.get_untrusted_types(file=path))
    import joblib

    return joblib.load(path)


def _keras(path: Path, out: Path, *, safe: bool) -> list[str]:
    import keras

    model = keras.saving.load_model(str(path), compile=False, safe_mode=safe)
    if safe:
        model.save(str(out / "model.keras"))
        return ["Keras saved it again as model.keras, without its optimizer."]
    arrays = {variable.path: np.asarray(variable) for variable in model.variables}
    return [*_tensors(arrays, out), "Its code-bearing layers cannot be carried over; the weights were."]


def _objects(value: Any, out: Path) -> list[str]:
    """Estimators, boosters and networks wherever they are in an object, each in a file of its own; arrays together."""
    notes: list[str] = []
    arrays: dict[str, Any] = {}
    for place, part in _parts(value):
        name = "".join(letter if letter.isalnum() else "_" for letter in place)[:80].strip("_") or "model"
        library = type(part).__module__.partition(".")[0]
        if isinstance(part, np.ndarray | np.generic) or library == "torch":
            arrays[place or "array"] = part
        elif library in {"xgboost", "lightgbm", "catboost", "sklearn"}:
            notes.append(_saved(part, name, out))
    if arrays:
        notes += _tensors(arrays, out)
    if not notes:
        raise Refused(
            f"It holds a {type(value).__module__}.{type(value).__qualname__}, and nothing in it can be carried over.",
            fix="Take the model out of it in Python and save that alone.",
        )
    return notes[:MOST_NOTES]


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What can be carried over in an object, its containers and attributes, with where it is."""
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    seen: set[int] = set()
    while waiting:
        place, part, depth = waiting.pop()
        if id(part) in seen or depth > DEEPEST or len(seen) > MOST_PARTS:
            continue
        seen.add(id(part))
        if not isinstance(part, type) and _carried(part):
            yield place, part
            continue
        if isinstance(part, dict):
            inner = list(part.items())
        elif isinstance(part, list | tuple):
            inner = list(enumerate(part))
        else:
            inner = list(vars(part).items()) if hasattr(part, "__dict__") and not isinstance(part, type) else []
        waiting.extend((f"{place}.{key}" if place else str(key), held, depth + 1) for key, held in reversed(inner))


def _carried(part: Any) -> bool:
    library = type(part).__module__.partition(".")[0]
    if library == "sklearn":
        return hasattr(part, "get_params")
    return isinstance(part, np.ndarray | np.generic) or library in {"torch", "xgboost", "lightgbm", "catboost"}


def _saved(part: Any, name: str, out: Path) -> str:
    """One estimator or booster by its own library, in the form without code."""
    kind = f"{type(part).__module__}.{type(part).__qualname__}"
    library = kind.partition(".")[0]
    if library == "xgboost":
        part.save_model(str(out / f"{name}.ubj"))
        return f"{kind} was saved as {name}.ubj by xgboost."
    if library == "lightgbm":
        getattr(part, "booster_", part).save_model(str(out / f"{name}.txt"))
        return f"{kind} was saved as {name}.txt by lightgbm."
    if library == "catboost":
        part.save_model(str(out / f"{name}.cbm"))
        return f"{kind} was saved as {name}.cbm by catboost."
    import joblib

    joblib.dump(part, out / f"{name}.joblib")
    return f"{kind} was saved as {name}.joblib, to be rebuilt from its state."


def _tensors(value: Any, out: Path) -> list[str]:
    """Every tensor in nested modules, dicts and lists, under dotted names; numbers and texts beside them."""
    plain: dict[str, Plain] = {}
    beside: dict[str, bool | int | float | str] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    lost = 0
    while waiting:
        place, part, depth = waiting.pop()
        if depth > DEEPEST or len(plain) + lost > MOST_PARTS:
            lost += 1
            continue
        kind = str(getattr(part, "dtype", "")).removeprefix("torch.")
        if hasattr(part, "state_dict") and hasattr(part, "parameters"):
            waiting.append((place, part.state_dict(), depth + 1))
        elif kind in _SAFETENSORS and hasattr(part, "shape"):
            plain[place or "tensor"] = Plain(kind, tuple(part.shape), partial(_contiguous, part))
        elif isinstance(part, dict):
            pairs = reversed(list(part.items()))
            waiting.extend((f"{place}.{key}" if place else str(key), held, depth + 1) for key, held in pairs)
        elif isinstance(part, list | tuple):
            pairs = reversed(list(enumerate(part)))
            waiting.extend((f"{place}.{key}" if place else str(key), held, depth + 1) for key, held in pairs)
        elif isinstance(part, bool | int | float | str):
            beside[place] = part
        elif part is not None:
            lost += 1
    if not plain:
        raise Refused(f"It holds no tensors; it is a {type(value).__qualname__}.", fix="Save the model's state_dict().")
    write(out / "model.safetensors", plain)
    notes = [f"{len(plain)} tensors were written to model.safetensors."]
    if beside:
        (out / "settings.json").write_text(json.dumps(beside, indent=1, default=str))
        notes.append(f"{len(beside)} numbers and texts were written to settings.json.")
    if lost:
        notes.append(f"{lost} objects of other kinds were left out.")
    return notes


def _contiguous(part: Any) -> Any:
    if isinstance(part, np.ndarray | np.generic):
        return np.ascontiguousarray(part)
    import torch

    return part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def write(path: Path, tensors: dict[str, Plain]) -> None:
    """A safetensors file, written tensor by tensor.

    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        size = (
            int(np.prod(tensor.shape, dtype=np.int64))
            * np.dtype(NUMPY.get(tensor.dtype) or BITS[tensor.dtype]).itemsize
        )
        header[name] = {"dtype": _SAFETENSORS[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            view = memoryview(np.atleast_1d(tensor.rows()).reshape(-1).view(np.uint8).data)
            for start in range(0, len(view), CHUNK):
                file.write(view[start : start + CHUNK])
