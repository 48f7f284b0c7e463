"""A part of the model at a time, exchanged while steps go on: against the algorithm written down plainly, when members
are lost meanwhile, and from what was kept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivenode.data.dataset import Dataset, Held
from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput, Unavailable
from hivenode.net.local import Peer
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.exchange import Seat
from hivenode.training.exchange.codecs import Codec
from hivenode.training.exchange.reduction import reduce_into
from hivenode.training.optimizers import Outer
from hivenode.training.strategies.collective import Collective, Mean
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.fragments import Timetable, fragments_of, size_of
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.local_steps import LocalSteps
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Course
from hivenode.training.strategies.wire import Wire

NODES = tuple(f"{rank:032d}" for rank in range(3))
SAMPLES, BATCH, EVERY = 240, 12, 6
SHAPES = {"a.weight": (4, 3), "a.bias": (3,), "b.weight": (5,), "c.weight": (7, 2), "c.bias": (1,)}
SIZE = 12 + 3 + 5 + 14 + 1
RNG = np.random.default_rng(7)
DATA = Dataset(
    DataInfo("test", SAMPLES, (SIZE,), 1, (), "regression"),
    Held(RNG.standard_normal((SAMPLES, SIZE), np.float32), RNG.standard_normal(SAMPLES, np.float32)),
    Held(np.zeros((0, SIZE), np.float32), np.zeros(0, np.float32)),
)
PLACES = {row.tobytes(): place for place, row in enumerate(DATA.train.take(np.arange(SAMPLES))[0])}
WAYS = [(1, 0), (1, 2), (1, 6), (2, 0), (2, 1), (3, 2)]
"""Fragments and overlap."""


class Linear:
    """Least squares by gradient descent with momentum; remembers what it has seen.

    Args:
        meanwhile: called before each step.
    """

    loss_scale = None

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.weights = np.linspace(-1, 1, SIZE, dtype=np.float32)
        self.velocity = np.zeros(SIZE, np.float32)
        self.seen: Counter[int] = Counter()
        self._meanwhile = meanwhile

    def learn(self, inputs: np.ndarray, labels: np.ndarray, learning_rate: float, draw: int) -> float:
        self._meanwhile()
        self.seen.update(
            int(np.flatnonzero((DATA.train.take(np.arange(SAMPLES))[0] == row).all(1))[0]) for row in inputs
        )
        wrong = (inputs * self.weights).sum(1) - labels
        self.velocity *= np.float32(0.5)
        self.velocity += (inputs * wrong[:, None]).mean(0)
        self.weights -= self.velocity * np.float32(learning_rate)
        return float((wrong**2).mean())

    def adopt(self, weights: np.ndarray) -> None:
        self.weights[:] = weights

    def slots(self) -> Mapping[str, np.ndarray]:
        return {"velocity": self.velocity}

    def scalars(self) -> dict[str, str]:
        return {}

    def restore(self, slots: Mapping[str, np.ndarray], scalars: Mapping[str, str]) -> None:
        self.velocity[:] = slots["velocity"]


class Steady(Group):
    """One whose shares stay as planned, so that who trains on what does not depend on the clock."""

    def share_speeds(self, samples: int, seconds: float, step: int) -> None: ...


def spec_of(fragments: int, overlap: int) -> TrainingSpec:
    return TrainingSpec(
        sync="local", sync_every=EVERY, batch_size=BATCH, learning_rate=0.01, fragments=fragments, overlap=overlap
    )


def steps_of(
    spec: TrainingSpec, collective: Collective, me: str, learner: Linear, codec: str = "fp32", nodes: int = len(NODES)
) -> tuple[LocalSteps, Course, Group]:
    shares = [Share(name, rank, 1 / nodes, 0.1, 1) for rank, name in enumerate(NODES[:nodes])]
    group = Steady(me, shares, collective, lambda message: None, lambda: None)
    fragments = fragments_of(SHAPES, spec.fragments)
    wire = Wire(group, codec, [size_of(fragment) for fragment in fragments], (), lambda message: None)
    course = Course(DATA, spec, group)
    return LocalSteps(spec, group, wire, course, learner, Outer(0.7, 0.9, SIZE), fragments), course, group


@st.composite
def timetables(draw: st.DrawFn) -> Timetable:
    every = draw(st.integers(1, 60))
    fragments = draw(st.integers(1, every))
    return Timetable(every, fragments, draw(st.integers(0, every // fragments)))


@given(timetables())
def test_each_fragment_is_sent_once_a_round_and_taken_in_before_the_next(table: Timetable) -> None:
    step, sent = 0, list[tuple[int, int]]()
    while len(sent) < 4 * table.fragments:
        sent.append(table.following(step))
        assert step <= sent[-1][0]
        step = sent[-1][0] + table.overlap
    assert [fragment for _, fragment in sent] == [number % table.fragments for number in range(len(sent))]
    for fragment in range(table.fragments):
        times = [time for time, which in sent if which == fragment]
        assert {later - time for time, later in pairwise(times)} == {table.every}
        assert [table.round(time) for time in times] == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_fragments_divide_the_weights_by_layers(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    shapes = {f"h.{n}.{part}": (size,) for n, size in enumerate(sizes) for part in ("weight", "bias")}
    fragments = fragments_of(shapes, count)
    owners = np.zeros(2 * sum(sizes), int)
    for fragment in fragments:
        for run in fragment:
            owners[run] += 1
    assert (owners == 1).all()
    assert max(map(size_of, fragments)) - min(map(size_of, fragments)) <= 2 * max(sizes)


def test_layers_alike_are_dealt_in_turn_and_there_have_to_be_enough() -> None:
    shapes = {"embedding.weight": (1,), **{f"block{n}.{part}": (4,) for n in range(4) for part in ("a", "b")}}
    assert fragments_of({name: shape for name, shape in shapes.items() if name[0] == "b"}, 2) == (
        (slice(0, 8), slice(16, 24)),
        (slice(8, 16), slice(24, 32)),
    )
    assert [size_of(fragment) for fragment in fragments_of(shapes, 2)] == [17, 16]
    with pytest.raises(InvalidInput, match="fragments is 6, and the model has 5 layers"):
        fragments_of(shapes, 6)


def plainly(spec: TrainingSpec, stop: int, members: int) -> np.ndarray:
    """Streaming DiLoCo in lockstep; what is then held in common. With one fragment and no overlap, it is DiLoCo."""
    replicas = [Linear() for _ in range(members)]
    _, course, _ = steps_of(spec, Alone(NODES[0]), NODES[0], Linear())
    shared, velocity = replicas[0].weights.copy(), np.zeros(SIZE, np.float32)
    fragments, counts = fragments_of(SHAPES, spec.fragments), [[0] * members for _ in range(spec.fragments)]
    coming: dict[int, tuple[int, list[np.ndarray], list[int]]] = {}

    def send(fragment: int) -> tuple[list[np.ndarray], list[int]]:
        said, counts[fragment] = counts[fragment], [0] * members
        return [own.weights.copy() for own in replicas], said

    def take_in(fragment: int, gave: list[np.ndarray], said: list[int], sent: int, kept: float) -> None:
        ways = [np.concatenate([shared[run] - own[run] for run in fragments[fragment]]) for own in gave]
        back = np.empty_like(ways[0])
        reduce_into(back, ways, [float(count) for count in said])
        number, start = (sent - 1) // EVERY, 0
        momentum = min(0.9, number / (number + 3))
        rate = 1.0 + (0.7 - 1.0) * (momentum / 0.9)
        for run in fragments[fragment]:
            part = back[start : start + run.stop - run.start]
            start += run.stop - run.start
            velocity[run] = velocity[run] * np.float32(momentum) + part
            shared[run] -= (part + velocity[run] * np.float32(momentum)) * np.float32(rate)
            for own, at in zip(replicas, gave, strict=True):
                mixed = at[run] * np.float32(kept) + shared[run] * np.float32(1.0 - kept)
                own.weights[run] = own.weights[run] - at[run] + mixed

    for step in range(stop):
        for rank, own in enumerate(replicas):
            mine, _ = course.part(step, step + 1, NODES[rank])
            own.learn(*course.take(mine), 0.01, 0)
            for each in counts:
                each[rank] += len(mine)
        now, last = step + 1, step + 1 == stop
        for fragment in [f for f, (due, _, _) in coming.items() if due == now or last]:
            due, gave, said = coming.pop(fragment)
            take_in(fragment, gave, said, due - spec.overlap, spec.mixing)
        if (now * spec.fragments) % EVERY == 0 and not last:
            fragment = (now * spec.fragments // EVERY - 1) % spec.fragments
            if spec.overlap:
                coming[fragment] = (now + spec.overlap, *send(fragment))
            else:
                take_in(fragment, *send(fragment), now, 0.0)
    for fragment in range(spec.fragments):
        take_in(fragment, *send(fragment), stop, 0.0)
    return shared


def each(count: int, call: Callable[[int], object]) -> list[object]:
    """Of all members at once, each in a thread."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def met(*members: Together) -> tuple[Together, ...]:
    peers = tuple(Peer(NODES[r], r, "127.0.0.1", m.port, m.certificate) for r, m in enumerate(members))
    each(len(members), lambda rank: members[rank].connect(peers))
    return members


