"""What is known of the sets that come with scikit-learn: a static table, so that a daemon needs no scikit-learn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from hivenode.data.info import DataInfo
from hivenode.data.text import PRINTABLE, Characters
from hivenode.errors import InvalidInput
from hivenode.spec.data import DataSpec

TEXTS = ("breast_cancer", "california_housing", "covtype", "diabetes", "digits", "iris", "kddcup99", "lfw", "linnerud",
         "olivetti_faces", "rcv1", "species_distributions", "twenty_newsgroups", "wine_data")  # fmt: skip
"""Descriptions that scikit-learn keeps of data sets, its own and others."""
TOPICS = ("breast_cancer", "kddcup99", "lfw", "twenty_newsgroups")
DESCRIPTION_CHARACTERS = 36_000
TOPIC_CHARACTERS = 3_600
"""Used of each; the same for all versions of scikit-learn, so that a planner knows how many samples there are."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """One set.

    Attributes:
        scaling: what turns raw values into inputs. `unit` divides by `raw_maximum` when the set is loaded, so
            predictions, too, are asked with values in [0, 1]. `standard` is (value - mean) / deviation, with the
            training part's statistics; these travel with the model, so predictions are asked with raw values.
    """

    info: DataInfo
    scaling: Literal["unit", "standard", "none"] = "standard"
    raw_maximum: float = 1.0


def lookup(spec: DataSpec) -> Bundled:
    """Raises InvalidInput, with the nearest name, for a set that is not in the table."""
    known = _SETS.get(spec.name)
    if known is None:
        names = [*_SETS, "descriptions", "topics"]
        if spec.name == "descriptions":
            samples = (DESCRIPTION_CHARACTERS - 1) // spec.length
            return Bundled(_text(spec, samples, (), "language"), "none")
        if spec.name == "topics":
            samples = len(TOPICS) * (TOPIC_CHARACTERS // spec.length)
            if samples == 0:
                raise InvalidInput(f"data.length is {spec.length}.", fix=f"Give at most {TOPIC_CHARACTERS}.")
            return Bundled(_text(spec, samples, TOPICS, "classification"), "none")
        near = difflib.get_close_matches(spec.name, names, n=1, cutoff=0.5)
        valid = ", ".join(f"sklearn:{name}" for name in names)
        fix = f"Did you mean 'sklearn:{near[0]}'?" if near else f"Valid sources are {valid}."
        raise InvalidInput(f"There is no data source {spec.source}.", fix=fix)
    return known


def _text(spec: DataSpec, samples: int, labels: tuple[str, ...], task: Any) -> DataInfo:
    if samples < 1:
        raise InvalidInput(f"data.length is {spec.length}.", fix=f"Give at most {DESCRIPTION_CHARACTERS - 1}.")
    vocabulary = Characters(PRINTABLE).vocabulary
    outputs = len(labels) or vocabulary
    return DataInfo(spec.source, samples, (spec.length,), outputs, labels, task, vocabulary)


def _table(name: str, samples: int, features: int, labels: tuple[str, ...]) -> Bundled:
    return Bundled(DataInfo(f"sklearn:{name}", samples, (features,), len(labels), labels, "classification"))


_SETS: Mapping[str, Bundled] = {
    entry.info.source.removeprefix("sklearn:"): entry
    for entry in (
        Bundled(
            DataInfo("sklearn:digits", 1797, (1, 8, 8), 10, tuple("0123456789"), "classification"),
            "unit",
            raw_maximum=16.0,
        ),
        Bundled(  # each pixel a word: its grey value, 0 to 16, and one more for padding
            DataInfo("sklearn:digit_tokens", 1797, (64,), 10, tuple("0123456789"), "classification", 18), "none"
        ),
        _table("breast_cancer", 569, 30, ("malignant", "benign")),
        _table("wine", 178, 13, ("class_0", "class_1", "class_2")),
        _table("iris", 150, 4, ("setosa", "versicolor", "virginica")),
        Bundled(DataInfo("sklearn:diabetes", 442, (10,), 1, ("progression",), "regression")),
        Bundled(DataInfo("sklearn:linnerud", 20, (3,), 3, ("Weight", "Waist", "Pulse"), "regression")),
    )
}


def information(spec: DataSpec) -> DataInfo:
    """What a declaration alone says: of bundled sets, and of files that were shared. Labels are not among it.

    Raises:
        InvalidInput: there is no such set, or only the nodes that have it know.
    """
    if spec.kind == "sklearn":
        return with_task(lookup(spec).info, spec.task)
    known = spec.shared
    if known is None:
        raise InvalidInput(f"{spec.source} is not known here.", fix="Submit it through a node that has it.")
    return DataInfo(
        known.origin or spec.source, known.samples, known.input_shape, known.outputs, (), known.task,
        known.vocabulary, known.padding,
    )  # fmt: skip


def with_task(info: DataInfo, task: str) -> DataInfo:
    """The same data for another task. Raises InvalidInput where they do not allow it."""
    if task in ("auto", info.task):
        return info
    if task == "reconstruction" and not info.vocabulary:
        return msgspec.structs.replace(info, task="reconstruction", outputs=info.features, labels=())
    if task == "clustering" and not info.vocabulary:
        return msgspec.structs.replace(info, task="clustering")
    raise InvalidInput(
        f"data.task is '{task}', and {info.source} is for {info.task}.", fix="Leave data.task out, or use other data."
    )
