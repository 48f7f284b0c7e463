"""The gradient of every batch, averaged before the next one.

A member computes the gradient of its share of every global batch; the mean over the members, weighted by samples, is
the gradient of the whole batch, and all apply the same update to the same weights. One member alone is the special
case in which its share is everything. With accumulation a share is computed in micro-batches, and shares follow the
speed that members turn out to have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Model, Vector
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import clip, learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Advance, Samples
from hivenode.training.strategies.wire import Wire


class EveryStep:
    """`Way` of synchronous steps.

    Args:
        vector: (parameters + notes,) float32; the model's gradient is a view of its beginning. The notes behind it,
            the loss and the members' speeds, are reduced along with it where the wire is exact, else by themselves.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        group: Group,
        wire: Wire,
        samples: Samples,
        model: Model,
        optimizer: Optimizer,
        vector: Vector,
    ) -> None:
        self._spec, self._group, self._wire, self._samples = spec, group, wire, samples
        self._model, self._optimizer = model, optimizer
        self._vector = vector
        size = len(model.weights)
        self._gradient, self._notes = vector[:size], vector[size:]
        self._adaptive = spec.sync == "accumulate"
        self._sum = np.zeros(size if spec.micro_batch_size is not None else 0, np.float32)

    @property
    def weights(self) -> Vector:
        return self._model.weights

    def advance(self, step: int, stop: int) -> Advance:
        batch = self._samples.of(step, step + 1)
        rate = learning_rate(self._spec, step, self._samples.steps)
        taken = 0.0
        counts: list[int] = []

        def compute() -> float:
            nonlocal taken
            counts[:] = [len(self._group.part(len(batch), member)) for member in self._group.members]
            part = self._group.part(len(batch))
            began = time.monotonic()
            self._note(self._backward(batch[part.start : part.stop], step, rate), len(part), began)
            taken += time.monotonic() - began
            return float(len(part))

        if self._wire.exact:
            self._wire.agree(self._vector, compute, step)
        else:
            self._wire.agree(self._gradient, compute, step)
            self._agree_on_notes(float(len(self._group.part(len(batch)))), step)
        loss = float(self._notes[0])
        self._samples.check(loss, step, rate)
        if self._adaptive and len(counts) == len(self._group.members):
            self._group.read_speeds(self._notes[1:], counts)
        if self._spec.clip_norm is not None:
            clip(self._gradient, self._spec.clip_norm)
        self._optimizer.step(self._model.weights, self._gradient, rate)
        return Advance(step + 1, loss, len(batch), taken)

    def _backward(self, mine: Indices, step: int, rate: float) -> float:
        """Fill the gradient with that of these samples; returns their mean loss."""
        if not len(mine):
            self._vector.fill(0.0)
            return 0.0
        width = self._spec.micro_batch_size or len(mine)
        if width >= len(mine):
            loss = self._model.backward(*self._samples.take(mine))
            self._samples.check(loss, step, rate)
            return loss
        self._sum.fill(0.0)
        total = 0.0
        for start in range(0, len(mine), width):
            micro = mine[start : start + width]
            loss = self._model.backward(*self._samples.take(micro))
            self._samples.check(loss, step, rate)
            total += loss * len(micro)
            self._gradient *= np.float32(len(micro) / len(mine))
            self._sum += self._gradient
        self._gradient[:] = self._sum
        return total / len(mine)

    def _note(self, loss: float, samples: int, began: float) -> None:
        self._notes[0] = loss
        if self._adaptive:
            self._group.write_speed(self._notes[1:], samples, time.monotonic() - began)

    def _agree_on_notes(self, weight: float, step: int) -> None:
        own = self._notes.copy()

        def again() -> float:
            self._notes[:] = own
            return weight

        self._group.agree(self._notes, again, step)

    def slots(self) -> Mapping[str, Vector]:
        return self._optimizer.slots()

    def scalars(self) -> dict[str, str]:
        return self._optimizer.scalars()

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        self._optimizer.restore(slots, scalars)
