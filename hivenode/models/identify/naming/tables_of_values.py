"""Q-tables: values of actions by state, kept as a plain array or dict. Nothing in such a file says what it is."""

from __future__ import annotations

from collections.abc import Iterable

from hivenode.models.identify.formats.numpy_pickles import SCALAR, Array, array
from hivenode.models.identify.formats.pickles import Call, Value
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor, count

MOST_ACTIONS = 64
"""A wider last axis is more likely one of features."""
LOOKED_AT = 1000
"""Entries of a dict that are looked at; the rest is taken to be alike."""
AGENT = "reinforcement_learning"
CALLED = ("q", "q_table", "qtable", "q_values", "qvalues", "q_value", "action_values", "table")
"""What people call them."""


def is_called(name: str) -> bool:
    """Whether a variable's or file's name says that it is a Q-table: `Q`, `q_table_final`, `taxi-qtable`."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    return plain in CALLED or "q_table" in plain or "qtable" in plain or "q_values" in plain


def recognise_array(report: Report, found: Array | Tensor, called: str | None) -> bool:
    """Name an array that can be a Q-table: numbers, states along the first axes, a few actions along the last.

    Args:
        called: a name that says so, as evidence; None if there is none.

    Returns:
        Whether it can be one.
    """
    shape = found.shape
    if not found.dtype.startswith("float") or len(shape) < 2 or not 2 <= shape[-1] <= MOST_ACTIONS:
        return False
    states = count(shape[:-1])
    if states <= shape[-1] and called is None:
        return False
    how = Confidence.inferred if called else Confidence.guessed
    evidence = f"called {called}, shape {list(shape)}" if called else (
        f"an array {list(shape)}: few actions, many states; a table of features would look the same"
    )  # fmt: skip
    _name(report, how, evidence, states, shape[-1])
    report.know(
        how, evidence, inputs=[Port("state", "int64", (FREE, *([len(shape) - 1] if len(shape) > 2 else [])))],
        outputs=[Port("action_values", found.dtype, (FREE, shape[-1]))],
    )  # fmt: skip
    return True


def recognise_dict(report: Report, entries: dict[Value, Value]) -> bool:
    """Name a dict that can be a Q-table: values of the same few actions for each state, or one for each pair.

    Returns:
        Whether it can be one.
    """
    if not entries:
        return False
    looked = list(entries.items())[:LOOKED_AT]
    widths = {_width(value) for _, value in looked}
    total = len(entries)
    if widths == {0}:  # a number each
        pairs = [key for key, _ in looked if isinstance(key, tuple) and len(key) == 2]
        if len(pairs) != len(looked):
            return False
        every = [key for key in entries if isinstance(key, tuple) and len(key) == 2]
        actions = len({repr(key[1]) for key in every})
        if not 2 <= actions <= MOST_ACTIONS or len(every) != total:
            return False
        states = len({repr(key[0]) for key in every})
        _name(report, Confidence.guessed, f"{total} numbers under pairs of a state and an action", states, actions)
        report.know(Confidence.read, "its entries", parameters=total)
        return True
    if len(widths) != 1 or None in widths:
        return False
    (width,) = widths
    if width is None or not 2 <= width <= MOST_ACTIONS:
        return False
    evidence = f"{total} entries of {width} numbers each"
    _name(report, Confidence.guessed, evidence, total, width)
    report.know(Confidence.read if total <= LOOKED_AT else Confidence.inferred, "its entries", parameters=total * width)
    report.know(Confidence.guessed, evidence, outputs=[Port("action_values", None, (width,))])
    return True


def _name(report: Report, how: Confidence, evidence: str, states: int, actions: int) -> None:
    report.know(how, evidence, family=AGENT, task="q_learning", architecture="q_table", model="Q-table")
    report.hyperparameters["states"] = states
    report.hyperparameters["actions"] = actions


def _width(value: Value) -> int | None:
    """How many numbers there are: 0 for a number itself, None for something else."""
    if _is_number(value):
        return 0
    if isinstance(value, (list, tuple)):
        return _numbers(value)
    if isinstance(value, dict):
        return _numbers(value.values())
    if isinstance(value, Call):
        if value.entries is not None and array(value) is None:
            return _numbers(value.entries.values())
        found = array(value)
        if found is not None and len(found.shape) == 1 and found.dtype.startswith(("float", "int")):
            return found.shape[0]
    return None


def _numbers(values: Iterable[Value]) -> int | None:
    held = list(values)
    return len(held) if held and len(held) <= MOST_ACTIONS and all(map(_is_number, held)) else None


def _is_number(value: Value) -> bool:
    if isinstance(value, Call):
        return value.path in SCALAR
    return type(value) in (int, float)
