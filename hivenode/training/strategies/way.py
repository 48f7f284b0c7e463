"""What the training loop asks of a way to share its steps."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from hivenode.data.dataset import Dataset, Samples
from hivenode.data.partition import Batches, Indices, Mixed, Order, Own, Ranged
from hivenode.errors import HiveError, JobFailed
from hivenode.spec.split import member_range
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.model import Inputs, Labels, Vector
from hivenode.training.loss_scale import LEAST, LossScale
from hivenode.training.pooling import COMMON, Common, common, counts, scaled
from hivenode.training.pooling import load as load_common
from hivenode.training.strategies.balance import KEY, Cut, Line, load
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.wire import Wire


@dataclass(frozen=True, slots=True)
class Advance:
    """What came of some steps.

    Attributes:
        step: finished steps now.
        loss: mean over the samples, of all members.
        samples: of all members.
        compute_seconds: of this member, exchange excluded; `computed` samples were learned from in them.
    """

    step: int
    loss: float
    samples: int
    compute_seconds: float
    computed: int
    skipped: int = 0
    """Of these steps, those whose gradient did not fit float16, and that changed nothing."""
    loss_scale: float | None = None
    """What the loss is multiplied by from here on, in float16."""


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


class Pool(NamedTuple):
    """Attributes:
    data: this member's own, scaled as everybody's.
    test: samples held out, of all.
    """

    data: Dataset
    test: int


class Course:
    """Which samples are trained on in which step of a run, and by whom."""

    def __init__(self, data: Dataset, spec: TrainingSpec, group: Group) -> None:
        self._own = self._data = data
        self._spec, self._group = spec, group
        self._common: Common | None = None
        batches = Batches(len(data.train), spec.batch_size, spec.seed)
        self._order: Order = Ranged(batches) if data.ranges else Mixed(batches)
        self._line = group.planned
        """The order in which the members' ranges lie."""
        self._cut: Cut | None = None

    def pool(self, step: int) -> Pool | None:
        """Where each member has samples of its own: learn from each other how many, and scale them alike. One that is
        alone, and always was, trains as on any data. Raises as `Group.agree`, and InvalidInput where what the others go
        by is for other data."""
        group = self._group
        if not self._own.private or (len(group.planned) == 1 and self._common is None):
            return None
        train, test = counts(self._own, group, step)
        if self._common is None:
            self._common = common(self._own, group, self._spec.batch_size, train)
        self._data = scaled(self._own, self._common, sum(train.values()) + test)
        self._order = Own(train, self._common.steps, self._spec.seed)
        group.weights |= {node: float(max(count, 1)) for node, count in train.items()}
        return Pool(self._data, test)

    def welcome(self, step: int) -> Pool | None:
        """Newcomers were let in after so many steps: give them a share of the data, the same on all members. Returns
        what `pool` does."""
        joined, self._group.joined = self._group.joined, ()
        if not joined:
            return None
        if self._data.ranges:
            line = self._as_line().welcoming(joined, -(-step // self.steps_per_epoch))
            self._line = tuple(member for member, _ in line.shares)
            self._group.weights |= dict(line.shares)
            if line.coming is not None:
                self.recut(line.coming)
        return self.pool(step)

    @property
    def private(self) -> bool:
        """Whether each member has samples of its own, that stay there."""
        return self._own.private

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
        """Whether any member has any sample, so that what follows can be divided anew after any step."""
        return not self._data.ranges and not self._data.private

    @property
    def within_reach(self) -> bool:
        """Whether others can have the samples of a member that is lost."""
        return not self._data.private

    @property
    def ranged(self) -> bool:
        """Whether each of several members goes through a range of its own."""
        return self._data.ranges and len(self._group.planned) > 1

    def recut(self, cut: Cut) -> None:
        """Have ranges by these shares from their epoch on, of which no sample has been taken yet. What this member will
        need of the data is brought meanwhile."""
        self._cut = cut
        members, me = self._members(), self._group.me
        parts = [
            (part, member_range(len(part), members, cut.weights, me)) for part in (self._data.train, self._data.test)
        ]
        threading.Thread(target=_bring, args=(parts,), name="pieces", daemon=True).start()

    def turn(self, step: int) -> bool:
        """So many steps are finished: shares that were to come are in effect once their epoch has begun. Whether it was
        now."""
        if self._cut is None or step // self.steps_per_epoch < self._cut.epoch:
            return False
        self._group.weights |= self._cut.weights
        self._cut = None
        return True

    @property
    def pending(self) -> bool:
        """Whether other ranges are to come."""
        return self._cut is not None

    def scalars(self) -> dict[str, str]:
        """What says whose samples are whose, for checkpoints and newcomers."""
        if self._common is not None:
            return {COMMON: self._common.dump()}
        return {KEY: self._as_line().dump()} if self.ranged else {}

    def _as_line(self) -> Line:
        return Line(tuple((member, self._group.weights[member]) for member in self._members()), self._cut)

    def restore(self, scalars: Mapping[str, str]) -> None:
        """Go on from a checkpoint: by the same scale, and with the same ranges where the members are the same: what is
        left of the epoch is what nobody has had. Raises ValueError: it says neither."""
        self._restore_common(scalars)
        if KEY not in scalars or not self.ranged:
            return
        line = load(scalars[KEY])
        if {member for member, _ in line.shares} == set(self._group.planned):
            self._line, self._cut = tuple(member for member, _ in line.shares), line.coming
            self._group.weights = dict(line.shares)

    def inherit(self, scalars: Mapping[str, str]) -> None:
        """A newcomer takes over what the others go by. Raises ValueError: it is nothing of that kind."""
        self._restore_common(scalars)
        if KEY in scalars and self._data.ranges:
            line = load(scalars[KEY])
            self._line, self._cut = tuple(member for member, _ in line.shares), line.coming

    def _restore_common(self, scalars: Mapping[str, str]) -> None:
        if COMMON in scalars and self._data.private:
            self._common = load_common(scalars[COMMON])

    def _members(self) -> tuple[str, ...]:
        """In the order of their ranges."""
        if not self._data.ranges:
            return self._group.members
        return tuple(member for member in self._line if member in self._group.members)

    def part(self, step: int, stop: int, member: str | None = None) -> tuple[Indices, int]:
        """A member's (this one's) samples of the steps from `step` to before `stop`, and how many all members have."""
        group, members, found, total = self._group, self._members(), list[Indices](), 0
        for number in range(step, stop):
            cut = self._cut if self._cut is not None and number // self.steps_per_epoch >= self._cut.epoch else None
            weights = group.weights if cut is None else group.weights | cut.weights
            mine, count = self._order.part(number, members, weights, member or group.me)
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

    def check_scale(self, scale: LossScale, step: int) -> None:
        """Raises JobFailed where a gradient did not fit float16 however little the loss was multiplied by, in the step
        after `step` finished ones."""
        if scale.value >= LEAST:
            return
        epoch, batch = divmod(step, self.steps_per_epoch)
        raise JobFailed(
            f"Training diverged: in step {step + 1} (batch {batch + 1} of epoch {epoch + 1}) the gradient does not fit "
            "float16, as in all steps just before, though the loss is not multiplied by anything any more.",
            fix='Set training.precision = "fp32" (or "bf16", which has its range), or a lower training.learning_rate.',
        )


def _bring(parts: Sequence[tuple[Samples, range]]) -> None:
    for samples, places in parts:
        with contextlib.suppress(HiveError):  # asked for again, and told, when it is needed
            samples.bring(places)


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
    if spec.precision == "fp16":
        hint += ' Or set training.precision = "fp32": in fp16 no value may be beyond 65504.'
    raise JobFailed(
        f"Training diverged: the loss of step {step + 1} (batch {batch + 1} of epoch {epoch + 1}) is {loss}.",
        fix=hint,
    )
