"""Members, their children and what they tell each other, in every order that chance finds, with deaths of both."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

from hivenode.training.distributed.agreement import Agreement, Post
from hivenode.training.distributed.letters import Broken, Stand

STEPS = 7
LOOK_EVERY = 3
"""Steps after which members do something else together, as when they evaluate."""

Program = Generator[str, object, None]


@dataclass
class Child:
    """`at`: forming, idle, computing or waiting for the sum of losses."""

    generation: int
    at: str = "forming"
    alive: bool = True
    held: bool = False


@dataclass
class Member:
    name: str
    agreement: Agreement
    known: tuple[str, ...]
    """As told by the last round."""
    view: tuple[str, ...]
    step: int = 0
    child: Child | None = None
    waits: str = ""
    alive: bool = True
    losses: list[float] = field(default_factory=list)
    mail: dict[str, deque[Broken | Stand]] = field(default_factory=dict)
    program: Program | None = None


class World:
    """Args:
    deaths: of workers and of children, at most.
    """

    def __init__(self, seed: int, count: int, workers: int, children: int) -> None:
        self.rng = random.Random(seed)
        names = tuple(f"m{number}" for number in range(count))
        self.members = {name: Member(name, Agreement(name), names, names) for name in names}
        self.rounds, self.deaths, self.losses = 0, workers, children
        self.there: dict[tuple[int, int, str], set[str]] = {}
        """Whose children came to a point of a generation and step, dead or not."""
        for member in self.members.values():
            member.program = self.run(member)
            member.waits = next(member.program)

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members.values() if member.alive]

    def run(self, m: Member) -> Program:
        agreement = m.agreement
        while m.step < STEPS:
            while not (m.child and agreement.usable and agreement.members == m.known):
                yield from self.form(m)
            if not agreement.begin():
                continue
            m.child.at, m.child.held = "computing", False
            self.note(m, "computing")
            loss = yield "child"
            if loss is None:
                held = m.child.held
                loss = yield from self.settle(m)
                if loss is None:
                    continue
                assert held, "another has finished what this member does not hold"
            assert isinstance(loss, float)
            m.losses.append(loss)
            m.step += 1
            self.post(m, agreement.finish(loss))
            if m.step % LOOK_EVERY == 0:
                yield f"round look {m.step}"
        yield "end"

    def form(self, m: Member) -> Program:
        m.child = None
        number = yield f"round form {m.step}"
        assert isinstance(number, int)
        self.post(m, m.agreement.enter(number, m.known, m.step))
        if m.agreement.begin():
            m.child = Child(number)
            self.note(m, "forming")
            self.condemn(m)
            if (yield "child") is not None:
                self.post(m, m.agreement.rest())
                if m.agreement.usable:
                    return
        assert (yield from self.settle(m)) is None

    def settle(self, m: Member) -> Generator[str, object, float | None]:
        m.child = None
        self.post(m, m.agreement.fail())
        yield "settled"
        return m.agreement.verdict()

    def note(self, m: Member, point: str) -> None:
        assert m.child is not None
        self.there.setdefault((m.child.generation, m.step, point), set()).add(m.name)

    def post(self, m: Member, post: Post) -> None:
        for to, letter in post:
            self.members[to].mail.setdefault(m.name, deque()).append(letter)

    def condemn(self, m: Member) -> None:
        if m.child is not None and m.agreement.condemned:
            m.child.alive = False

    def all_at(self, m: Member, point: str) -> bool:
        assert m.child is not None
        found = self.there.get((m.child.generation, m.step, point), set())
        return set(m.agreement.members) <= found

    def actions(self) -> list[tuple[str, Member, str]]:
        """What could happen next."""
        found = []
        for m in self.alive:
            found += [("mail", m, sender) for sender, queue in m.mail.items() if queue]
            if m.view != tuple(other.name for other in self.alive):
                found.append(("view", m, ""))
            if m.child is not None and m.child.alive and self.losses:
                found.append(("child dies", m, ""))
            if self.deaths and len(self.alive) > 1:
                found.append(("dies", m, ""))
            if m.waits == "child":
                assert m.child is not None
                if not m.child.alive:
                    found.append(("child is over", m, ""))
                elif (m.child.at == "forming" and self.all_at(m, "forming")) or (
                    m.child.at == "computing" and self.all_at(m, "computing")
                ):
                    found.append(("child goes on", m, ""))
                elif m.child.at == "waiting" and self.all_at(m, "waiting"):
                    found.append(("child is done", m, ""))
            elif m.waits == "settled" and m.agreement.settled(m.view):
                found.append(("go", m, ""))
        calls = {m.waits for m in self.alive}
        if all(call.startswith("round") for call in calls):
            assert len(calls) == 1, f"members call different rounds: {calls}"
            found.append(("round", self.alive[0], ""))
        return found

    def act(self) -> bool:
        actions = self.actions()
        if not actions:
            return False
        what, m, sender = self.rng.choice(actions)
        match what:
            case "mail":
                letter = m.mail[sender].popleft()
                self.post(m, m.agreement.heard(sender, letter))
                self.condemn(m)
            case "view":
                m.view = tuple(other.name for other in self.alive)
                m.agreement.changed(m.view)
                self.condemn(m)
            case "child dies":
                assert m.child is not None
                self.losses -= 1
                m.child.alive = False
            case "dies":
                self.deaths -= 1
                m.alive = False
            case "child is over":
                self.resume(m, None)
            case "child goes on":
                assert m.child is not None
                if m.child.at == "forming":
                    m.child.at = "idle"
                    self.resume(m, True)
                else:
                    m.child.at, m.child.held = "waiting", True
                    self.note(m, "waiting")
            case "child is done":
                assert m.child is not None
                self.resume(m, m.child.generation + m.step / 1000)
            case "go":
                self.resume(m, None)
            case "round":
                self.rounds += 1
                for each in self.alive:
                    each.known = tuple(other.name for other in self.alive)
                for each in self.rng.sample(self.alive, len(self.alive)):
                    self.resume(each, self.rounds)
        return True

    def resume(self, m: Member, value: object) -> None:
        assert m.program is not None
        m.waits = m.program.send(value)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_that_are_left_finish_every_step_alike(count: int) -> None:
    for seed in range(250):
        world = World(seed, count, workers=min(count - 1, seed % 3), children=seed % 5)
        for _ in range(20_000):
            if not world.act():
                break
        else:
            raise AssertionError(f"seed {seed}: it never ends")
        left = world.alive
        assert {m.waits for m in left} == {"end"}, f"seed {seed}: {[(m.name, m.waits, m.step) for m in left]}"
        assert all(m.losses == left[0].losses and len(m.losses) == STEPS for m in left), f"seed {seed}"


def test_whoever_failed_is_told_of_a_finished_step_with_its_loss() -> None:
    one, other = Agreement("one"), Agreement("other")
    for agreement in (one, other):
        agreement.enter(1, ("one", "other"), 5)
        agreement.rest()
        assert agreement.begin()
    one.finish(0.25)
    ((to, asked),) = other.fail()
    assert (to, asked) == ("one", Broken(1, 5, 0.0))
    assert isinstance(asked, Broken)
    assert not other.settled(("one", "other"))
    ((_, stand),) = one.heard("other", asked)
    assert not one.usable
    assert stand == Stand(1, 5, True, 0.25)
    other.heard("one", stand)
    assert other.settled(("one", "other"))
    assert other.verdict() == 0.25
