"""The gradient of every batch, averaged by torch.distributed while it is computed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.training import TrainingSpec
from hivenode.training.distributed.crew import Crew
from hivenode.training.distributed.letters import Step
from hivenode.training.distributed.memory import Shared
from hivenode.training.frameworks.model import Vector
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import clip, learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire


class ByTorch:
    """`Way` of synchronous steps, computed in a child process; what `EveryStep` does, to rounding.

    Args:
        wire: for newcomers, who learn from it that nothing of the exchange is in a codec.
        shared: where the model's weights are, and the child leaves gradients.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        group: Group,
        wire: Wire,
        course: Course,
        shared: Shared,
        optimizer: Optimizer,
        crew: Crew,
    ) -> None:
        self._spec, self._group, self._wire, self._course = spec, group, wire, course
        self._shared, self._optimizer, self._crew = shared, optimizer, crew

    @property
    def weights(self) -> Vector:
        return self._shared.weights

    @property
    def wire(self) -> Wire:
        return self._wire

    def shared(self) -> tuple[Mapping[str, Vector], dict[str, str]]:
        return self.slots(), self.scalars()

    def inherit(self, weights: Vector, slots: Mapping[str, Vector], scalars: dict[str, str]) -> None:
        self._shared.weights[:] = weights
        self.restore(slots, scalars)

    def meet(self, step: int) -> None:
        """Have a group for that step, which `advance` also sees to. Raises as it does."""
        self._crew.ready(step)

    def advance(self, step: int, stop: int) -> Advance:
        rate = learning_rate(self._spec, step, self._course.steps)
        try:
            done = None
            while done is None:
                self.meet(step)
                mine, total = self._course.part(step, step + 1)
                done = self._crew.compute(self._lay_out(mine, total, step))
        except Exception:
            self._group.heed()
            raise
        self._course.check(done.loss, step, rate)
        if self._spec.clip_norm is not None:
            clip(self._shared.gradient, self._spec.clip_norm)
        self._optimizer.step(self._shared.weights, self._shared.gradient, rate)
        return Advance(step + 1, done.loss, total, done.seconds, len(mine))

    def _lay_out(self, mine: Indices, total: int, step: int) -> Step:
        """Put this member's samples of a step where the child finds them. Who has none takes part with one that does
        not count."""
        inputs, labels = self._course.take(mine if len(mine) else np.zeros(1, np.int64))
        shapes = (inputs.shape, inputs.dtype.str), (labels.shape, labels.dtype.str)
        for place, array in zip(self._shared.batch(shapes), (inputs, labels), strict=True):
            np.copyto(place, array)
        part = len(mine) / total
        return Step(*shapes, scale=part * self._crew.size, part=part, draw=self._course.draw(step))

    def slots(self) -> Mapping[str, Vector]:
        return self._optimizer.slots()

    def scalars(self) -> dict[str, str]:
        return self._optimizer.scalars()

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        self._optimizer.restore(slots, scalars)