def to_the_end(steps: LocalSteps, stop: int, step: int = 0) -> int:
    while step < stop:
        step = steps.advance(step, stop).step
    return step


@pytest.mark.parametrize(("fragments", "overlap"), WAYS)
@pytest.mark.parametrize("stop", [18, 31])
def test_it_is_the_algorithm_to_the_bit(fragments: int, overlap: int, stop: int) -> None:
    spec, members = (
        spec_of(fragments, overlap),
        met(*(Together(Seat(NODES[rank], rank, "127.0.0.1")) for rank in range(3))),
    )
    made = [steps_of(spec, members[rank], NODES[rank], Linear())[0] for rank in range(3)]
    each(3, lambda rank: to_the_end(made[rank], stop))
    expected = plainly(spec, stop, 3)
    assert {steps.weights.tobytes() for steps in made} == {expected.tobytes()}
    each(3, lambda rank: members[rank].close())


class Fate:
    """Who dies, in the middle of an exchange: once all the others are in it.

    Args:
        sizes: of vectors; those of size 1 are what members tell each other of their losses.
        survived: exchanges of such vectors before.
    """

    def __init__(self, victim: str, sizes: Callable[[int], bool], survived: int) -> None:
        self._victim, self._sizes, self._survived = victim, sizes, survived
        self._calls = dict.fromkeys(NODES, 0)
        self._changed = threading.Condition()

    def meet(self, node: str, size: int) -> bool:
        """Whether this is the end of that member."""
        with self._changed:
            if not self._sizes(size):
                return False
            self._calls[node] += 1
            self._changed.notify_all()
            if node != self._victim or self._calls[node] <= self._survived:
                return False
            self._changed.wait_for(lambda: min(self._calls.values()) > self._survived)
            return True


