"""A deterministic network in memory: members that train, and a schedule that may do its worst.

Between each pair control and numbers are each delivered in order, with no order between the two. A killed member's
messages still under way arrive up to a point chosen for each receiver; then the receiver sees the loss.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hivenode.training.exchange.attempt import Attempt, State
from hivenode.training.exchange.codecs import BLOCK, Codec, Encoded
from hivenode.training.exchange.effects import Effect, Entered, Landing, Phase, Reduce, Send, Transfer
from hivenode.training.exchange.group import Group
from hivenode.training.exchange.messages import Control, Reason, ViewId
from hivenode.training.exchange.reduction import reduce_into
from hivenode.training.exchange.scratch import Vector

CHUNK = 3


def share(rank: int, number: int, members: Sequence[int], count: int) -> tuple[Vector, float]:
    """What a member contributes to a round: it depends on who is in the view."""
    rng = np.random.default_rng([rank, number, *members])
    weight = float(rng.integers(0, 4))
    return rng.standard_normal(count).astype(np.float32), weight


def decoded(values: Vector, codec: Codec | None) -> Vector:
    if codec is None:
        return values
    encoded, out = np.empty(codec.encoded_size(values.size), np.uint8), np.empty_like(values)
    codec.encode(values, encoded)
    codec.decode(encoded, out)
    return out


def reference(
    number: int, members: Sequence[int], contributors: Sequence[int], count: int, codec: Codec | None = None
) -> Vector:
    vectors, weights = zip(*(share(r, number, members, count) for r in contributors), strict=True)
    if len(contributors) == 1:
        return vectors[0] if weights[0] else np.zeros(count, np.float32)
    out = np.empty(count, np.float32)
    assert reduce_into(out, [decoded(vector, codec) for vector in vectors], weights) == ()
    return decoded(out, codec)


class Member:
    def __init__(
        self,
        rank: int,
        ranks: Sequence[int],
        rounds: int,
        count: int,
        codec: Codec | None,
        state_limit: int | None = None,
    ) -> None:
        self.rank, self.rounds, self.count, self.codec = rank, rounds, count, codec
        self.group = Group(rank, ranks, state_limit=state_limit)
        self.attempt: Attempt | None = None
        self.begun: set[tuple[int, tuple[int, ...]]] = set()
        """Rounds called, and the views they were called in."""
        self.results: dict[int, tuple[tuple[int, ...], bytes]] = {}
        """Of each round the contributors and the bits."""
        self.late: set[int] = set()
        self.inherited: bytes | None = None
        self.reduces: deque[Reduce] = deque()

    @property
    def done(self) -> bool:
        return self.group.completed == self.rounds and self.attempt is None and self.group.inheritance is None

    @property
    def out(self) -> bool:
        return self.group.phase is Phase.out

    @property
    def disinherited(self) -> bool:
        """A newcomer that will not have the state, since somebody is lost that was to give it."""
        inheritance = self.group.inheritance
        return inheritance is not None and not (
            inheritance.complete or set(inheritance.donors) <= set(self.group.view.ranks)
        )

    def can_step(self) -> bool:
        if self.out:
            return False
        if self.attempt is not None:
            return self.attempt.state in (State.complete, State.void)
        if self.group.inheritance is not None and not self.group.inheritance.complete:
            return self.disinherited
        return not self.done and self.group.phase is Phase.stable

    def step(self, moment: float) -> list[Effect]:
        """What a strategy does: take a result, or begin the next round with a share for the present view."""
        attempt, inheritance = self.attempt, self.group.inheritance
        if inheritance is not None:
            assert inheritance.liar() is None
            self.inherited = inheritance.state.tobytes()
            self.group.settled()
            return []
        if (attempt is None or attempt.state is State.void) and self.group.gift_due:
            return self.group.give(self.state())
        if attempt is None:
            number, ranks = self.group.completed + 1, self.group.view.ranks
            vector, weight = share(self.rank, number, ranks, self.count)
            self.begun.add((number, ranks))
            self.attempt, effects = self.group.begin(vector, weight, moment, self.codec, open=True)
            return effects
        self.attempt = None
        assert attempt.vector.tobytes() == share(self.rank, attempt.number, attempt.view.ranks, self.count)[0].tobytes()
        if attempt.state is State.void:
            return []
        assert attempt.number not in self.results
        assert attempt.late == (self.rank not in attempt.contributors)
        if attempt.late:
            self.late.add(attempt.number)
        self.results[attempt.number] = (attempt.contributors, attempt.result.tobytes())
        attempt.vector[:] = np.nan  # the caller's to overwrite
        return self.group.digested(attempt, hash(attempt.result.tobytes()) & (2**63 - 1), moment)

    def state(self) -> list[Any]:
        """What a newcomer has to know: the number of the last round, and its bits."""
        completed = self.group.completed
        bits = np.frombuffer(self.results[completed][1], np.uint8) if completed else np.empty(0, np.uint8)
        return [np.array([completed]), bits]


@dataclass
class Told:
    """A control message under way."""

    message: Control
    delivered: bool = False


@dataclass(frozen=True)
class Numbers:
    """Some elements under way, read from the sender's own array as late as they arrive: what it overwrites too early is
    seen."""

    transfer: Transfer
    offset: int
    count: int
    after: Told | None
    """They do not overtake it."""

    def bytes(self) -> Encoded:
        transfer, codec = self.transfer, self.transfer.codec
        values = transfer.values[self.offset : self.offset + self.count]
        if codec is None:
            return values.view(np.uint8)
        if transfer.encoded is not None:
            at = codec.encoded_size(self.offset)
            return transfer.encoded[at : at + codec.encoded_size(self.count)]
        out = np.empty(codec.encoded_size(self.count), np.uint8)
        codec.encode(values, out)
        return out


class World:
    """Args:
    hasty: members are late as often as not.
    newcomer: one more wants to join, and does so whenever the others have links to it.
    """

    def __init__(
        self,
        members: int,
        rounds: int,
        count: int,
        rng: random.Random,
        *,
        hasty: bool = False,
        codec: Codec | None = None,
        newcomer: bool = False,
    ) -> None:
        self.rng, self.hasty, self.moment = rng, hasty, 0.0
        ranks = list(range(members))
        self.members = {rank: Member(rank, ranks, rounds, count, codec) for rank in ranks}
        if newcomer:
            ranks.append(members)
            self.members[members] = Member(members, ranks, rounds, count, codec, 10**6)
            for rank in range(members):
                self.members[rank].group.admit(members)
        self.control: dict[tuple[int, int], deque[Told]] = {}
        self.bulk: dict[tuple[int, int], deque[Numbers]] = {}
        for a in ranks:
            for b in ranks:
                if a != b:
                    self.control[a, b], self.bulk[a, b] = deque(), deque()
        self.cut: set[tuple[int, int]] = set()
        """(source, target) of links whose target takes no more from the source."""
        self.dead: set[int] = set()
        self.hung: set[int] = set()
        self.landings: dict[tuple[int, int], tuple[Landing, Numbers]] = {}
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
                    self.control[rank, to].append(Told(message))
                case Transfer(to=to, values=values, codec=codec):
                    chunk = CHUNK if codec is None and values.size < BLOCK else BLOCK
                    after = self.control[rank, to][-1] if self.control[rank, to] else None
                    for offset in range(0, values.size, chunk):
                        count = min(chunk, values.size - offset)
                        self.bulk[rank, to].append(Numbers(effect, offset, count, after))
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
            if self.hasty and member.group.due() is not None and not member.group.holding_up():
                found.append(("tick", rank, 0))
        under_way: dict[str, dict[tuple[int, int], deque[Any]]] = {"control": self.control, "bulk": self.bulk}
        for name, queues in under_way.items():
            for (a, b), queue in queues.items():
                if not queue or not self.listens(a, b):
                    continue
                if name == "control" or (
                    (a, b) not in self.landings and (queue[0].after is None or queue[0].after.delivered)
                ):
                    found.append((name, a, b))
        found += [("land", a, b) for a, b in self.landings if self.listens(a, b)]
        found += [("lost", a, b) for a, b in self.losses if b not in self.dead and (a, b) not in self.cut]
        return found

    def act(self, choice: tuple[str, int, int]) -> None:
        kind, a, b = choice
        if kind == "link":
            self.links.remove((a, b))
            self.apply(b, self.members[b].group.linked(a))
        elif kind == "step" and self.members[a].disinherited:
            self.kill(a)  # it ends, and may try again as another
        elif kind == "step":
            if (attempt := self.members[a].attempt) is not None and attempt.state is State.void:
                self.settle(a)
            self.apply(a, self.members[a].step(self.moment))
        elif kind == "reduce":
            job = self.members[a].reduces.popleft()
            culprits = job.attempt.reduce(job.start, job.stop)
            self.apply(a, self.members[a].group.reduced(job.attempt, job.start, job.stop, culprits))
        elif kind == "control":
            self.deliveries += 1
            told = self.control[a, b].popleft()
            told.delivered = True
            self.apply(b, self.members[b].group.receive(a, told.message, self.moment))
        elif kind == "tick":
            group = self.members[a].group
            self.moment = max(self.moment, group.due() or 0.0)
            self.apply(a, group.tick(self.moment))
        elif kind == "bulk":
            self.deliveries += 1
            numbers = self.bulk[a, b].popleft()
            transfer, group = numbers.transfer, self.members[b].group
            start = transfer.start + numbers.offset
            landing = group.landing(a, transfer.kind, transfer.view, transfer.round, start, numbers.count)
            if landing is not None:
                self.landings[a, b] = (landing, numbers)
        elif kind == "land":
            # Bytes come in while anything else may happen, and are then reported.
            landing, numbers = self.landings.pop((a, b))
            if landing.target is not None:
                landing.target[:] = numbers.bytes()
            else:
                assert landing.codec is not None
                assert landing.values is not None
                landing.codec.decode(numbers.bytes(), landing.values)
            self.apply(b, self.members[b].group.arrived(landing))
        elif kind == "lost":
            self.cut.add((a, b))
            if (a, b) in self.landings:
                self.members[b].group.lost(self.landings.pop((a, b))[0])
            if self.members[b].group.is_candidate(a):
                self.members[b].group.dismiss(a)
                return
            self.apply(b, self.members[b].group.accuse(a, Reason.lost))

    def settle(self, rank: int) -> None:
        """Before a caller goes on after a void round: who is not in the view is sent no more of it. What is arriving
        there arrives in full, or its link is cut."""
        for other in self.members:
            if other == rank or other in self.members[rank].group.view.ranks:
                continue
            self.bulk[rank, other].clear()
            if (rank, other) not in self.landings or not self.listens(rank, other):
                continue
            if self.rng.random() < 0.5:
                self.act(("land", rank, other))
            else:
                self.act(("lost", rank, other))

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
            for number in range(1, min(m.group.completed for m in together) + 1):
                assert len({m.results[number] for m in together if number in m.results}) <= 1, f"round {number}"
        begun = {call for member in self.members.values() for call in member.begun}
        for member in self.survivors:
            for number, (contributors, bits) in member.results.items():
                if not member.out:
                    assert any(
                        bits == reference(number, ranks, contributors, member.count, member.codec).tobytes()
                        for called, ranks in begun
                        if called == number and set(contributors) <= set(ranks)
                    )

    def check_all_finish(self, but: int | None = None) -> None:
        """All, or all but one."""
        for member in self.survivors:
            if member.rank == but:
                continue
            assert not member.out, f"{member.rank} was put out: {member.group.verdict}"
            assert member.done, f"{member.rank} is stuck in {member.group.phase} {member.group.view}"
        self.check_bits()
