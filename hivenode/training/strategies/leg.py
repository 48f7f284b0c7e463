"""The samples of some steps, divided among the members so that each trains on its own by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.split import split
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.learner import Learner
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Course


@dataclass(slots=True)
class Done:
    """What a member has done since it last told the others.

    Attributes:
        losses: sum over the samples.
        seconds: of learning.
        skipped: steps whose gradient did not fit float16.
    """

    losses: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    skipped: int = 0


class Leg:
    """Steps from `start` to before `stop`, divided among the members there are at its creation.

    Args:
        width: samples of one local step.

    Attributes:
        total: samples of all members.
    """

    def __init__(
        self, spec: TrainingSpec, group: Group, course: Course, learner: Learner, start: int, stop: int, width: int
    ) -> None:
        self._spec, self._group, self._course, self._learner = spec, group, course, learner
        self._start, self._stop, self._width = start, stop, width
        self._parts: dict[str, Indices] = {}
        if stop > start:
            self._parts = {member: course.part(start, stop, member)[0] for member in group.members}
        self.total = sum(map(len, self._parts.values()))
        self._due = self._parts[group.me] if self._parts else np.empty(0, np.int64)

    def inherit(self, members: tuple[str, ...]) -> None:
        """Divide what others than these had to do among those of the leg who are left. Nothing, where samples lie with
        those who train on them."""
        lost = [member for member in self._parts if member not in members]
        if not lost:
            return
        left = np.concatenate([self._parts.pop(member) for member in lost])
        if not self._course.within_reach:
            left = left[:0]
        ranges = split(len(left), [1.0] * len(self._parts))
        for member, part in zip(self._parts, ranges, strict=True):
            own = left[part.start : part.stop]
            self._parts[member] = np.concatenate([self._parts[member], own])
            if member == self._group.me:
                self._due = np.concatenate([self._due, own])

    def learn(self, done: Done) -> int:
        """Train on what is to be done of it; returns how many samples that were."""
        mine, self._due = self._due, self._due[:0]
        if not len(mine):
            return 0
        began = time.monotonic()
        steps = max(1, int(len(mine) / self._width + 0.25))
        for turn, batch in enumerate(np.array_split(mine, steps)):
            self._group.heed()
            at = self._start + (self._stop - self._start) * turn // steps
            rate = learning_rate(self._spec, at, self._course.steps)
            scale = self._learner.loss_scale
            before = scale.value if scale is not None else 0.0
            loss = self._learner.learn(*self._course.take(batch), rate, self._course.draw(self._start, turn))
            self._course.check(loss, at, rate)
            if scale is not None:
                done.skipped += int(scale.value < before)
                self._course.check_scale(scale, at)
            done.losses += loss * len(batch)
        done.seconds += time.monotonic() - began
        done.samples += len(mine)
        return len(mine)