class Mortal(Together):
    def __init__(self, rank: int, fate: Fate) -> None:
        super().__init__(Seat(NODES[rank], rank, "127.0.0.1"))
        self._node, self._fate = NODES[rank], fate

    def mean(self, vector: np.ndarray, weight: float, codec: Codec | None = None, *, judged: bool = False) -> Mean:
        if self._fate.meet(self._node, vector.size):
            self.close()
            raise Unavailable("It has died.", fix="")
        return super().mean(vector, weight, codec, judged=judged)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize(("fragments", "overlap"), [(1, 2), (1, 6), (3, 2), (2, 0)])
@pytest.mark.parametrize("telling", [False, True])
def test_a_member_lost_while_a_part_is_on_its_way_costs_no_sample(
    fragments: int, overlap: int, telling: bool, codec: str
) -> None:
    spec, sent = spec_of(fragments, overlap), 2
    fate = Fate(NODES[1], lambda size: (size == 1) == telling, sent)
    members = met(*(Mortal(rank, fate) for rank in range(3)))
    learners = [Linear() for _ in NODES]
    made = [steps_of(spec, members[rank], NODES[rank], learners[rank], codec) for rank in range(3)]

    def run(rank: int) -> None:
        if rank == 1:
            with pytest.raises(Unavailable, match="died"):
                to_the_end(made[rank][0], 20)
        else:
            to_the_end(made[rank][0], 20)

    each(3, run)
    assert made[0][0].weights.tobytes() == made[2][0].weights.tobytes()
    # Every sample of the epoch once: by those who are left, or by the lost one before what the others last heard of it.
    heard = (sent + telling) * EVERY // fragments
    seen = learners[0].seen + learners[2].seen + Counter(made[1][1].part(0, heard, NODES[1])[0].tolist())
    assert seen == Counter(range(SAMPLES))
    each(3, lambda rank: members[rank].close())


