"""The gradient of every batch, averaged by torch.distributed while it is computed."""

from __future__ import annotations

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.training import TrainingSpec
from hivenode.training.distributed.crew import Crew
from hivenode.training.distributed.letters import Step
from hivenode.training.distributed.memory import Shared
from hivenode.training.frameworks.model import Vector
from hivenode.training.loss_scale import LossScale, finite
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.synchronous import Synchronous
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire


class ByTorch(Synchronous):
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
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__(spec, group, wire, course, optimizer, loss_scale)
        self._shared, self._crew = shared, crew

    @property
    def weights(self) -> Vector:
        return self._shared.weights

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
        gradient, fits = self._shared.gradient, True
        if self._loss_scale is not None:
            fits = finite(gradient)
            gradient *= np.float32(1.0 / self._scale)
        return self._finish(gradient, fits, Advance(step + 1, done.loss, total, done.seconds, len(mine)), rate)

    def _lay_out(self, mine: Indices, total: int, step: int) -> Step:
        """Put this member's samples of a step where the child finds them. Who has none takes part with one that does
        not count."""
        inputs, labels = self._course.take(mine if len(mine) else np.zeros(1, np.int64))
        shapes = (inputs.shape, inputs.dtype.str), (labels.shape, labels.dtype.str)
        for place, array in zip(self._shared.batch(shapes), (inputs, labels), strict=True):
            np.copyto(place, array)
        part = len(mine) / total
        return Step(*shapes, scale=part * self._crew.size * self._scale, part=part, draw=self._course.draw(step))
