"""Loading a data set into arrays, in a worker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hivenode.data.partition import train_test
from hivenode.data.sources import DataInfo, describe
from hivenode.errors import Corrupted, Unavailable
from hivenode.spec.job import DataSpec

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """`(value - mean) / scale` by feature; both empty when values are used as they are."""

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def apply(self, rows: npt.NDArray[np.float64]) -> Floats:
        """Rows of flattened samples to model inputs."""
        if not self.mean:
            return rows.astype(np.float32)
        scaled: npt.NDArray[np.float64] = (rows - np.array(self.mean)) / np.array(self.scale)
        return scaled.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both parts of a data set, ready for a model: inputs (samples, *input_shape), labels (samples,)."""

    info: DataInfo
    normalisation: Normalisation
    train_inputs: Floats
    train_labels: Labels
    test_inputs: Floats
    test_labels: Labels


def load(spec: DataSpec) -> Dataset:
    """Load, divide and scale a data set; the same on every machine, to the bit.

    Raises:
        InvalidInput: there is no such source.
        Unavailable: scikit-learn is not installed here.
        Corrupted: the installed set is not the one that is known.
    """
    info = describe(spec.source)
    rows, labels = _sklearn(info)
    train, test = train_test(info.samples, spec.test_fraction, spec.seed)
    normalisation = Normalisation()
    if info.scaling == "unit":
        rows = rows / info.raw_maximum
    else:
        normalisation = statistics(rows[train])
    inputs = normalisation.apply(rows).reshape(info.samples, *info.input_shape)
    return Dataset(info, normalisation, inputs[train], labels[train], inputs[test], labels[test])


def statistics(rows: npt.NDArray[np.float64]) -> Normalisation:
    """Mean and standard deviation by column (1 where a column is constant), of exactly rounded sums: the order of
    summation differs between machines, and these numbers become part of the model."""
    count = len(rows)
    means, scales = [], []
    for column in rows.T.tolist():
        mean = math.fsum(column) / count
        variance = math.fsum((value - mean) * (value - mean) for value in column) / count
        means.append(mean)
        scales.append(math.sqrt(variance) or 1.0)
    return Normalisation(tuple(means), tuple(scales))


def _sklearn(info: DataInfo) -> tuple[npt.NDArray[np.float64], Labels]:
    try:
        from sklearn import datasets
    except ImportError:
        raise Unavailable(
            f"{info.source} needs scikit-learn, which is not installed here.",
            fix="Install it: pip install 'hivenode[sklearn]'.",
        ) from None
    name = info.source.removeprefix("sklearn:")
    loaded = getattr(datasets, f"load_{name}")()
    rows = np.asarray(loaded.data, dtype=np.float64)
    labels = np.asarray(loaded.target, dtype=np.int64)
    if rows.shape != (info.samples, info.features) or len(np.unique(labels)) != info.classes:
        raise Corrupted(
            f"The installed {info.source} has {rows.shape[0]} samples of {rows.shape[1]} values; "
            f"{info.samples} of {info.features} are expected.",
            fix="Install the same version of scikit-learn on all nodes.",
        )
    return rows, labels
