"""What the members of a group of torch.distributed say to each other, beside what they average."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from hivenode.training.distributed.agreement import Agreement, Post
from hivenode.training.distributed.letters import (
    Ask,
    FromChild,
    Letter,
    Pipe,
    Reply,
    Request,
    Told,
    Trouble,
    decode,
    encode,
)
from hivenode.training.distributed.shelf import Shelf
from hivenode.training.exchange import View

GENERATIONS = 4
"""Stores kept at once: of the generation that goes on, and of what others have begun already."""

Notes = list[tuple[str, bytes]]


@dataclass(slots=True)
class Child:
    """A process that computes for this worker.

    Attributes:
        kill: ends it, and does nothing once it has ended.
        orders, wishes: connections to it.
        held: it has left a whole gradient.
        trouble: what it said when it failed.
    """

    kill: Callable[[], None]
    orders: Pipe[FromChild]
    wishes: Pipe[Request]
    held: bool = False
    trouble: Trouble | None = None


class Switchboard:
    """What members say to each other, heard by the exchange's threads whatever the worker itself is doing: answers
    those who ask where it stands, keeps the store where this member is the lowest rank, and ends a child of which
    nothing will come.

    Args:
        me: this node.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._lock = threading.Lock()
        self.agreement = Agreement(me)
        """Read by the worker's own thread, changed by way of `change` and `begin`."""
        self._child: Child | None = None
        self._shelves: dict[int, Shelf[tuple[str, int]]] = {}
        self._closed = False

    def on_note(self, sender: str, body: bytes) -> Notes:
        """See `Exchange`."""
        try:
            letter = decode(body)
        except msgspec.MsgspecError:
            return []  # of a version that says more; whoever says it gets no answer
        with self._lock:
            if isinstance(letter, Ask):
                return self._ask(letter.generation, (sender, letter.number), letter)
            if isinstance(letter, Told):
                keeper = self.agreement.members[:1] == (sender,)
                if keeper and letter.generation == self.agreement.generation and self._child is not None:
                    self._child.wishes.send(Reply(letter.number, letter.answer))
                return []
            answers = self.agreement.heard(sender, letter)
            self._end_what_is_condemned()
        return _notes(answers)

    def on_view(self, view: View) -> None:
        """See `Exchange`."""
        with self._lock:
            self.agreement.changed(view.members)
            self._end_what_is_condemned()

    def wish(self, generation: int, request: Request) -> Notes:
        """This member's child asks the store."""
        with self._lock:
            ask = Ask(generation, request.number, request.wish)
            if self.agreement.members[:1] == (self._me,):
                return self._ask(generation, (self._me, request.number), ask)
            return [(self.agreement.members[0], encode(ask))]

    def change(self, what: Callable[[Agreement], Post]) -> Notes:
        """Something has happened here; what to tell others of it."""
        with self._lock:
            notes = _notes(what(self.agreement))
            self._end_what_is_condemned()
        return notes

    def begin(self) -> bool:
        """See `Agreement`."""
        with self._lock:
            return not self._closed and self.agreement.begin()

    def settled(self, view: View) -> bool:
        with self._lock:
            return self.agreement.settled(view.members)

    def employ(self, child: Child | None) -> None:
        """Of whom to think when something happens; None when there is nobody."""
        with self._lock:
            self._child = child
            if child is not None and self._closed:
                child.kill()
            self._end_what_is_condemned()

    def close(self) -> None:
        """Nothing goes on: whoever waits for the child gets its end."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _end_what_is_condemned(self) -> None:
        if self.agreement.condemned and self._child is not None:
            self._child.kill()

    def _ask(self, generation: int, who: tuple[str, int], ask: Ask) -> Notes:
        if generation < self.agreement.generation:
            return []
        if generation not in self._shelves:
            self._shelves[generation] = Shelf()
            for old in sorted(self._shelves)[:-GENERATIONS]:
                del self._shelves[old]
        notes: Notes = []
        for (node, number), answer in self._shelves[generation].ask(who, ask.wish):
            if node != self._me:
                notes.append((node, encode(Told(generation, number, answer))))
            elif self._child is not None:
                self._child.wishes.send(Reply(number, answer))
        return notes


def _notes(letters: Sequence[tuple[str, Letter]]) -> Notes:
    return [(node, encode(letter)) for node, letter in letters]
