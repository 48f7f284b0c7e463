"""What the training loop asks of a way to share its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hivenode.data.loading import Dataset
from hivenode.data.partition import Batches, Indices
from hivenode.errors import JobFailed
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Inputs, Labels, Vector


@dataclass(frozen=True, slots=True)
class Advance:
    """What came of some steps.

    Attributes:
        step: finished steps now.
        loss: mean over the samples, of all members.
        samples: of all members.
        compute_seconds: of this member, exchange excluded.
    """

    step: int
    loss: float
    samples: int
    compute_seconds: float


class Way(Protocol):
    """How members train together."""

    @property
    def weights(self) -> Vector:
        """As of the last finished step, the same on all members."""
        ...

    def advance(self, step: int, stop: int) -> Advance:
        """Train on from `step` finished steps, to `stop` at most and by one at least."""
        ...

    def slots(self) -> Mapping[str, Vector]:
        """What else a checkpoint has to hold: the state vectors themselves, by name."""
        ...

    def scalars(self) -> dict[str, str]: ...

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        """Take over saved state. Raises KeyError, ValueError: it is that of another way."""
        ...


class Samples:
    """The training part of the data in the order of a run's steps."""

    def __init__(self, data: Dataset, spec: TrainingSpec) -> None:
        self._data = data
        self._spec = spec
        self._batches = Batches(len(data.train_labels), spec.batch_size, spec.seed)
        self._order: tuple[int, Indices] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole run."""
        whole = self._spec.epochs * self.steps_per_epoch
        return whole if self._spec.max_steps is None else min(whole, self._spec.max_steps)

    def of(self, step: int, stop: int) -> Indices:
        """The global batches of the steps from `step` to before `stop`, one after the other."""
        found = []
        for number in range(step, stop):
            epoch = number // self.steps_per_epoch
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, self._batches.order(epoch)
            found.append(self._batches.of_step(self._order[1], number))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def take(self, indices: Indices) -> tuple[Inputs, Labels]:
        return self._data.train_inputs[indices], self._data.train_labels[indices]

    def check(self, loss: float, step: int, learning_rate: float) -> None:
        """Raises JobFailed for a loss that is not finite, in the step after `step` finished ones."""
        if math.isfinite(loss):
            return
        epoch, batch = divmod(step, self.steps_per_epoch)
        if step == 0:
            hint = "The very first batch gives it: look for values in the data that are huge or not numbers."
        elif self._spec.clip_norm is None:
            hint = f"Lower training.learning_rate (it was {learning_rate:g} there), or set training.clip_norm = 1.0."
        else:
            hint = f"Lower training.learning_rate (it was {learning_rate:g} there) or training.clip_norm."
        raise JobFailed(
            f"Training diverged: the loss of step {step + 1} (batch {batch + 1} of epoch {epoch + 1}) is {loss}.",
            fix=hint,
        )
