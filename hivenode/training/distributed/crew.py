"""A worker's part in a group of torch.distributed: its child process, the rendezvous, and forming the group again."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from hivenode.errors import Corrupted, HiveError, Unavailable
from hivenode.net.local import FromWorker, Log
from hivenode.training.distributed.agreement import Agreement, Post
from hivenode.training.distributed.letters import Birth, Done, Formed, FromChild, Held, Pipe, Request, Step, Trouble
from hivenode.training.distributed.switchboard import Child, Switchboard
from hivenode.training.exchange.deadlines import Deadlines
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Group

FORM_SECONDS = 60.0
"""How long a group may take to form; a firewall between its members would hold it up for ever."""
STALL_SECONDS = 3.0
FIRST_STALL_SECONDS = 40.0
"""The least that a child is expected to take for a step, while little is known and later; see `Patience`."""
STALLED = 3.0
"""Times as long as expected, and a child is taken to stand still."""
TRIES = 4
"""Generations in a row, of the same members, that come to nothing before this member gives up."""


class Patience:
    """How long a child may take over a step, learned from how long it took. Where it has stopped (or another, that it
    waits for), the worker has not, so no view will say so: its time is up then, and all form another group. Pure."""

    def __init__(self) -> None:
        self._steps = Deadlines(STALL_SECONDS, FIRST_STALL_SECONDS)
        self._times = STALLED

    def seconds(self) -> float:
        return self._times * self._steps.seconds()

    def done(self, seconds: float) -> None:
        self._steps.observe(0, seconds)
        self._times = STALLED

    def lost(self) -> None:
        """It was too short, perhaps: a step that only takes long has to come to an end."""
        self._times *= 2.0


class Births(Protocol):
    """Where child processes come from, and memory that they share with the worker."""

    @property
    def memory(self) -> int:
        """Its descriptor."""
        ...

    def child(self, control: socket.socket, wishes: socket.socket) -> Callable[[], None]:
        """A new child, which inherits these and the memory; returns what ends it. Raises Unavailable."""
        ...


class Crew:
    """Args:
    group: the members.
    together: by which they speak with each other; it gives `board` what it hears.
    births: where children come from.
    birth: of each child; generation, rank and size are filled in.
    report: takes messages for the daemon.
    """

    def __init__(
        self,
        group: Group,
        together: Together,
        board: Switchboard,
        births: Births,
        birth: Birth,
        report: Callable[[FromWorker], None],
    ) -> None:
        self._group, self._together, self._board = group, together, board
        self._births, self._birth, self._report = births, birth, report
        self._child: Child | None = None
        self._trouble = ""
        """What a child last said when it failed."""
        self._watched = False
        self._patience = Patience()

    @property
    def size(self) -> int:
        """Members of the generation."""
        return len(self._board.agreement.members)

    def ready(self, step: int) -> None:
        """Have a group of all members that there are, to compute that step in.

        Raises:
            Unavailable: it cannot be formed, or this member is out.
            HiveError: see `Collective.mean`.
        """
        agreement = self._board.agreement
        if self._child is not None and agreement.usable and agreement.members == self._group.members:
            return
        began, tries = time.monotonic(), 0
        while True:
            before = agreement.members
            trouble = self._form(step)
            if trouble is None:
                break
            tries = tries + 1 if agreement.members == before else 1
            if tries >= TRIES:
                raise Unavailable(
                    f"torch.distributed cannot begin with {len(agreement.members)} workers: {self._trouble or trouble}",
                    fix="gloo takes any free port: open them between trusted machines, or set training.engine to"
                    ' "exchange".',
                )
        if self._group.leads:
            seconds = round(time.monotonic() - began, 3)
            self._report(
                Log(
                    level="info",
                    event="averaging by torch.distributed",
                    fields={"step": step, "members": self.size, "seconds": seconds},
                )
            )

    def compute(self, step: Step) -> Done | None:
        """Have the due step computed by all; None if it has to be computed again, once `ready`.

        Raises:
            MemoryError, RuntimeError: the cause lies in this member.
            HiveError: see `ready`.
        """
        child = self._child
        assert child is not None
        if not self._board.begin():
            return None
        child.held = False
        child.orders.send(step)
        began, patience = time.monotonic(), self._patience.seconds()
        while (said := self._hear(child, max(0.001, began + patience - time.monotonic()))) is not None:
            if isinstance(said, Done):
                self._patience.done(time.monotonic() - began)
                self._tell(lambda agreement: agreement.finish(said.loss))
                return said
            child.held = isinstance(said, Held)
        if (waited := time.monotonic() - began) >= patience:
            self._patience.lost()
            self._report(
                Log(
                    level="warning",
                    event="torch.distributed stood still: another group is formed",
                    fields={"members": self.size, "seconds": round(waited, 3)},
                )
            )
        self._raise_own(child)
        loss = self._settle()
        if loss is None:
            return None
        if not child.held:
            raise Corrupted("Another worker has finished a step that this one has not.", fix="Start another attempt.")
        self._tell(lambda agreement: agreement.finish(loss))
        return Done(loss, 0.0)

    # --- forming -------------------------------------------------------------------------------------------------

    def _form(self, step: int) -> str | None:
        """One try. Returns why nothing came of it; None if all is well."""
        self._part()
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._watch, name="exchange-watch", daemon=True).start()
        nothing = np.zeros(1, np.float32)
        mean = self._group.agree(nothing, lambda: 1.0, step)
        members = self._group.members
        self._tell(lambda agreement: agreement.enter(mean.round, members, step))
        trouble = "another worker failed."
        if self._board.begin():
            child = self._born(mean.round, members)
            said = self._hear(child, FORM_SECONDS)
            if isinstance(said, Formed):
                self._tell(lambda agreement: agreement.rest())
                if self._board.agreement.usable:
                    return None
            elif child.trouble is None and self._board.agreement.usable:
                trouble = f"they did not reach each other within {FORM_SECONDS:.0f} s, or its process was killed."
            self._raise_own(child)
        self._settle()
        return trouble

    def _born(self, generation: int, members: tuple[str, ...]) -> Child:
        ours, theirs = socket.socketpair()
        wishes, their_wishes = socket.socketpair()
        try:
            end = self._births.child(theirs, their_wishes)
        finally:
            theirs.close()
            their_wishes.close()
        child = self._child = Child(end, Pipe(ours, FromChild), Pipe(wishes, Request))  # type: ignore[arg-type]
        self._board.employ(child)
        threading.Thread(target=self._carry, args=(child, generation), name="store", daemon=True).start()
        # Members that have not heard the same of who is there do not find each other's keys.
        heads = zlib.crc32(" ".join(members).encode())
        child.orders.send(
            msgspec.structs.replace(
                self._birth,
                namespace=f"{generation}-{heads:08x}",
                rank=members.index(self._group.me),
                size=len(members),
            )
        )
        return child

    def _carry(self, child: Child, generation: int) -> None:
        """Take the child's wishes to who keeps the store."""
        while (request := child.wishes.receive()) is not None:
            self._together.tell(*self._board.wish(generation, request))
        child.wishes.close()

    def _watch(self) -> None:
        """Once the others go on without this member no view says so, and gloo may wait for them for long."""
        try:
            self._together.wait_for(lambda view: False)
        except HiveError:
            self._board.close()

    def _part(self) -> None:
        if (child := self._child) is not None:
            self._child = None
            self._board.employ(None)
            child.kill()
            child.orders.close()

    # --- when something fails ------------------------------------------------------------------------------------

    def _hear(self, child: Child, seconds: float | None = None) -> FromChild | None:
        """None at its end, or after so many seconds."""
        said = child.orders.receive(seconds)
        if isinstance(said, Trouble):
            child.trouble, self._trouble = said, said.text
            return None
        return said

    def _settle(self) -> float | None:
        """After a failure: the loss of the due step if it is finished all the same, by all."""
        self._part()
        self._tell(lambda agreement: agreement.fail())
        self._together.wait_for(self._board.settled)
        return self._board.agreement.verdict()

    def _raise_own(self, child: Child) -> None:
        if child.trouble is not None and child.trouble.own:
            raise RuntimeError(child.trouble.text)

    def _tell(self, what: Callable[[Agreement], Post]) -> None:
        if notes := self._board.change(what):
            self._together.tell(*notes)
