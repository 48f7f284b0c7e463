"""Random authors, orders, repetitions, partitions, seals and late words: who knows the same sees the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import tests.hive.replicas
from hivenode.catalog.models import Holders
from hivenode.hive import snapshots, views
from hivenode.hive.feeds import Entry
from hivenode.hive.roles import Roles
from hivenode.jobs.ledger import Ledger
from hivenode.planning.qtable import Experience
from hivenode.spec.events import BlobHeld, Body, ExperienceRecorded, JobCancelled, JobSubmitted
from tests.hive.replicas import AUTHORITY, Replica, digest

MEMBERS = 4
STEP = 10
PATIENCE = 500
who = st.integers(0, MEMBERS - 1)
LEAST_AGE = 40


class Sealing(RuleBasedStateMachine):
    """Nodes as `Replica`s; `self.apart` cannot be reached by the others."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [Replica(number + 1) for number in range(MEMBERS)]
        self.now = 1000
        self.epoch = 0
        self.count = 0
        self.apart: dict[int, int] = {}
        self.said: dict[tuple[str, int], Entry] = {}
        self.late: dict[tuple[str, int], int] = {}
        """Horizon at the last seal that left an event out."""
        self.closed = 0
        self.mixer = random.Random(0)

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.mixer = random.Random(seed)
        for node in self.nodes:
            self._say(node)
        for _ in range(2):
            self._exchange_all()

    def _tick(self) -> int:
        self.now += STEP
        return self.now

    def _say(self, node: Replica, *bodies: Body) -> None:
        for entry in node.say(self._tick() + 1, *bodies):
            self.said[entry.event.author, entry.event.seq] = entry

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule(number=who, what=st.integers(0, 3), pick=st.integers(0, 50))
    def speak(self, number: int, what: int, pick: int) -> None:
        self.count += 1
        bodies: list[Callable[[], Body]] = [
            lambda: JobSubmitted(job=f"j-{self.count}", name="x", spec=b"{}"),
            lambda: JobCancelled(job=f"j-{pick % (self.count + 1)}", reason=f"by {number}"),
            lambda: BlobHeld(digest=digest(str(pick % 5)), size=1, held=pick % 3 > 0),
            lambda: ExperienceRecorded(f"j-{self.count}", 1, (0, 0, 1, 0), pick % 5, 10.0, 1.0 + pick, 1.0),
        ]
        self._say(self.nodes[number], bodies[what]())

    @rule(number=who, other=who, size=st.sampled_from([1, 300, 2000, 1 << 20]), twice=st.booleans())
    def exchange(self, number: int, other: int, size: int, twice: bool) -> None:
        if (number in self.apart) == (other in self.apart) == False or number == other:  # noqa: E712
            one, two = self.nodes[number], self.nodes[other]
            if two.number_sealed < one.number_sealed:
                two.catch_up(one.file)
            one.send(two, size)
            if twice:
                events = [entry.event for entry in one.feeds.entries()]
                self.mixer.shuffle(events)
                two.take(events)

    @rule(number=who)
    def part(self, number: int) -> None:
        if len(self.apart) < MEMBERS // 2 - 1:
            self.apart[number] = self.now

    @rule(number=who)
    def rejoin(self, number: int) -> None:
        self.apart.pop(number, None)

    @rule()
    def time_passes(self) -> None:
        self.now += PATIENCE

    @rule(number=who, age=st.integers(0, 300))
    def propose(self, number: int, age: int) -> None:
        node = self.nodes[number]
        horizon = self.now - LEAST_AGE - age
        sealed = node.sealed.header.horizon if node.sealed is not None else 0
        known = all(other.id in node.feeds.cuts(horizon) for other in self.nodes)
        if number not in self.apart and known and horizon > sealed:
            self.epoch += 1
            body = node.propose(self._tick() + 1, self.epoch, horizon - horizon % STEP)
            self._note(node)
            assert body.number == node.number_sealed + 1

    @rule(number=who)
    def confirm(self, number: int) -> None:
        node = self.nodes[number]
        closed = any(p.author == node.id for p, _ in node.round().certificates())
        if not closed and node.confirm(self._tick() + 1):
            self._note(node)

    @rule(number=who)
    def close(self, number: int) -> None:
        node = self.nodes[number]
        excused = tuple(self.nodes[n].id for n, since in self.apart.items() if self.now - since > PATIENCE)
        if node.close(self._tick() + 1, excused):
            self._note(node)

    @rule(number=who)
    def settle(self, number: int) -> None:
        self.nodes[number].settle()

    @rule(number=who)
    def seal(self, number: int) -> None:
        """All at once, by all that can be reached."""
        if number in self.apart:
            return
        self._exchange_all()
        self.propose(number, 0)
        self._exchange_all()
        for other in range(MEMBERS):
            if other not in self.apart:
                self.confirm(other)
        self._exchange_all()
        self.close(number)
        self._exchange_all()
        for other in range(MEMBERS):
            self.settle(other)

    @rule(number=who)
    def seal_alone(self, number: int) -> None:
        """Which must not come to anything."""
        self.propose(number, 0)
        self.close(number)
        self.settle(number)

    @rule(number=who, leader=who, what=st.integers(0, 3), pick=st.integers(0, 50))
    def miss_a_seal(self, number: int, leader: int, what: int, pick: int) -> None:
        """A node is away for long, says something meanwhile, and comes back."""
        if self.apart or number == leader:
            return
        self.part(number)
        self.speak(number, what, pick)
        self.time_passes()
        self.speak(leader, what, pick)
        self.time_passes()
        self.seal(leader)
        self.rejoin(number)

    def _note(self, node: Replica) -> None:
        for entry in node.feeds.entries():
            if entry.event.author == node.id:
                self.said[node.id, entry.event.seq] = entry

    def _exchange_all(self) -> None:
        for _ in range(2):
            for number in range(MEMBERS):
                for other in range(MEMBERS):
                    self.exchange(number, other, 1 << 20, False)

    # --- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def who_knows_the_same_sees_the_same(self) -> None:
        equals: dict[str, list[Replica]] = {}
        for node in self.nodes:
            equals.setdefault(repr((node.feeds.heads, node.number_sealed)), []).append(node)
        for nodes in equals.values():
            assert len(nodes) == 1 or len({node.dump() for node in nodes}) == 1, "the views differ"

    @invariant()
    def seals_are_the_same(self) -> None:
        digests: dict[int, str] = {}
        for node in self.nodes:
            if node.sealed is not None:
                history = [*node.sealed.header.history, node.sealed.digest]
                for number, one in enumerate(history, 1):
                    assert digests.setdefault(number, one) == one, "two seals under one number"
                if len(history) > self.closed:
                    assert len(history) == self.closed + 1
                    self.closed += 1
                    cuts, horizon = node.sealed.header.cuts, node.sealed.header.horizon
                    for (author, seq), entry in self.said.items():
                        beyond = author not in cuts or seq > cuts[author].seq
                        if beyond and entry.event.hlc <= horizon:
                            self.late[author, seq] = horizon

    @invariant()
    def no_feed_forks(self) -> None:
        assert not any(node.feeds.forked for node in self.nodes)

    def teardown(self) -> None:
        self.apart.clear()
        for _ in range(MEMBERS):
            self._exchange_all()
        for node in self.nodes:
            while node.settle():
                pass
        self._exchange_all()
        self.seals_are_the_same()
        assert len({repr(node.feeds.heads) for node in self.nodes}) == 1, "nothing is lost"
        for node in self.nodes:
            for author, seq in self.said:
                assert node.feeds.heads[author] >= seq
        self.who_knows_the_same_sees_the_same()
        assert len({node.number_sealed for node in self.nodes}) == 1
        assert self.nodes[0].dump() == self.unsealed(), "sealing has changed what follows from the events"

    def unsealed(self) -> bytes:
        """The fold of all events, each once, without any seal; what came late, at the horizon that it missed."""
        folds = (Roles(AUTHORITY.public_key), Ledger(AUTHORITY.public_key), Holders(), Experience())
        ordered = sorted(
            ((self.late.get(place, entry.event.hlc), *place, entry.body) for place, entry in self.said.items()),
            key=lambda item: item[:3],
        )
        for hlc, author, _, body in ordered:
            for fold in folds:
                if isinstance(body, fold.kinds):
                    fold.apply(author, hlc, body)
        return b"|".join(piece for fold in folds for piece in fold.dump(0))


