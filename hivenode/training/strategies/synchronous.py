"""What the ways by which all members take every step together have in common: an optimizer in the same state on all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Vector
from hivenode.training.loss_scale import LossScale
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import clip
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire


class Synchronous:
    """Of a `Way`, all but `advance`."""

    def __init__(
        self,
        spec: TrainingSpec,
        group: Group,
        wire: Wire,
        course: Course,
        optimizer: Optimizer,
        loss_scale: LossScale | None,
    ) -> None:
        self._spec, self._group, self._wire, self._course = spec, group, wire, course
        self._optimizer, self._loss_scale = optimizer, loss_scale

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
        own = self._loss_scale.scalars() if self._loss_scale is not None else {}
        return {**self._optimizer.scalars(), **own}

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        self._optimizer.restore(slots, scalars)
        if self._loss_scale is not None:
            self._loss_scale.restore(scalars)

    @property
    def _scale(self) -> float:
        """What the loss is multiplied by."""
        return self._loss_scale.value if self._loss_scale is not None else 1.0

    def _finish(self, gradient: Vector, fits: bool, advance: Advance, rate: float) -> Advance:
        """Change the weights by everybody's gradient, which may be clipped in place; or not, where it did not fit
        float16 (`fits`, the same on all members).

        Args:
            advance: what came of the step so far.

        Raises:
            JobFailed: the loss is not finite, or the gradient never is.
        """
        step, loss_scale = advance.step - 1, self._loss_scale
        self._course.check(advance.loss, step, rate)
        if loss_scale is not None:
            advance = replace(advance, skipped=int(not loss_scale.judge(fits)), loss_scale=loss_scale.value)
            self._course.check_scale(loss_scale, step)
        if advance.skipped:
            return advance
        if self._spec.clip_norm is not None:
            clip(gradient, self._spec.clip_norm)
        self._optimizer.step(self.weights, gradient, rate)
        return advance
