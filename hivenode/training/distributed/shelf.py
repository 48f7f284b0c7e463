"""The keys and values of a rendezvous, as one member keeps them for all. Pure.

What PyTorch's `Store` promises (torch/csrc/distributed/c10d/Store.hpp), but for time: who waits is answered when there
is an answer, and stops waiting by itself.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from hivenode.training.distributed.letters import (
    MAX_VALUE,
    Add,
    Answer,
    Append,
    Check,
    CompareSet,
    Delete,
    Set,
    Size,
    Wait,
    Wish,
)

MAX_HELD = 65_536
"""Keys."""
MAX_HELD_BYTES = 64 << 20
"""Of all values."""
MAX_WAITING = 4096

Who = TypeVar("Who")


class Shelf(Generic[Who]):
    """`Who` is whatever answers are addressed by."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}
        self._bytes = 0
        self._waiting: list[tuple[Who, Wait]] = []

    def ask(self, who: Who, wish: Wish) -> list[tuple[Who, Answer]]:
        """What there is to answer now, to whom."""
        if isinstance(wish, Wait):
            if all(key in self._held for key in wish.keys):
                return [(who, self._given(wish))]
            if len(self._waiting) >= MAX_WAITING:
                return [(who, Answer(error="too many are waiting"))]
            self._waiting.append((who, wish))
            return []
        return [(who, self._answer(wish)), *self._fulfilled()]

    def _given(self, wish: Wait) -> Answer:
        return Answer(tuple(self._held[key] for key in wish.keys) if wish.values else ())

    def _fulfilled(self) -> list[tuple[Who, Answer]]:
        ready = [(who, wish) for who, wish in self._waiting if all(key in self._held for key in wish.keys)]
        if ready:
            self._waiting = [each for each in self._waiting if each not in ready]
        return [(who, self._given(wish)) for who, wish in ready]

    def _answer(self, wish: Wish) -> Answer:
        match wish:
            case Check(keys):
                return Answer(number=int(all(key in self._held for key in keys)))
            case Delete(key):
                value = self._held.pop(key, None)
                self._bytes -= len(value or b"")
                return Answer(number=int(value is not None))
            case Size():
                return Answer(number=len(self._held))
            case Set(key, value):
                return self._put(key, value)
            case Append(key, value):
                return self._put(key, self._held.get(key, b"") + value)
            case Add(key, amount):
                try:
                    total = int(self._held.get(key, b"0")) + amount
                except ValueError:
                    return Answer(error=f"the value of {key} is no number")
                self._put(key, str(total).encode())
                return Answer(number=total)
            case CompareSet(key, expected, desired):
                held = self._held.get(key)
                if held == expected or (held is None and not expected):
                    return self._put(key, desired, Answer((desired,)))
                return Answer((expected if held is None else held,))
        raise AssertionError(wish)

    def _put(self, key: str, value: bytes, answer: Answer = Answer()) -> Answer:  # noqa: B008 - frozen
        if len(value) > MAX_VALUE:
            return Answer(error=f"the value of {key} has {len(value)} bytes, and at most {MAX_VALUE} are kept")
        if key not in self._held and len(self._held) >= MAX_HELD:
            return Answer(error=f"there are {MAX_HELD} keys already")
        held = self._bytes - len(self._held.get(key, b"")) + len(value)
        if held > MAX_HELD_BYTES:
            return Answer(error=f"the values would have {held} bytes, and at most {MAX_HELD_BYTES} are kept")
        self._held[key], self._bytes = value, held
        return answer
