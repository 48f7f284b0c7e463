"""The page that says what is identified as what is true of the samples, as they are now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_table", ROOT / "tests/models/samples/make_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_of_each_sample_what_is_found(maker: ModuleType) -> None:
    lines = (ROOT / "docs" / "identified.md").read_text().splitlines()
    told = {cell: line for line in lines for cell in line.split(" | ")[:2] if line.startswith("|")}
    told |= {cell.removeprefix("| "): line for cell, line in told.items()}
    for name, row in maker.sample_rows().items():
        assert not row.wrong, name
        assert told[row.file].endswith(f"| {row.expected} | {row.found} |"), name


def test_the_page_has_every_kind_and_no_difference(maker: ModuleType) -> None:
    page = (ROOT / "docs" / "identified.md").read_text()
    assert "**differs**" not in page
    for kind in maker.NAMED:
        assert f"| {kind} | " in page
    for package in maker.PACKAGES:
        assert f"\n### {package} " in page
