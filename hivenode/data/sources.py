"""What is known of each data set without loading it: a static table; a daemon needs no scikit-learn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from hivenode.errors import InvalidInput

Task = Literal["classification", "regression"]


@dataclass(frozen=True, slots=True)
class DataInfo:
    """One data set.

    Attributes:
        input_shape: shape of one sample; (channels, height, width) for images.
        sample_bytes: one sample as float32.
        labels: name of each class, in the order of the outputs.
        scaling: what turns raw values into inputs. `unit` divides by `raw_maximum` when the set is loaded, so
            predictions, too, are asked with values in [0, 1]. `standard` is (value - mean) / deviation,
            with the training part's statistics; these travel with the model, so predictions are asked with raw
            values.
    """

    source: str
    samples: int
    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...]
    task: Task
    scaling: Literal["unit", "standard"]
    raw_maximum: float = 1.0

    @property
    def features(self) -> int:
        """Values in one flattened sample."""
        return prod(self.input_shape)

    @property
    def sample_bytes(self) -> int:
        return 4 * self.features


def describe(source: str) -> DataInfo:
    """Raises InvalidInput, with the nearest name, for a source that is not in the table."""
    info = _SOURCES.get(source)
    if info is None:
        bare = {known.removeprefix("sklearn:"): known for known in _SOURCES}
        near = difflib.get_close_matches(source.removeprefix("sklearn:"), list(bare), n=1, cutoff=0.5)
        fix = f"Did you mean '{bare[near[0]]}'?" if near else f"Valid sources are {', '.join(_SOURCES)}."
        raise InvalidInput(f"There is no data source {source}.", fix=fix)
    return info


def _table(name: str, samples: int, features: int, labels: tuple[str, ...]) -> DataInfo:
    return DataInfo(f"sklearn:{name}", samples, (features,), len(labels), labels, "classification", "standard")


_SOURCES: Mapping[str, DataInfo] = {
    info.source: info
    for info in (
        DataInfo(
            "sklearn:digits",
            1797,
            (1, 8, 8),
            10,
            tuple("0123456789"),
            "classification",
            "unit",
            raw_maximum=16.0,
        ),
        _table("breast_cancer", 569, 30, ("malignant", "benign")),
        _table("wine", 178, 13, ("class_0", "class_1", "class_2")),
        _table("iris", 150, 4, ("setosa", "versicolor", "virginica")),
    )
}