def check(examples: int, steps: int = 30, phases: Sequence[Phase] = tuple(Phase)) -> None:
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck),
        derandomize=True, database=None, phases=phases,
    )  # fmt: skip
    run_state_machine_as_test(Sealing, settings=chosen)


def test_any_history_of_words_and_seals_gives_the_same_views() -> None:
    check(25)


@pytest.mark.slow
def test_many_histories_of_words_and_seals_give_the_same_views() -> None:
    check(2000, 60)


def without_the_clamp(entry: Entry, horizon: int) -> views.Key:
    return (entry.event.hlc, entry.event.author, entry.event.seq)


def test_without_the_rule_for_late_words_the_views_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "placed", without_the_clamp)
    monkeypatch.setattr(snapshots, "placed", without_the_clamp)
    with pytest.raises(AssertionError, match=r"views differ|what follows from the events"):
        check(300, phases=[Phase.generate])


def test_without_asking_for_confirmations_two_seals_have_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    close = Replica.close
    monkeypatch.setattr(Replica, "close", lambda node, now, excused=(): close(node, now, excused, anyway=True))
    monkeypatch.setattr(tests.hive.replicas, "judge", lambda certificate, snapshot, hive: iter(()))
    with pytest.raises(AssertionError, match=r"two seals under one number|views differ|nothing is lost"):
        check(300, phases=[Phase.generate])
