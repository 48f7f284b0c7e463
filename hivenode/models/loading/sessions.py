"""Graphs run by their own library: ONNX by onnxruntime without custom operators, Keras by keras without code.

What the files hold was judged before (`examine`); here the libraries get nothing else than that.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from hivenode.errors import Refused, Unavailable

_WEIGHTS = ".weights.h5"


def onnx(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU; operators of other libraries are not registered.

    Raises:
        Unavailable: onnxruntime is not installed.
        Refused: it does not take the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise Refused(
            f"onnxruntime does not take {path}: {str(error)[:300]}",
            fix="Export the model again, or load its weights alone.",
        ) from error


def keras(path: Path) -> Any:
    """A Keras model, not compiled. Its configuration names Keras's own classes only, its weights are plain datasets.

    Raises:
        Unavailable: Keras is not installed.
        Refused: a link or dataset in it leads elsewhere, or Keras does not take it.
    """
    try:
        import keras as library
    except ImportError:
        raise _missing("keras", "tensorflow") from None
    _only_plain(path)
    try:
        return library.saving.load_model(str(path), custom_objects=None, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError) as error:
        raise Refused(
            f"keras {library.__version__} does not take {path}: {str(error)[:300]}",
            fix="Save it again with this version of Keras, or load its weights alone.",
        ) from error


def _only_plain(path: Path) -> None:
    """That HDF5's own library, too, sees hard links and datasets within the file, and nothing else."""
    import h5py

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(_WEIGHTS):
                    with h5py.File(io.BytesIO(archive.read(name)), "r") as file:
                        _walk(file, path)
    else:
        with h5py.File(path, "r") as file:
            _walk(file, path)


def _walk(group: Any, path: Path) -> None:
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _leads(path, name)
        inner = group[name]
        if isinstance(inner, h5py.Group):
            _walk(inner, path)
        elif isinstance(inner, h5py.Dataset) and (inner.external or inner.is_virtual):
            raise _leads(path, name)


def _leads(path: Path, name: str) -> Refused:
    return Refused(f"{path} is not loaded: {name[:100]} in it leads to another file.", fix="Fetch it from its maker.")


def _missing(library: str, extra: str) -> Unavailable:
    return Unavailable(
        f"{library} is not installed here, and the model is run by it.",
        fix=f"Install it (pip install 'hivenode[{extra}]'), or load the weights alone (model=False).",
    )
