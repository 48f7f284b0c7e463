"""Which tests may run beside each other, and one day for all of them."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REAL = ("cli", "cluster", "net", "network", "security", "training/exchange", "worker")
"""Folders of tests on real clocks, sockets and processes. They run one after the other, in one process; beside it
another goes through those in virtual time or of none."""

# Before the processes that share the tests begin, so that all of them know the same ones, at midnight too.
os.environ["COLUMNS"] = "160"  # of a terminal, also where there is none
os.environ.setdefault("HIVENODE_SEED", str(datetime.datetime.now(tz=datetime.UTC).toordinal()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = tuple(HERE / folder for folder in REAL)
    for item in items:
        if any(folder in item.path.parents for folder in folders):
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.xdist_group("real"))
