"""Half precision: every way to convert gives the same bits, those of IEEE 754."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.halves import narrow, widen

ALL = np.arange(1 << 16, dtype=np.uint16)
"""Every half there is."""


@pytest.fixture(params=["with torch", "without torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "with torch":
        pytest.importorskip("torch")
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    return str(request.param)


def expected(values: np.ndarray) -> np.ndarray:
    """By numpy, which converts one number after the other."""
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype(np.float16)
    over = np.isinf(halves) & np.isfinite(values)
    halves[over] = np.copysign(np.float16(65504), values[over])
    return halves.view(np.uint16)


def check(values: np.ndarray) -> None:
    assert narrow(values).tobytes() == expected(values).tobytes()


def test_every_half_becomes_the_float_it_stands_for(way: str) -> None:
    for halves in (ALL, ALL[np.isfinite(ALL.view(np.float16))]):
        out = np.empty(halves.size, np.float32)
        widen(halves, out)
        assert out.tobytes() == halves.view(np.float16).astype(np.float32).tobytes()


def test_every_half_its_neighbours_and_what_lies_between_is_rounded_alike(way: str) -> None:
    exact = ALL[np.isfinite(ALL.view(np.float16))].view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):  # beyond the largest is infinity
        above = np.nextafter(exact.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    middle = (exact + above) / 2  # ties
    for values in (exact, middle):
        finite = values[np.isfinite(values)]
        for moved in (finite, np.nextafter(finite, np.float32(np.inf)), np.nextafter(finite, np.float32(-np.inf))):
            check(moved)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 2**-25, 2**-24, 2**-15, 1e-4, 1.0, 65504, 65519.996, 65520, 1e9])
def test_numbers_of_all_sizes_are_rounded_alike(way: str, scale: float) -> None:
    rng = np.random.default_rng(3)
    for count in (1, 7, 32_768, 65_535):
        check(rng.standard_normal(count).astype(np.float32) * np.float32(scale))
        check(rng.choice([-1, 1], count).astype(np.float32) * np.float32(scale))


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_any_bits_at_all_are_converted_alike(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    check(values)
    torch = sys.modules.pop("torch", None)
    try:
        check(values)
    finally:
        if torch is not None:
            sys.modules["torch"] = torch


def test_random_bits_by_the_thousand(way: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        check(rng.integers(0, 2**32, 60_000, dtype=np.uint32).view(np.float32))
        finite = rng.integers(0, 0x477FF000, 60_000, dtype=np.uint32).view(np.float32)  # below what is too large
        check(finite)
        check(-finite)


def test_what_may_not_be_written_to_is_converted_too(way: str) -> None:
    values = np.frombuffer(struct.pack("<4f", 1.0, -2.5, 1e-7, 7e4), np.float32)
    assert narrow(values).view(np.float16).tolist() == [1.0, -2.5, pytest.approx(1e-7, rel=0.2), 65504.0]