@pytest.mark.parametrize(("fragments", "overlap"), WAYS)
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_resumed_run_goes_on_as_if_nothing_had_been(fragments: int, overlap: int, codec: str) -> None:
    spec, learner = spec_of(fragments, overlap), Linear()
    steps, _, _ = steps_of(spec, Alone(NODES[0]), NODES[0], learner, codec, nodes=1)
    step, kept = 0, list[tuple[int, np.ndarray, dict[str, np.ndarray], dict[str, str]]]()
    while step < 31:
        slots = {name: slot.copy() for name, slot in steps.slots().items()}
        kept.append((step, steps.weights.copy(), slots, steps.scalars()))
        assert learner.weights.tobytes() == steps.weights.tobytes(), "between advances the model is what all have"
        step = steps.advance(step, 31).step
    assert learner.weights.tobytes() == steps.weights.tobytes()
    for step, weights, slots, scalars in kept:
        again = Linear()
        again.weights[:] = weights
        resumed, _, _ = steps_of(spec, Alone(NODES[0]), NODES[0], again, codec, nodes=1)
        resumed.restore(slots, scalars)
        to_the_end(resumed, 31, step)
        assert resumed.weights.tobytes() == steps.weights.tobytes()


@pytest.mark.parametrize(("fragments", "overlap"), [(1, 0), (2, 0), (2, 1), (1, 6)])
def test_a_newcomer_goes_on_from_what_all_have_in_common(fragments: int, overlap: int) -> None:
    spec, enough = spec_of(fragments, overlap), threading.Event()
    members = met(*(Together(Seat(NODES[rank], rank, "127.0.0.1")) for rank in range(2)))
    newcomer = Together(Seat(NODES[2], 2, "127.0.0.1"))
    learners = [Linear() for _ in NODES]
    made = [
        steps_of(spec, member, NODES[rank], learners[rank], "int8", nodes=2 if rank < 2 else 3)
        for rank, member in enumerate([*members, newcomer])
    ]

    def train(rank: int, step: int = 0) -> bytes:
        """Until it is enough for all at once, and a few more."""
        steps, _, group = made[rank]
        stop = np.zeros(1, np.float32)
        while True:
            group.gate(lambda step=step: [np.array([step], np.int64), steps.weights, *steps.shared()[0].values()], step)

            def tell() -> float:
                stop[0] = enough.is_set()
                return 1.0

            group.agree(stop, tell, step)
            if stop[0]:
                to_the_end(steps, step + 20, step)
                return steps.weights.tobytes()
            step = steps.advance(step, 10**9).step

    with ThreadPoolExecutor(3) as pool:
        old = [pool.submit(train, rank) for rank in range(2)]
        peers = tuple(Peer(NODES[r], r, "127.0.0.1", m.port, m.certificate) for r, m in enumerate([*members, newcomer]))
        for member in members:
            member.admit(peers[2])
        state = newcomer.join(peers, 10_000)
        steps, _, group = made[2]
        group.inherit(NODES[:2], NODES[:2], dict.fromkeys(NODES[:2], 0.5))
        steps.inherit(state[2 : 2 + SIZE], {"outer": state[2 + SIZE :]}, {})
        last = pool.submit(train, 2, int(state[:2].view(np.int64)[0]))
        enough.set()
        assert len({future.result(60) for future in [*old, last]}) == 1
    assert learners[2].seen, "it has taken part"
    for member in (*members, newcomer):
        member.close()
