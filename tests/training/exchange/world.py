"""A deterministic network in memory: members that train, and a schedule that may do its worst.

Between each pair control and numbers are each delivered in order, with no order between the two. A killed member's
messages still under way arrive up to a point chosen for each receiver; then the receiver sees the loss.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from hivenode.training.exchange.attempt import Attempt, State
from hivenode.training.exchange.effects import Bulk, Effect, Entered, Landing, Phase, Reduce, Send, Transfer
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import Control, Reason, ViewId
from hivenode.training.exchange.reduction import Vector, reduce_into

CHUNK = 3
Numbers = tuple[Bulk, ViewId, int, int, Vector]


def share(rank: int, number: int, members: Sequence[int], count: int) -> tuple[Vector, float]:
    """What a member contributes to a round: it depends on who else takes part."""
    rng = np.random.default_rng([rank, number, *members])
    weight = float(rng.integers(0, 4))
    return rng.standard_normal(count).astype(np.float32), weight


def reference(number: int, members: Sequence[int], count: int) -> Vector:
    vectors, weights = zip(*(share(r, number, members, count) for r in members), strict=True)
    if len(members) == 1:
        return vectors[0] if weights[0] else np.zeros(count, np.float32)
    out = np.empty(count, np.float32)
    assert reduce_into(out, vectors, weights) == ()
    return out


class Member:
    def __init__(self, rank: int, ranks: Sequence[int], rounds: int, count: int) -> None:
        self.rank, self.rounds, self.count = rank, rounds, count
        self.group = Group(rank, ranks)
        self.attempt: Attempt | None = None
        self.results: dict[int, tuple[tuple[int, ...], bytes]] = {}
        self.reduces: deque[Reduce] = deque()

    @property
    def done(self) -> bool:
        return len(self.results) == self.rounds

    @property
    def out(self) -> bool:
        return self.group.phase is Phase.out

    def can_step(self) -> bool:
        if self.out:
            return False
        if self.attempt is not None:
            return self.attempt.state in (State.complete, State.void)
        return not self.done and self.group.phase is Phase.stable

    def step(self) -> list[Effect]:
        """What a strategy does: take a result, or begin the next round with a share for the present view."""
        attempt = self.attempt
        if attempt is None:
            vector, weight = share(self.rank, self.group.completed + 1, self.group.view.ranks, self.count)
            self.attempt, effects = self.group.begin(vector, weight)
            return effects
        self.attempt = None
        if attempt.state is State.void:
            return []
        assert attempt.number not in self.results
        self.results[attempt.number] = (attempt.view.ranks, attempt.result.tobytes())
        attempt.vector[:] = np.nan  # the caller's to overwrite
        return self.group.digested(attempt, hash(attempt.result.tobytes()) & (2**63 - 1))


class World:
    def __init__(self, members: int, rounds: int, count: int, rng: random.Random) -> None:
        self.rng = rng
        ranks = list(range(members))
        self.members = {rank: Member(rank, ranks, rounds, count) for rank in ranks}
        self.control: dict[tuple[int, int], deque[Control]] = {}
        self.bulk: dict[tuple[int, int], deque[Numbers]] = {}
        for a in ranks:
            for b in ranks:
                if a != b:
                    self.control[a, b], self.bulk[a, b] = deque(), deque()
        self.cut: set[tuple[int, int]] = set()
        """(source, target) of links whose target takes no more from the source."""
        self.dead: set[int] = set()
        self.hung: set[int] = set()
        self.landings: dict[tuple[int, int], tuple[Landing, Vector]] = {}
        self.losses: list[tuple[int, int]] = []
        self.deliveries = 0
        self.speeds: dict[tuple[str, int, int], float] = {}
        """Some links and members are a thousand times slower than others, for a while."""
        self.links = [(a, b) for a in ranks for b in ranks if a != b]
        for rank in ranks:
            self.apply(rank, self.members[rank].group.start())

    @property
    def survivors(self) -> list[Member]:
        return [m for rank, m in self.members.items() if rank not in self.dead]

    def apply(self, rank: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.control[rank, to].append(message)
                case Transfer(to, kind, view, number, start, data):
                    for offset in range(0, data.size, CHUNK):
                        # A view, as on the wire: what the sender overwrites too early is seen.
                        self.bulk[rank, to].append((kind, view, number, start + offset, data[offset : offset + CHUNK]))
                case Reduce():
                    self.members[rank].reduces.append(effect)
                case Entered():
                    pass

    def kill(self, rank: int) -> None:
        """Part of what is under way gets lost, a part of its own choosing for each receiver."""
        self.dead.add(rank)
        for other in self.members:
            if other == rank:
                continue
            queues: tuple[deque[Any], ...] = (self.control[rank, other], self.bulk[rank, other])
            for queue in queues:
                keep = self.rng.randint(0, len(queue))
                while len(queue) > keep:
                    queue.pop()
            self.losses.append((rank, other))

    def accuse(self, by: int, rank: int) -> None:
        self.apply(by, self.members[by].group.accuse(rank, Reason.told))

    def listens(self, source: int, target: int) -> bool:
        return target not in self.dead and not self.members[target].out and (source, target) not in self.cut

    def hang_up(self) -> None:
        """A member that is out closes its links."""
        for rank, member in self.members.items():
            if member.out and rank not in self.dead and rank not in self.hung:
                self.hung.add(rank)
                self.losses += [(rank, other) for other in self.members if other != rank]

    def choices(self) -> list[tuple[str, int, int]]:
        found = [("link", a, b) for a, b in self.links if a not in self.dead and b not in self.dead]
        for rank, member in self.members.items():
            if rank in self.dead or member.out:
                continue
            if member.can_step():
                found.append(("step", rank, 0))
            if member.reduces:
                found.append(("reduce", rank, 0))
        under_way: dict[str, dict[tuple[int, int], deque[Any]]] = {"control": self.control, "bulk": self.bulk}
        for name, queues in under_way.items():
            for (a, b), queue in queues.items():
                if queue and self.listens(a, b) and (name == "control" or (a, b) not in self.landings):
                    found.append((name, a, b))
        found += [("land", a, b) for a, b in self.landings if self.listens(a, b)]
        found += [("lost", a, b) for a, b in self.losses if b not in self.dead and (a, b) not in self.cut]
        return found

    def act(self, choice: tuple[str, int, int]) -> None:
        kind, a, b = choice
        if kind == "link":
            self.links.remove((a, b))
            self.apply(b, self.members[b].group.linked(a))
        elif kind == "step":
            self.apply(a, self.members[a].step())
        elif kind == "reduce":
            job = self.members[a].reduces.popleft()
            culprits = job.attempt.reduce(job.start, job.stop, job.out)
            self.apply(a, self.members[a].group.reduced(job.attempt, job.start, job.stop, culprits))
        elif kind == "control":
            self.deliveries += 1
            self.apply(b, self.members[b].group.receive(a, self.control[a, b].popleft()))
        elif kind == "bulk":
            self.deliveries += 1
            sort, view, number, start, data = self.bulk[a, b].popleft()
            group = self.members[b].group
            landing = group.landing(a, sort, view, number, start, data.size)
            if landing is not None:
                self.landings[a, b] = (landing, data)
        elif kind == "land":
            # Bytes come in while anything else may happen, and are then reported.
            landing, data = self.landings.pop((a, b))
            landing.target[:] = data
            self.apply(b, self.members[b].group.arrived(landing))
        elif kind == "lost":
            self.cut.add((a, b))
            self.apply(b, self.members[b].group.accuse(a, Reason.lost))

    def step(self) -> bool:
        self.hang_up()
        found = self.choices()
        if not found:
            return False
        if self.rng.random() < 0.02:
            self.speeds.clear()
        weights = [self.speeds.setdefault(choice, 10.0 ** self.rng.uniform(-3, 0)) for choice in found]
        self.act(self.rng.choices(found, weights)[0])
        return True

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the members talk without end")

    def check_bits(self) -> None:
        """Whatever happened: members of one last view hold the same results, each the mean of its contributors."""
        by_view: dict[ViewId, list[Member]] = {}
        for member in self.survivors:
            if not member.out:
                by_view.setdefault(member.group.view.id, []).append(member)
            assert member.group.mismatch is None
        for together in by_view.values():
            for number in range(1, min(len(m.results) for m in together) + 1):
                assert len({m.results[number] for m in together}) == 1, f"round {number}"
        for member in self.survivors:
            for number, (contributors, bits) in member.results.items():
                if not member.out:
                    assert bits == reference(number, contributors, member.count).tobytes()

    def check_all_finish(self) -> None:
        for member in self.survivors:
            assert not member.out, f"{member.rank} was put out: {member.group.verdict}"
            assert member.done, f"{member.rank} is stuck in {member.group.phase} {member.group.view}"
        self.check_bits()
