"""Many steps by each member for itself, then an exchange of how far it has come.

A round takes the samples of `sync_every` global batches, each trained on by one member: a member's share follows its
speed, so the faster makes more steps and all arrive together (DyLU, arXiv 2401.09135). The mean of the ways they have
come, weighted by samples, is the gradient of an outer optimizer (DiLoCo, arXiv 2311.08105). When members are lost
before the round is done, the others go on from where they are with what those had to do; the outer step follows once.

With fragments and overlap (Streaming DiLoCo, arXiv 2501.18512, algorithm 2) a part of the model is exchanged at a time,
each part once in a round, and steps go on meanwhile. Then what all came to is mixed with what a member had sent; its
way since is added whole, as in delayed gradient averaging (Zhu et al., NeurIPS 2021), where the paper mixes that too:
with an overlap of a good part of a round, much of what was learned would be thrown away.

What members have in common is what they last agreed on, part by part. Between two calls of `advance` the model holds
that, so that it is judged, kept and handed over like any other; the member's own weights are put aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.learner import Learner
from hivenode.training.frameworks.model import Vector
from hivenode.training.optimizers import Outer
from hivenode.training.strategies.background import begin
from hivenode.training.strategies.collective import Mean
from hivenode.training.strategies.fragments import Fragment, Timetable, size_of
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.leg import Done, Leg
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire

OUTER, OWN = "outer", "own"
"""Slots: the outer optimizer's momentum, and a member's own weights."""
UNSAID, LOSSES = "unsaid", "losses"
"""Scalars: samples since each fragment was last sent, and losses not told yet with their samples."""


class LocalSteps:
    """`Way` of rounds.

    Exchanges after every step where the job does not ask for local ones.

    Args:
        wire: of as many parts as there are fragments.
        fragments: of the weights, covering them.
        equal: every member counts the same in the mean, however many samples it had: for weights that are sums.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        group: Group,
        wire: Wire,
        course: Course,
        learner: Learner,
        outer: Outer,
        fragments: tuple[Fragment, ...],
        *,
        equal: bool = False,
    ) -> None:
        self._spec, self._group, self._wire, self._course = spec, group, wire, course
        self._learner, self._outer, self._fragments = learner, outer, fragments
        self._equal = equal
        every = spec.sync_every if spec.sync == "local" else 1
        self._timetable = Timetable(every, len(fragments), spec.overlap)
        self._base = learner.weights.copy()
        self._streams = len(fragments) > 1 or spec.overlap > 0
        self._own = self._base.copy() if self._streams else self._base
        largest = max(map(size_of, fragments))
        self._back = np.zeros(largest, np.float32)
        self._sent = np.zeros(largest if spec.overlap else 0, np.float32)
        self._unsaid = [0] * len(fragments)
        self._unheard = list[Leg]()
        """Legs of which nothing has been said yet."""
        self._done = Done()
        self._taken, self._learned, self._skipped = 0.0, 0, 0
        """Seconds and samples of learning, and steps without effect, in this advance."""
        self._width = max(1, spec.batch_size // len(group.planned))
        self._notes = dict[str, str]()
        if self._streams:
            self._note()

    @property
    def weights(self) -> Vector:
        return self._base

    @property
    def wire(self) -> Wire:
        return self._wire

    def shared(self) -> tuple[Mapping[str, Vector], dict[str, str]]:
        return self._momentum(), {}

    def inherit(self, weights: Vector, slots: Mapping[str, Vector], scalars: dict[str, str]) -> None:
        self._base[:] = weights
        self._own[:] = weights
        self._unsaid, self._unheard, self._done = [0] * len(self._fragments), [], Done()
        self._learner.adopt(self._base)
        for name, vector in self._momentum().items():
            vector[:] = slots[name]
        if self._streams:
            self._note()

    def advance(self, step: int, stop: int) -> Advance:
        """To when the next fragment is taken in; at `stop` all members have everything in common."""
        if self._streams:
            self._learner.adopt(self._own)
        due, fragment = self._timetable.following(step)
        due = min(max(due, step), stop)
        until = min(due + self._spec.overlap, stop)
        self._taken, self._learned, self._skipped = 0.0, 0, 0
        self._unheard.append(self._leg(step, due))
        total, told = self._unheard[-1].total, list[tuple[float, float]]()
        if due < until:
            told.append(self._overlap(fragment, due, until))
            total += self._unheard[-1].total
        elif due < stop:
            self._exchange(fragment, step, due)
        if until == stop:
            for fragment in range(len(self._fragments)):
                self._exchange(fragment, step, until)
        if until in (due, stop):
            done, self._done = self._done, Done()
            told.append(self._tell(done, until))
        if self._streams:
            self._own[:] = self._learner.weights
            self._learner.adopt(self._base)
            self._note()
        scale = self._learner.loss_scale
        return Advance(
            until, _mean(told), total, self._taken, self._learned, self._skipped, None if scale is None else scale.value
        )

    def _leg(self, start: int, stop: int) -> Leg:
        return Leg(self._spec, self._group, self._course, self._learner, start, stop, self._width)

    def _learn(self, leg: Leg) -> None:
        before, skipped = self._done.seconds, self._done.skipped
        count = leg.learn(self._done)
        self._skipped += self._done.skipped - skipped
        self._unsaid = [unsaid + count for unsaid in self._unsaid]
        self._taken += self._done.seconds - before
        self._learned += count

    def _exchange(self, fragment: int, step: int, due: int) -> None:
        """Finish the legs, and take in where all have come to with that fragment."""
        back = self._back[: size_of(self._fragments[fragment])]

        def compute() -> float:
            for leg in self._unheard:
                leg.inherit(self._group.members)
                self._learn(leg)
            self._gather(fragment, back)
            self._turn(fragment, back)
            return self._weight(fragment)

        self._wire.agree(back, compute, step, fragment)
        self._unsaid[fragment], self._unheard = 0, []
        self._take_in(fragment, back, due)
        for run in self._fragments[fragment]:
            self._learner.weights[run] = self._base[run]
        self._learner.adopt(self._learner.weights)

    def _overlap(self, fragment: int, due: int, until: int) -> tuple[float, float]:
        """The same at `due`, while steps go on until `until`; returns what `_tell` does."""
        legs, ahead = self._unheard, self._leg(due, until)
        self._learn(legs[-1])
        sent, back = (vector[: size_of(self._fragments[fragment])] for vector in (self._sent, self._back))
        self._gather(fragment, sent)
        weight, self._unsaid[fragment] = self._weight(fragment), 0
        done, self._done = self._done, Done()
        heard, self._unheard = self._group.members, [ahead]

        def give() -> float:
            nonlocal heard
            heard = self._group.members
            back[:] = sent
            self._turn(fragment, back)
            return weight

        def exchange() -> tuple[Mean, tuple[float, float]]:
            return self._wire.agree(back, give, due, fragment), self._tell(done, due)

        exchanged = begin(exchange)
        self._learn(ahead)
        mean, told = exchanged.result()
        self._take_in(fragment, back, due)
        # What came too late is said again with the next: it must not also stay in this member's weights.
        self._mix(fragment, sent, self._spec.mixing if mean.late is None else 0.0)
        for leg, members in (*((leg, heard) for leg in legs), (ahead, self._group.members)):
            leg.inherit(members)
            self._learn(leg)
        return told

    def _gather(self, fragment: int, out: Vector) -> None:
        """This member's weights."""
        for run, part in _runs(self._fragments[fragment], out):
            part[:] = self._learner.weights[run]

    def _turn(self, fragment: int, weights: Vector) -> None:
        """From weights of a fragment to the way from there back to where all set out from."""
        for run, part in _runs(self._fragments[fragment], weights):
            np.subtract(self._base[run], part, out=part)

    def _take_in(self, fragment: int, back: Vector, due: int) -> None:
        """The outer step."""
        number = self._timetable.round(due)
        for run, part in _runs(self._fragments[fragment], back):
            self._outer.step(self._base, part, number, run)

    def _mix(self, fragment: int, sent: Vector, kept: float) -> None:
        """What all came to, with `kept` of what this member sent in its place; and on it the way it has come since.
        `sent` is overwritten."""
        own = self._learner.weights
        for run, part in _runs(self._fragments[fragment], sent):
            own[run] -= part
            part *= np.float32(kept)
            part += self._base[run] * np.float32(1.0 - kept)
            own[run] += part
        self._learner.adopt(own)

    def _weight(self, fragment: int) -> float:
        count = self._unsaid[fragment]
        return float(min(count, 1) if self._equal else count)

    def _tell(self, done: Done, step: int) -> tuple[float, float]:
        """Mean loss over what all have done, and its weight; then shares follow speed."""
        loss = np.zeros(1, np.float32)

        def tell() -> float:
            loss[0] = done.losses / max(done.samples, 1)
            return float(done.samples)

        weight = self._group.agree(loss, tell, step).total_weight
        self._course.check(float(loss[0]), step - 1, self._spec.learning_rate)
        if self._course.movable:
            self._group.share_speeds(done.samples, done.seconds, step)
        return float(loss[0]), weight

    def _momentum(self) -> dict[str, Vector]:
        return {OUTER: self._outer.velocity} if self._outer.velocity.size else {}

    def slots(self) -> Mapping[str, Vector]:
        own = {OWN: self._own} if self._streams else {}
        return {**self._learner.slots(), **self._momentum(), **own}

    def _note(self) -> None:
        """Keep, for a checkpoint of this moment, what changes before the next."""
        losses = f"{self._done.losses.hex()} {self._done.samples}"
        self._notes = {UNSAID: " ".join(map(str, self._unsaid)), LOSSES: losses}

    def scalars(self) -> dict[str, str]:
        return {**self._learner.scalars(), **self._notes}

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        for name, vector in self._momentum().items():
            vector[:] = slots[name]
        if self._streams:
            self._own[:] = slots[OWN]
            self._unsaid = [int(count) for count in scalars[UNSAID].split()]
            losses, samples = scalars[LOSSES].split()
            self._done = Done(float.fromhex(losses), int(samples))
            self._note()
        rest = {name: slot for name, slot in slots.items() if name not in (OUTER, OWN)}
        self._learner.restore(rest, scalars)


def _runs(fragment: Fragment, vector: Vector) -> Iterator[tuple[slice, Vector]]:
    """Each run of a fragment, and the part of its vector that belongs to it."""
    start = 0
    for run in fragment:
        stop = start + run.stop - run.start
        yield run, vector[start:stop]
        start = stop


def _mean(told: list[tuple[float, float]]) -> float:
    """Of losses with weights."""
    if len(told) == 1:
        return told[0][0]
    weight = sum(weight for _, weight in told)
    return sum(loss * weight for loss, weight in told) / max(weight, 1.0)
