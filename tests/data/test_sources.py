"""The static table of data sets, against scikit-learn itself, and loading."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hivenode.data.dataset import statistics
from hivenode.data.info import DataInfo
from hivenode.data.loading import load
from hivenode.data.sources import lookup
from hivenode.errors import InvalidInput
from hivenode.spec.job import DataSpec


def describe(source: str) -> DataInfo:
    return lookup(DataSpec(source=source)).info


SOURCES = ["sklearn:digits", "sklearn:breast_cancer", "sklearn:wine", "sklearn:iris"]


@pytest.mark.parametrize("source", SOURCES)
def test_the_table_agrees_with_the_data(source: str) -> None:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{source.removeprefix('sklearn:')}")()
    info = describe(source)
    assert (info.samples, info.features) == loaded.data.shape
    assert info.sample_bytes == 4 * loaded.data.shape[1]
    assert info.labels == tuple(str(name) for name in loaded.target_names)
    assert info.outputs == len(info.labels)


def test_describing_loads_neither_scikit_learn_nor_a_framework() -> None:
    code = (
        "import sys; from hivenode.data.sources import lookup; from hivenode.models.declared import describe; "
        "from hivenode.spec.job import DataSpec, ModelSpec; "
        "import hivenode.jobs.workers as w; info = lookup(DataSpec()).info; assert w.ForkWorkers().frameworks; "
        "describe(ModelSpec(), info); print(sorted({'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="Did you mean 'sklearn:digits'"):
        describe("sklearn:digit")
    with pytest.raises(InvalidInput, match="Valid sources are sklearn:digits"):
        describe("sklearn:xyzzy")


def test_digits_are_images_between_zero_and_one() -> None:
    data = load(DataSpec(source="sklearn:digits", test_fraction=0.25, seed=3))
    assert data.train.inputs.shape[1:] == (1, 8, 8)
    assert len(data.train.labels) + len(data.test.labels) == 1797
    assert data.train.inputs.dtype == np.float32
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0.0, 1.0)
    assert data.normalisation.mean == ()


@pytest.mark.parametrize("source", SOURCES[1:])
def test_tables_are_standardised_by_the_training_part_alone(source: str) -> None:
    data = load(DataSpec(source=source, test_fraction=0.3, seed=1))
    assert np.allclose(data.train.inputs.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(data.train.inputs.std(axis=0), 1, atol=1e-5)
    assert not np.allclose(data.test.inputs.mean(axis=0), 0, atol=1e-5)


def test_a_constant_column_is_only_centred() -> None:
    normalisation = statistics(np.array([[2.0, 1.0], [2.0, 3.0]]))
    assert normalisation.apply(np.array([[2.0, 2.0]])).tolist() == [[0.0, 0.0]]
    assert normalisation.scale == (1.0, 1.0)
