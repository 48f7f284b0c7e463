"""The pickle machine: what pickle itself writes comes out as data or inert nodes; everything else ends in one error."""

from __future__ import annotations

import collections
import contextlib
import pickle
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.pickles import Call, Global, Key, Limits, interpret, mapping, walk

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.integers(3, 5))
@settings(max_examples=200, deadline=None)
def test_plain_data_comes_out_as_it_went_in(value: Any, protocol: int) -> None:
    found = interpret(pickle.dumps(value, protocol))
    assert found.value == value
    assert not found.globals
    assert not found.oddities


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int) -> None:
    value = {"a": [1, -2, 3.5, None, True, False, "é\n", 2**70, -(2**40)], "b": (1, (2, 3, 4, 5)), "c": {"d": []}}
    raw = pickle.dumps(value, protocol)
    found = interpret(raw + b"more")
    assert found.value == value
    assert found.end == len(raw)


@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_noise_ends_in_an_error_or_a_value(data: bytes) -> None:
    with contextlib.suppress(Corrupted):  # anything else escapes
        assert 0 < interpret(data).end <= len(data)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cut_anywhere_it_is_an_error(protocol: int) -> None:
    raw = pickle.dumps({"a": [1, "two", (3.0, None)], "b": collections.OrderedDict(x=b"y" * 300)}, protocol)
    for length in range(len(raw)):
        with pytest.raises(Corrupted):
            interpret(raw[:length])


def test_objects_stay_names_and_arguments() -> None:
    found = interpret(pickle.dumps(collections.OrderedDict(a=1, b=[2]), 4))
    assert isinstance(found.value, Call)
    assert found.value.function == Global("collections", "OrderedDict")
    assert mapping(found.value) == {"a": 1, "b": [2]}
    assert [use.name for use in found.globals] == ["collections.OrderedDict"]


def test_a_value_that_holds_itself() -> None:
    held: list[Any] = [1]
    held.append(held)
    held.append({"deep": held})
    found = interpret(pickle.dumps(held, 4)).value
    assert found[1] is found
    assert sum(node == 1 for node in walk(found) if isinstance(node, int)) == 1


def test_tuples_as_keys_cannot_be_made_to_collide() -> None:
    found = interpret(pickle.dumps({(1, 2): "a", (1, "b"): "c"}, 4)).value
    assert dict(found) == {Key((1, 2)): "a", Key((1, "b")): "c"}


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        (b"]" * 5000 + b".", Limits(operations=1000)),
        (b"(" * 200 + b".", Limits(marks=100)),
        (b"X\xff\xff\xff\x7f.", Limits()),
        (b"\x8e" + b"\xff" * 8 + b".", Limits()),
        (b"\x8b\xff\xff\xff\x7f.", Limits()),
        (b"\x8b\xff\xff\xff\xff.", Limits()),
        (b"I" + b"9" * 100_000, Limits()),
        (b"\x80\x06N.", Limits()),
        (b"h\x05.", Limits()),
        (b"g99999999999999999999\n.", Limits()),
        (b"p-1\n.", Limits()),
        (b"}]Ns.", Limits()),
        (b"N.", None),
    ],
)  # fmt: skip
def test_bounds(raw: bytes, limits: Limits | None) -> None:
    if limits is None:
        assert interpret(raw).value is None
        return
    with pytest.raises(Corrupted):
        interpret(raw, limits=limits)


def test_a_few_bytes_cannot_take_much_memory() -> None:
    bombs = [
        b"\x80\x04\x8e\x00\x00\x00\x00\x02\x00\x00\x00.",  # bytes of eight gigabytes
        b"\x80\x04\x96\x00\x00\x00\x00\x02\x00\x00\x00.",
        b"cbuiltins\nbytearray\n(I8589934592\ntR.",
        b"r\xff\xff\xff\xff.",  # a place in the memo past four thousand million
        b"N" + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff" + b".",
        b"]" + b"2" * 10_000 + b".",
    ]
    tracemalloc.start()
    for bomb in bombs:
        with contextlib.suppress(Corrupted):
            interpret(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_nesting_without_marks_ends_soundly() -> None:
    found = interpret(b")" + b"\x85" * 100_000 + b".")
    assert sum(1 for _ in walk(found.value)) == 100_001


def test_a_hook_skips_raw_bytes() -> None:
    raw = b"\x80\x02cwrap\nper\n)\x81}b" + b"RAWDATA" + b"K\x07\x86."
    found = interpret(raw, hooks={"wrap.per": lambda node, _: 7 if node.state == {} else 0})
    assert found.value[1] == 7


def test_no_module_is_imported() -> None:
    import sys

    before = set(sys.modules)
    interpret(b"\x80\x02cantigravity\ngeohash\n)R.")
    interpret(b"\x80\x02cthis\ns\n.")
    assert not {"antigravity", "this"} & (set(sys.modules) - before)
