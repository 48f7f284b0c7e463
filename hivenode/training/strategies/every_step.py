"""The gradient of every batch, averaged before the next one.

A member computes the gradient of its share of every global batch; the mean over the members, weighted by samples, is
the gradient of the whole batch, and all apply the same update to the same weights. One member alone is the special
case in which its share is everything. With accumulation a share is computed in micro-batches, and shares follow the
speed that members turn out to have.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from hivenode.data.partition import Indices
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Model, Vector
from hivenode.training.loss_scale import LossScale, finite
from hivenode.training.optimizers import Optimizer
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.synchronous import Synchronous
from hivenode.training.strategies.way import Advance, Course
from hivenode.training.strategies.wire import Wire

SPEEDS_EVERY = 10
"""Steps after which members tell each other how fast they are."""


class EveryStep(Synchronous):
    """`Way` of synchronous steps.

    Args:
        vector: (parameters + 1,) float32; the model's gradient is a view of all but the last element, which carries
            the loss, so that both are reduced at once where the wire is exact.
        attends: members without samples in a batch are there for the others all the same.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        group: Group,
        wire: Wire,
        course: Course,
        model: Model,
        optimizer: Optimizer,
        vector: Vector,
        loss_scale: LossScale | None = None,
        *,
        attends: bool = False,
    ) -> None:
        super().__init__(spec, group, wire, course, optimizer, loss_scale)
        self._model, self._attends = model, attends
        self._vector, self._gradient = vector, vector[:-1]
        self._sum = np.zeros(len(self._gradient) if spec.micro_batch_size is not None else 0, np.float32)
        self._computed = [0, 0.0]
        """Samples and seconds since speeds were last told."""

    @property
    def weights(self) -> Vector:
        return self._model.weights

    def advance(self, step: int, stop: int) -> Advance:
        rate = learning_rate(self._spec, step, self._course.steps)
        taken, computed, total = 0.0, 0, 0
        weight = 0.0

        def compute() -> float:
            nonlocal taken, computed, total, weight
            mine, total = self._course.part(step, step + 1)
            began = time.monotonic() - self._group.gathering
            self._vector[-1] = self._backward(mine, step, rate)
            seconds = time.monotonic() - self._group.gathering - began
            taken, computed = taken + seconds, computed + len(mine)
            self._computed = [self._computed[0] + len(mine), self._computed[1] + seconds]
            weight = float(len(mine))
            return weight

        fits = True
        if self._loss_scale is not None:
            fits = self._agree_where_it_fits(compute, step)
        elif self._wire.exact:
            self._wire.agree(self._vector, compute, step)
        else:
            self._wire.agree(self._gradient, compute, step)
            self._agree_on_loss(weight, step)
        done = Advance(step + 1, float(self._vector[-1]), total, taken, computed)
        done = self._finish(self._gradient, fits, done, rate)
        if self._spec.sync == "accumulate" and self._course.movable and step % SPEEDS_EVERY == 0:
            self._group.share_speeds(int(self._computed[0]), float(self._computed[1]), step + 1)
            self._computed = [0, 0.0]
        return done

    def _backward(self, mine: Indices, step: int, rate: float) -> float:
        """Fill the gradient with that of these samples; returns their mean loss."""
        if not len(mine):
            if self._attends:
                self._model.attend(*self._course.take(mine))
            self._gradient.fill(0.0)
            return 0.0
        width = self._spec.micro_batch_size or len(mine)
        if width >= len(mine):
            loss = self._model.backward(*self._course.take(mine), self._course.draw(step), self._scale)
            self._course.check(loss, step, rate)
            return loss
        self._sum.fill(0.0)
        total = 0.0
        for turn, start in enumerate(range(0, len(mine), width)):
            micro = mine[start : start + width]
            loss = self._model.backward(*self._course.take(micro), self._course.draw(step, turn), self._scale)
            self._course.check(loss, step, rate)
            total += loss * len(micro)
            self._gradient *= np.float32(len(micro) / len(mine))
            with np.errstate(invalid="ignore"):  # what does not fit float16 is infinite either way
                self._sum += self._gradient
        self._gradient[:] = self._sum
        return total / len(mine)

    def _agree_where_it_fits(self, compute: Callable[[], float], step: int) -> bool:
        """In float16: first whether every member's gradient fits, and on the loss; the gradient only if so. What does
        not fit is sent to nobody, so a lossy codec owes nothing for it."""
        told = np.zeros(2, np.float32)
        weight, members = 0.0, self._group.members

        def tell() -> float:
            nonlocal weight, members
            members = self._group.members
            weight = compute()
            fits = finite(self._gradient)
            if not fits:
                self._gradient.fill(0.0)
            told[:] = self._vector[-1], not fits
            return weight

        self._group.agree(told, tell, step)
        self._vector[-1] = told[0]
        if told[1] > 0:
            return False
        computed = True

        def give() -> float:
            nonlocal computed
            if not computed or members != self._group.members:  # other members than those who told
                loss = self._vector[-1]
                tell()
                self._vector[-1] = loss
            computed = False
            return weight

        self._wire.agree(self._gradient, give, step)
        return True

    def _agree_on_loss(self, weight: float, step: int) -> None:
        own, loss = self._vector[-1], np.zeros(1, np.float32)

        def tell() -> float:
            loss[0] = own
            return weight

        self._group.agree(loss, tell, step)
        self._vector[-1] = loss[0]
