"""What must hold on every simulated node at every moment, looked at whenever all is quiet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hivenode.hive.feeds import Entry
from hivenode.spec.values import Epoch

if TYPE_CHECKING:
    from tests.simulation.loop import Process
    from tests.simulation.world import Machine, World


class Watch:
    """Looks, whenever all is quiet, at what must hold at every moment."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._followed: dict[str, Epoch] = {}
        self._broken: list[str] = []
        self.led: dict[int, set[str]] = {}
        self._obeyed: dict[str, Epoch] = {}
        self._orders: dict[tuple[str, str], object] = {}
        self.durable: dict[str, int] = {}
        """Highest event of each author that any node has ever shown to have on disk."""
        self.may_fork: set[str] = set()
        """Authors whose feeds a story makes fork on purpose."""
        self._seen = -1
        self._of: dict[Process, Machine] = {}

    def look(self) -> None:
        if self._world.trace.count == self._seen:
            return
        self._seen = self._world.trace.count
        assert not self._broken, self._broken
        stirred = self._world.loop.stirred
        machines = [self._of[process] for process in stirred if process in self._of]
        stirred.clear()  # of the others nothing can have changed
        for machine in machines:
            if machine.running is None:
                continue
            forked = {author: seq for author, seq in machine.node.feeds.forked.items() if author not in self.may_fork}
            assert not forked, f"{machine.name} sees forks: {forked}"
            self._orders_of(machine)
            troubles = {name: why for name, why in machine.node.troubles.items() if name != "conflict"}
            assert not troubles, f"{machine.name}: {troubles}"
            assert machine.stopping == ("conflict" in machine.node.troubles), machine.name

    def follow(self, machine: Machine) -> None:
        """Hear of every leader that the node acts upon, once what goes before that is on disk, and of every event."""
        assert machine.process is not None
        self._of[machine.process] = machine
        leadership, replication = machine.node.leadership, machine.node.replication
        act, learn = leadership._on_leader, replication._on_change

        def on_leader(epoch: Epoch | None) -> None:
            if epoch is not None:
                self._follows(machine.name, epoch)
            act(epoch)

        def on_change(entries: Sequence[Entry]) -> None:
            self._learns(entries)
            learn(entries)

        leadership._on_leader = on_leader
        replication._on_change = on_change

    def _follows(self, name: str, leader: Epoch) -> None:
        """A node follows ever higher epochs, and never two leaders under one counter, over all of its lives."""
        self._world.trace.add(self._world.loop.time(), f"{name} follows {leader}")
        before = self._followed.get(name)
        if before is not None and leader != before and leader.counter <= before.counter:
            self._broken.append(f"{name} follows {leader} after {before}")
        self._followed[name] = leader
        self.led.setdefault(leader.counter, set()).add(leader.node)

    def _orders_of(self, machine: Machine) -> None:
        """A node begins no work by an epoch lower than one it has obeyed, over all of its lives."""
        highest = self._obeyed.get(machine.name, Epoch(0))
        for work in machine.node.executor._work.values():
            if self._orders.get((machine.name, work.job)) != work.name:
                self._orders[(machine.name, work.job)] = work.name
                assert work.name[1] >= highest, f"{machine.name} works for {work.name[1]} after {highest}"
                self._world.trace.add(self._world.loop.time(), f"{machine.name} works on {work.job} {work.name}")
            self._obeyed[machine.name] = max(self._obeyed.get(machine.name, highest), work.epoch)

    def _learns(self, entries: Sequence[Entry]) -> None:
        """Events that a node has on disk now."""
        for entry in entries:
            author, seq = entry.event.author, entry.event.seq
            if seq > self.durable.get(author, 0):
                self.durable[author] = seq
                self._world.trace.add(self._world.loop.time(), f"event {author[:6]} {seq}")
