"""Ranges that move with the speeds of the members: when, and that no sample is lost or doubled by it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.data.dataset import Dataset, Held
from hivenode.data.info import DataInfo
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.strategies.balance import KEY, LOOKS, Cut, Pace, Scales, fitting, load
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Course

NAMES = ("a", "b", "c", "d")
WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4)


def dataset(samples: int) -> Dataset:
    held = Held(np.zeros((samples, 1), np.float32), np.zeros(samples, np.int64))
    return Dataset(DataInfo("csv:x", samples, (1,), 2, ("p", "q"), "classification"), held, held, ranges=True)


def course(samples: int, batch: int, weights: Mapping[str, float], me: str = "a", epochs: int = 9) -> Course:
    shares = [Share(name, rank, weight, 0.0, 0) for rank, (name, weight) in enumerate(weights.items())]
    group = Group(me, shares, Alone(me), lambda message: None, lambda: None)
    return Course(dataset(samples), TrainingSpec(epochs=epochs, batch_size=batch, seed=5), group)


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(20, 200),
    batch=st.integers(5, 40),
    shares=st.lists(WEIGHTS, min_size=4, max_size=4),
    hops=st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_an_epoch_has_every_sample_once_however_often_ranges_move(
    samples: int, batch: int, shares: list[list[float]], hops: list[int]
) -> None:
    """Ranges move wherever members may stop: after a step, or after a round that ends in another epoch."""
    members = NAMES[: min(map(len, shares))]
    course_ = course(samples, batch, dict(zip(members, shares[0], strict=False)), epochs=5)
    seen: dict[int, list[int]] = {}
    step, turn = 0, 0
    while step < course_.steps:
        stop = min(step + hops[turn % len(hops)], course_.steps)
        for number in range(step, stop):
            for member in members:
                part, total = course_.part(number, number + 1, member)
                assert total <= batch + len(members)
                seen.setdefault(number // course_.steps_per_epoch, []).extend(part.tolist())
        step, turn = stop, turn + 1
        course_.turn(step)
        if not course_.pending:
            epoch = -(-step // course_.steps_per_epoch)
            course_.recut(Cut(epoch, dict(zip(members, shares[turn % len(shares)], strict=False))))
    assert all(sorted(found) == list(range(samples)) for found in seen.values())
    assert len(seen) == 5


@pytest.mark.parametrize("coming", [None, {"a": 0.2, "b": 0.1, "c": 0.7}])
def test_a_resumed_epoch_has_what_nobody_had(coming: dict[str, float] | None) -> None:
    """The new plan ranks the same members otherwise, by other shares."""
    members = NAMES[:3]
    before = course(500, 32, {"a": 0.6, "b": 0.3, "c": 0.1})
    stop = before.steps_per_epoch + 5
    if coming is not None:
        before.recut(Cut(2, coming))
    had = [n for m in members for n in before.part(before.steps_per_epoch, stop, m)[0].tolist()]
    after = course(500, 32, {"c": 0.5, "a": 0.3, "b": 0.2}, me="c")
    after.restore(before.scalars())
    rest = [n for m in members for n in after.part(stop, 2 * after.steps_per_epoch, m)[0].tolist()]
    assert sorted(had + rest) == list(range(500))
    following = (2 * after.steps_per_epoch, 3 * after.steps_per_epoch)
    for member in members:
        assert after.part(*following, member)[0].tolist() == before.part(*following, member)[0].tolist()


def test_other_members_begin_with_shares_of_their_own() -> None:
    before, after = course(100, 10, {"a": 0.9, "b": 0.1}), course(100, 10, {"a": 0.5, "c": 0.5})
    after.restore(before.scalars())
    assert len(after.part(0, 10, "a")[0]) == 50


def arrive(course_: Course, node: str) -> None:
    """What `Group.look_around` does when somebody was let in."""
    group = course_._group
    group.weights.setdefault(node, sum(group.weights[member] for member in group.planned) / len(group.planned))
    if node not in group.planned:
        group.planned += (node,)
    group.members += (node,)
    group.joined = (node,)


@pytest.mark.parametrize("back", ["c", "d"], ids=["one that was lost", "a new one"])
@pytest.mark.parametrize("into", [0, 4], ids=["between epochs", "within one"])
def test_a_newcomer_has_nothing_of_the_epoch_and_its_part_of_the_next(back: str, into: int) -> None:
    courses = {me: course(400, 32, {"a": 0.5, "b": 0.2, "c": 0.3}, me=me) for me in ("a", "b")}
    for one in courses.values():
        one._group.members = ("a", "b")
    per_epoch = courses["a"].steps_per_epoch
    stop = per_epoch + into
    had = [n for me, one in courses.items() for n in one.part(per_epoch, stop, me)[0].tolist()] if into else []
    newcomer = course(400, 32, {"a": 0.5, "b": 0.2, "c": 0.3, "d": 0.3}, me=back)
    group = courses["a"]._group
    newcomer._group.inherit(group.planned, group.members, group.weights)
    newcomer.inherit(courses["a"].scalars())
    courses[back] = newcomer
    for one in courses.values():
        arrive(one, back)
        one.welcome(stop)
    assert len({one.scalars()[KEY] for one in courses.values()}) == 1
    first = 2 if into else 1
    if into:
        rest = [n for me, one in courses.items() for n in one.part(stop, 2 * per_epoch, me)[0].tolist()]
        assert sorted(had + rest) == list(range(400))
    for epoch in (first, first + 1):
        for one in courses.values():
            one.turn(epoch * per_epoch)
        bounds = (epoch * per_epoch, (epoch + 1) * per_epoch)
        parts = {me: one.part(*bounds, me)[0].tolist() for me, one in courses.items()}
        assert sorted(n for part in parts.values() for n in part) == list(range(400))
        assert 100 < len(parts[back]) < 160


def test_a_checkpoint_s_shares_are_checked() -> None:
    for text in ("", "{}", '{"shares":[["a",-1.0]]}', '{"shares":[["a",0.5]],"coming":{"epoch":-1,"weights":{}}}'):
        with pytest.raises(ValueError, match=r".*"):
            load(text)
    assert set(course(100, 10, {"a": 0.5, "b": 0.5}).scalars()) == {KEY}
    assert course(100, 10, {"a": 1.0}).scalars() == {}


def test_what_a_member_will_need_is_brought_meanwhile() -> None:
    asked: list[tuple[int, range]] = []
    brought = threading.Semaphore(0)

    class Asked(Held):
        def bring(self, places: range) -> None:
            asked.append((len(self), places))
            brought.release()

    one = course(100, 10, {"a": 0.5, "b": 0.5}, me="b")
    held = Asked(np.zeros((100, 1), np.float32), np.zeros(100, np.int64))
    one._data = Dataset(one._data.info, held, held, ranges=True)
    one.recut(Cut(1, {"a": 0.2, "b": 0.8}))
    assert all(brought.acquire(timeout=30) for _ in range(2))
    assert asked == [(100, range(20, 100))] * 2


class Machines:
    """Members that take `fixed + each * samples` seconds a step."""

    def __init__(self, fixed: Sequence[float], each: Sequence[float]) -> None:
        self._fixed, self._each = fixed, each

    def paces(self, weights: Mapping[str, float], batch: int = 100, steps: int = 10) -> dict[str, Pace]:
        whole = sum(weights.values())
        return {
            name: Pace(
                steps * batch * weights[name] / whole,
                steps * (fixed + each * batch * weights[name] / whole),
            )
            for name, fixed, each in zip(weights, self._fixed, self._each, strict=True)
        }

    def settled(self, weights: dict[str, float], looks: int = 60) -> tuple[dict[str, float], int]:
        """Shares in the end, and how often they were cut."""
        scales, cuts = Scales(), 0
        for _ in range(looks):
            better, _ = scales.look(weights, self.paces(weights), 10)
            if better:
                weights, cuts = better, cuts + 1
        return weights, cuts

    def imbalance(self, weights: Mapping[str, float]) -> float:
        seconds = [pace.seconds for pace in self.paces(weights).values()]
        return max(seconds) / (sum(seconds) / len(seconds))


def test_a_slow_member_is_given_less() -> None:
    weights, cuts = Machines([0, 0], [0.001, 0.004]).settled({"a": 0.5, "b": 0.5})
    assert cuts == 1
    assert weights == pytest.approx({"a": 0.8, "b": 0.2})


@pytest.mark.parametrize(("fixed", "each"), [
    ([0.01, 0.01], [0.001, 0.004]), ([0.05, 0.0], [0.0002, 0.004]), ([0.0, 0.02, 0.0], [0.001, 0.001, 0.006]),
])  # fmt: skip
def test_what_a_step_costs_whatever_its_samples_does_not_make_shares_run_away(
    fixed: list[float], each: list[float]
) -> None:
    machines = Machines(fixed, each)
    start = dict.fromkeys(NAMES[: len(each)], 1.0)
    weights, cuts = machines.settled(start)
    assert 1 <= cuts <= 12
    assert machines.imbalance(weights) < min(1.25, machines.imbalance(start))
    assert machines.settled(weights)[1] == 0, "and there they stay"


def test_ranges_stay_while_they_fit_about_or_a_look_was_an_exception_or_little_is_to_be_gained() -> None:
    even = {"a": 0.5, "b": 0.5}
    assert Machines([0, 0], [0.001, 0.0012]).settled(even)[1] == 0
    assert Machines([0, 0], [0.000_001, 0.000_004]).settled(even)[1] == 0
    scales, slow, usual = Scales(), Machines([0, 0], [0.001, 0.01]), Machines([0, 0], [0.001, 0.001])
    for look in range(30):
        machines = usual if look % LOOKS == LOOKS - 1 else slow
        assert scales.look(even, machines.paces(even), 10) == ({}, 1.0)
    assert scales.look(even, {"a": Pace(5.0, 1.0), "b": Pace(0.0, 0.0)}, 10) == ({}, 1.0)


@given(speeds=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20))
def test_nobody_is_left_without_a_share(speeds: list[float]) -> None:
    shares = fitting({str(n): speed for n, speed in enumerate(speeds)})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) >= 0.01 / len(speeds)
