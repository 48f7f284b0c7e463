"""Data sets from declarations, wherever they lie: bundled, or files of this machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hivenode.data import dataset, loading, readers
from hivenode.data.dataset import Dataset
from hivenode.errors import InvalidInput
from hivenode.spec.data import FILES, DataSpec


def read(spec: DataSpec) -> Dataset:
    """All of a data set, divided and scaled.

    Raises:
        HiveError: it cannot be read, with the file, the line and the column.
    """
    if spec.kind == "sklearn":
        return loading.load(spec)
    if spec.kind not in FILES:
        raise InvalidInput(f"{spec.source} is no file of this machine.", fix="Look at it on the nodes that have it.")
    raw = readers.read(spec)
    if raw.info.task == "classification" and np.bincount(raw.labels).max() == len(raw.labels):
        raise InvalidInput(f"All samples of {spec.source} are of one class.", fix="Name another data.target.")
    made = dataset.divide(raw.info, raw.rows, raw.labels, spec, raw.tokenizer, standardise=True)
    return replace(made, summary=made.summary + raw.notes)
