"""A model that trains itself a batch at a time, whatever its framework: what local steps are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Inputs, Labels, Model, Vector
from hivenode.training.loss_scale import LossScale, finite
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import clip


class Learner(Protocol):
    """Its weights are a flat vector that is worth averaging with those of another that has seen other samples."""

    @property
    def weights(self) -> Vector:
        """(parameters,); the vector itself, which `adopt` writes to and `learn` changes."""
        ...

    def learn(self, inputs: Inputs, labels: Labels, learning_rate: float, draw: int) -> float:
        """One step on these samples, at least one; returns their mean loss, before or after it.

        Args:
            draw: seed of what the model draws itself.
        """
        ...

    @property
    def loss_scale(self) -> LossScale | None:
        """What the loss is multiplied by, in float16. A step whose gradient does not fit changes nothing but it."""
        ...

    def adopt(self, weights: Vector) -> None:
        """Go on from these weights."""
        ...

    def slots(self) -> Mapping[str, Vector]: ...

    def scalars(self) -> dict[str, str]: ...

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None: ...


class GradientLearner:
    """`Learner` of a model with a gradient.

    Args:
        gradient: the vector that `model.backward` fills.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        model: Model,
        optimizer: Optimizer,
        gradient: Vector,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._spec, self._model, self._optimizer, self._gradient = spec, model, optimizer, gradient
        self._loss_scale = loss_scale

    @property
    def weights(self) -> Vector:
        return self._model.weights

    def learn(self, inputs: Inputs, labels: Labels, learning_rate: float, draw: int) -> float:
        scale = self._loss_scale
        loss = self._model.backward(inputs, labels, draw, scale.value if scale is not None else 1.0)
        if scale is not None and not scale.judge(finite(self._gradient)):
            return loss
        if self._spec.clip_norm is not None:
            clip(self._gradient, self._spec.clip_norm)
        self._optimizer.step(self._model.weights, self._gradient, learning_rate)
        return loss

    @property
    def loss_scale(self) -> LossScale | None:
        return self._loss_scale

    def adopt(self, weights: Vector) -> None:
        self._model.weights[:] = weights

    def slots(self) -> Mapping[str, Vector]:
        return self._optimizer.slots()

    def scalars(self) -> dict[str, str]:
        own = self._loss_scale.scalars() if self._loss_scale is not None else {}
        return {**self._optimizer.scalars(), **own}

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        self._optimizer.restore(slots, scalars)
        if self._loss_scale is not None:
            self._loss_scale.restore(scalars)
