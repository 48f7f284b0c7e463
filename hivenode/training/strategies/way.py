"""What the training loop asks of a way to share its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hivenode.data.dataset import Dataset
from hivenode.data.partition import Batches, Indices, Mixed, Order, Own, Ranged
from hivenode.errors import JobFailed
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Inputs, Labels, Vector
from hivenode.training.pooling import Pool, pooled
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.wire import Wire


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

    @property
    def wire(self) -> Wire:
        """By which its large vectors travel."""
        ...

    def shared(self) -> tuple[Mapping[str, Vector], dict[str, str]]:
        """Of `slots` and `scalars`, what is the same on all members."""
        ...

    def inherit(self, weights: Vector, slots: Mapping[str, Vector], scalars: dict[str, str]) -> None:
        """Take over, from the other members, the weights and what they share. Raises KeyError, ValueError."""
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


class Course:
    """Which samples are trained on in which step of a run, and by whom."""

    def __init__(self, data: Dataset, spec: TrainingSpec, group: Group) -> None:
        self._data, self._spec, self._group = data, spec, group
        self._pool: Pool | None = None
        batches = Batches(len(data.train), spec.batch_size, spec.seed)
        self._order: Order = Ranged(batches) if data.ranges else Mixed(batches)

    def pool(self) -> Pool | None:
        """Where each member has samples of its own and there are several: learn from each other how many, and scale
        them alike. Raises as `Group.agree`."""
        if self._data.private and len(self._group.planned) > 1:
            self._pool = pooled(self._data, self._group)
            self._data = self._pool.data
            self._order = Own(self._pool.train, self._spec.batch_size, self._spec.seed)
            self._group.weights = {node: float(max(count, 1)) for node, count in self._pool.train.items()}
        return self._pool

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    @property
    def steps(self) -> int:
        """Of the whole run."""
        whole = self._spec.epochs * self.steps_per_epoch
        return whole if self._spec.max_steps is None else min(whole, self._spec.max_steps)

    @property
    def movable(self) -> bool:
        """Whether any member could train on any sample."""
        return not self._data.ranges and not self._data.private

    def part(self, step: int, stop: int, member: str | None = None) -> tuple[Indices, int]:
        """A member's (this one's) samples of the steps from `step` to before `stop`, and how many all members have."""
        group, found, total = self._group, list[Indices](), 0
        for number in range(step, stop):
            mine, count = self._order.part(number, group.members, group.weights, member or group.me)
            found.append(mine)
            total += count
        return found[0] if len(found) == 1 else np.concatenate(found), total

    def take(self, places: Indices) -> tuple[Inputs, Labels]:
        """Inputs and labels of samples."""
        return self._data.train.take(places)

    def draw(self, step: int, turn: int = 0) -> int:
        """Seed of what a model draws by itself in a step: a function of the job, the step and the member."""
        rank = self._group.members.index(self._group.me)
        return (self._spec.seed * 1_000_003 + step * 4099 + turn * 524_287 + rank) % 2**63

    def check(self, loss: float, step: int, learning_rate: float) -> None:
        """See `check_loss`."""
        check_loss(self._spec, loss, step, self.steps_per_epoch, learning_rate)


def check_loss(spec: TrainingSpec, loss: float, step: int, steps_per_epoch: int, learning_rate: float) -> None:
    """Raises JobFailed for a loss that is not finite, in the step after `step` finished ones."""
    if math.isfinite(loss):
        return
    epoch, batch = divmod(step, steps_per_epoch)
    if step == 0:
        hint = "The very first batch gives it: look for values in the data that are huge or not numbers."
    elif spec.clip_norm is None:
        hint = f"Lower training.learning_rate (it was {learning_rate:g} there), or set training.clip_norm = 1.0."
    else:
        hint = f"Lower training.learning_rate (it was {learning_rate:g} there) or training.clip_norm."
    raise JobFailed(
        f"Training diverged: the loss of step {step + 1} (batch {batch + 1} of epoch {epoch + 1}) is {loss}.",
        fix=hint,
    )
