"""The values of the sets that come with scikit-learn."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.data.sources import DESCRIPTION_CHARACTERS, TEXTS, TOPIC_CHARACTERS, TOPICS, lookup
from hivenode.data.text import PRINTABLE, Characters, windows
from hivenode.errors import Corrupted, Unavailable
from hivenode.spec.data import DataSpec


def values(spec: DataSpec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows and labels of a set, all of it, in its own order and unscaled.

    Raises:
        Unavailable: scikit-learn is not installed here.
        Corrupted: the installed set is not the one that is known.
    """
    info = lookup(spec).info
    try:
        from sklearn import datasets
    except ImportError:
        raise Unavailable(
            f"{spec.source} needs scikit-learn, which is not installed here.",
            fix="Install it: pip install 'hivenode[sklearn]'.",
        ) from None
    if spec.name in ("descriptions", "topics"):
        return _language(spec) if spec.name == "descriptions" else _topics(spec)
    if spec.name == "digit_tokens":
        digits = datasets.load_digits()
        _expect(spec, digits.data.shape == (info.samples, info.features))
        return digits.data.astype(np.int64) + 1, digits.target.astype(np.int64)
    loaded = getattr(datasets, f"load_{spec.name}")()
    rows = np.asarray(loaded.data, dtype=np.float64)
    if info.task == "regression":
        targets = np.asarray(loaded.target, dtype=np.float64).reshape(len(rows), -1)
        _expect(spec, rows.shape == (info.samples, info.features) and targets.shape[1] == info.outputs)
        return rows, targets
    labels = np.asarray(loaded.target, dtype=np.int64)
    _expect(spec, rows.shape == (info.samples, info.features) and len(np.unique(labels)) == info.outputs)
    return rows, labels


def _expect(spec: DataSpec, known: bool) -> None:
    if not known:
        raise Corrupted(
            f"The installed {spec.source} has other sizes than are known.",
            fix="Install the same version of scikit-learn on all nodes.",
        )


def _description(spec: DataSpec, name: str) -> str:
    from importlib import resources

    try:
        found = resources.files("sklearn.datasets.descr").joinpath(f"{name}.rst").read_text(encoding="utf-8")
    except (OSError, ModuleNotFoundError):
        _expect(spec, known=False)
    return re.sub(r"[^\n -~]", "", found)


def _language(spec: DataSpec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    text = "\n".join(_description(spec, name) for name in TEXTS)[:DESCRIPTION_CHARACTERS]
    _expect(spec, len(text) == DESCRIPTION_CHARACTERS)
    return windows(Characters(PRINTABLE).encode(text), spec.length)


def _topics(spec: DataSpec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows, labels = [], []
    for label, name in enumerate(TOPICS):
        text = _description(spec, name)[:TOPIC_CHARACTERS]
        _expect(spec, len(text) == TOPIC_CHARACTERS)
        pieces = TOPIC_CHARACTERS // spec.length
        tokens = Characters(PRINTABLE).encode(text)[: pieces * spec.length]
        rows.append(tokens.reshape(pieces, spec.length))
        labels += [label] * pieces
    return np.concatenate(rows), np.array(labels, np.int64)
