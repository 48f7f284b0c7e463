"""What the ways by which all members take every step together have in common: an optimizer in the same state on all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Vector
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import clip
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Course
from hivenode.training.strategies.wire import Wire


class Synchronous:
    """Of a `Way`, all but `advance`."""

    def __init__(self, spec: TrainingSpec, group: Group, wire: Wire, course: Course, optimizer: Optimizer) -> None:
        self._spec, self._group, self._wire, self._course = spec, group, wire, course
        self._optimizer = optimizer

    @property
    @abstractmethod
    def weights(self) -> Vector:
        """The array that is trained."""

    @property
    def wire(self) -> Wire:
        return self._wire

    def shared(self) -> tuple[Mapping[str, Vector], dict[str, str]]:
        return self.slots(), self.scalars()

    def inherit(self, weights: Vector, slots: Mapping[str, Vector], scalars: dict[str, str]) -> None:
        self.weights[:] = weights
        self.restore(slots, scalars)

    def slots(self) -> Mapping[str, Vector]:
        return self._optimizer.slots()

    def scalars(self) -> dict[str, str]:
        return self._optimizer.scalars()

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        self._optimizer.restore(slots, scalars)

    def _apply(self, gradient: Vector, loss: float, step: int, rate: float) -> None:
        """Change the weights by everybody's gradient, which may be clipped in place. Raises JobFailed for a loss that
        is not finite."""
        self._course.check(loss, step, rate)
        if self._spec.clip_norm is not None:
            clip(gradient, self._spec.clip_norm)
        self._optimizer.step(self.weights, gradient, rate)
