"""Faults at random upon election cores, and what must hold of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

from hivenode.hive.election import Effect, Election, ElectionSettings, Send
from hivenode.net.messages import VoteReply
from tests.hive.arena import Arena


def breaches(arena: Arena) -> list[str]:
    """What the history shows of more than one leader to a counter, or of a node that went back."""
    led: dict[int, str] = {}
    found = [
        f"{led[epoch.counter]} and {epoch.node} both led {epoch.counter}"
        for epoch in arena.epochs()
        if led.setdefault(epoch.counter, epoch.node) != epoch.node
    ]
    for node in arena.all:
        followed = [epoch for _, who, epoch in arena.told if who == node and epoch is not None]
        found += [
            f"{node} followed {after} after {before}"
            for before, after in itertools.pairwise(followed)
            if after != before and after.counter <= before.counter
        ]
    return found


class Treacherous(Arena):
    """Nodes often crash just after they have given a vote, and are back at once."""

    def _carry_out(self, node: str, effects: Iterable[Effect]) -> None:
        for effect in effects:
            super()._carry_out(node, [effect])
            gave = isinstance(effect, Send) and isinstance(effect.message, VoteReply)
            if gave and effect.message.granted and not effect.message.trial and self.rng.random() < 0.7:
                self._at(0.0, lambda: self.bounce(node))

    def bounce(self, node: str) -> None:
        if node in self.nodes and node not in self._frozen:
            self.crash(node)
            self.restart(node)


def crashes(seed: int, kind: type[Election] = Election, seconds: float = 40.0) -> list[str]:
    """Three nodes that all stand at nearly the same time over a slow network, crash at bad moments and come back at
    once, or are frozen and wake up as leaders of the past. Two votes are needed, so that any two electorates share a
    voter; nobody is ever held dead."""
    rng = random.Random(seed)
    settings = ElectionSettings(heartbeat=0.3, timeout=(0.6, 0.601), quorum=2)
    arena = Treacherous(
        3, seed=seed, followers=1, detect=1000.0, kind=kind, settings=settings, disk=(0.0, 0.01), delay=(0.05, 0.25)
    )
    while arena.now < seconds:
        arena.run(rng.expovariate(1.0))
        leading = [node for node in arena.voters if arena.nodes[node].leading]
        node = rng.choice(leading or arena.voters)
        if rng.random() < 0.3:
            arena.bounce(node)
            continue
        arena.freeze(node)
        arena.run(rng.uniform(1.0, 3.0))
        arena.thaw(node)
        for other in arena.all:
            if other != node and rng.random() < 0.5:
                arena.bounce(other)
    return breaches(arena)


def deafness(seed: int, kind: type[Election] = Election, seconds: float = 120.0) -> int:
    """Again and again somebody does not hear the leader, or anybody at all, for some seconds, while everybody hears it;
    by how much the counter rose."""
    rng = random.Random(seed)
    arena = Arena(5, seed=seed, detect=1000.0, kind=kind)
    arena.run(12.0)
    first = arena.leader()
    until = arena.now + seconds
    while arena.now < until:
        leader = max(arena.epochs()).node
        deaf = rng.choice([node for node in arena.voters if node != leader])
        unheard = [leader] if rng.random() < 0.5 else [node for node in arena.all if node != deaf]
        arena.deaf.update({(other, deaf): None for other in unheard})
        arena.run(rng.uniform(3.0, 6.0))
        arena.deaf.clear()
        arena.run(rng.uniform(2.0, 4.0))
    return max(max(arena.epochs()).counter, max(e.highest.counter for e in arena.nodes.values())) - first.counter
