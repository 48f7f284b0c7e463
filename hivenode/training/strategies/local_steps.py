"""Many steps by each member for itself, then one exchange of how far it has come.

A round takes the samples of `sync_every` global batches, each trained on by one member: a member's share follows its
speed, so the faster makes more steps and all arrive together (DyLU, arXiv 2401.09135). The mean of the ways they have
come, weighted by samples, is the gradient of an outer optimizer (DiLoCo, arXiv 2311.08105). When members are lost
before the round is done, the others go on from where they are with what those had to do; the outer step follows once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.split import split
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.learner import Learner
from hivenode.training.frameworks.model import Vector
from hivenode.training.optimizers import Outer
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire

OUTER = "outer"
"""Slot of the outer optimizer's momentum."""


class LocalSteps:
    """`Way` of rounds.

    Exchanges after every step where the job does not ask for local ones.

    Args:
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
        *,
        equal: bool = False,
    ) -> None:
        self._spec, self._group, self._wire, self._course = spec, group, wire, course
        self._learner, self._outer = learner, outer
        self._equal = equal
        self._every = spec.sync_every if spec.sync == "local" else 1
        self._base = learner.weights.copy()
        self._back = np.zeros_like(self._base)
        self._width = max(1, spec.batch_size // len(group.planned))

    @property
    def weights(self) -> Vector:
        return self._base

    @property
    def wire(self) -> Wire:
        return self._wire

    def shared(self) -> tuple[Mapping[str, Vector], dict[str, str]]:
        return {OUTER: self._outer.velocity} if self._outer.velocity.size else {}, {}

    def inherit(self, weights: Vector, slots: Mapping[str, Vector], scalars: dict[str, str]) -> None:
        self._base[:] = weights
        self._learner.adopt(self._base)
        if self._outer.velocity.size:
            self._outer.velocity[:] = slots[OUTER]

    def advance(self, step: int, stop: int) -> Advance:
        stop = min(stop, step + self._every)
        parts = {member: self._course.part(step, stop, member)[0] for member in self._group.members}
        total = sum(map(len, parts.values()))
        due = parts[self._group.me]
        losses, count, taken = 0.0, 0, 0.0

        def compute() -> float:
            nonlocal due, losses, count, taken
            if any(member not in self._group.members for member in parts):
                due = np.concatenate([due, self._inherit(parts)])
            began = time.monotonic()
            losses += self._learn(due, step, stop)
            taken += time.monotonic() - began
            count += len(due)
            due = due[:0]
            np.subtract(self._base, self._learner.weights, out=self._back)
            return float(min(count, 1) if self._equal else count)

        self._wire.agree(self._back, compute, step)
        self._outer.step(self._base, self._back)
        self._learner.adopt(self._base)
        loss = self._agree_on_loss(losses, count, stop)
        self._course.check(loss, stop - 1, self._spec.learning_rate)
        if self._course.movable:
            self._group.share_speeds(count, taken, stop)
        return Advance(stop, loss, total, taken)

    def _inherit(self, parts: dict[str, Indices]) -> Indices:
        """Divide what lost members had to do among those who are left; returns this one's part of it. Nothing, where
        samples lie with those who train on them."""
        lost = [member for member in parts if member not in self._group.members]
        left = np.concatenate([parts.pop(member) for member in lost])
        if not self._course.movable:
            left = left[:0]
        ranges = split(len(left), [1.0] * len(self._group.members))
        for member, part in zip(self._group.members, ranges, strict=True):
            parts[member] = np.concatenate([parts[member], left[part.start : part.stop]])
        mine = ranges[self._group.members.index(self._group.me)]
        return left[mine.start : mine.stop]

    def _learn(self, mine: Indices, step: int, stop: int) -> float:
        """Local steps over these samples; returns the sum of their losses."""
        if not len(mine):
            return 0.0
        total, steps = 0.0, max(1, int(len(mine) / self._width + 0.25))
        for turn, batch in enumerate(np.array_split(mine, steps)):
            self._group.heed()
            at = step + (stop - step) * turn // steps
            rate = learning_rate(self._spec, at, self._course.steps)
            loss = self._learner.learn(*self._course.take(batch), rate, self._course.draw(step, turn))
            self._course.check(loss, at, rate)
            total += loss * len(batch)
        return total

    def _agree_on_loss(self, losses: float, count: int, step: int) -> float:
        loss = np.zeros(1, np.float32)

        def tell() -> float:
            loss[0] = losses / max(count, 1)
            return float(count)

        self._group.agree(loss, tell, step)
        return float(loss[0])

    def slots(self) -> Mapping[str, Vector]:
        momentum = {OUTER: self._outer.velocity} if self._outer.velocity.size else {}
        return {**self._learner.slots(), **momentum}

    def scalars(self) -> dict[str, str]:
        return self._learner.scalars()

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        if self._outer.velocity.size:
            self._outer.velocity[:] = slots[OUTER]
        self._learner.restore({name: slot for name, slot in slots.items() if name != OUTER}, scalars)
