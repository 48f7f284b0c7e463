"""The training loop: synchronous minibatch training by one member of any number, each of which runs this same loop.

A member computes the gradient of its slice of every global batch; the mean over the members, weighted by samples, is
the gradient of the whole batch, and all apply the same update to the same weights. One member alone is the special
case in which its slice is everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hivenode.data.dataset import Dataset
from hivenode.data.partition import Batches, Mixed, Order, Ranged, member_range
from hivenode.errors import JobFailed
from hivenode.net.local import FromWorker, Peer, ViewChanged, WorkerProgress
from hivenode.spec.job import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.checkpoints import State
from hivenode.training.frameworks.model import Model, Vector
from hivenode.training.optimizers import Optimizer
from hivenode.training.strategies.collective import Collective, MembersChanged

PROGRESS_SECONDS = 0.5
EVALUATED_SAMPLES = 4096
"""Of the held-out part, in memory at once."""
SCORED = ("classification", "language")
"""Tasks with right and wrong answers."""


class Cancelled(Exception):
    """By order; the reason is its argument."""


@dataclass(frozen=True)
class Result:
    """The end of a run. `accuracy` and `test_loss` are None without a held-out part; `loss` is the mean over the last
    epoch's steps."""

    step: int
    loss: float
    accuracy: float | None
    test_loss: float | None


@dataclass(slots=True)
class _Meter:
    """What happened since the last report."""

    started: float
    steps: int = 0
    samples: int = 0
    compute_seconds: float = 0.0
    loss: float = 0.0


@dataclass(slots=True)
class Training:
    """One member's run.

    Args:
        me: this node's id.
        shares: the planned nodes and their weights.
        vector: (parameters + 1,) float32; the model's gradient is a view of all but the last element, which carries
            the loss, so that both are reduced at once.
        report: takes messages for the daemon.
        cancelled: the reason to stop, or None.
        save: called with the state of every step that is to be kept, on the lowest rank only.
        step: finished steps; above 0 when resuming.
    """

    me: str
    shares: tuple[Share, ...]
    spec: TrainingSpec
    model: Model
    optimizer: Optimizer
    vector: Vector
    data: Dataset
    collective: Collective
    report: Callable[[FromWorker], None]
    cancelled: Callable[[], str | None]
    save: Callable[[State], None]
    step: int = 0
    _order: Order = field(init=False)
    _weights: dict[str, float] = field(init=False)
    _members: tuple[str, ...] = field(init=False)
    _meter: _Meter = field(init=False)
    _epoch_loss: list[float] = field(init=False)

    def __post_init__(self) -> None:
        batches = Batches(len(self.data.train), self.spec.batch_size, self.spec.seed)
        self._order = Ranged(batches) if self.data.ranges else Mixed(batches)
        self._weights = {share.node: share.weight for share in self.shares}
        self._members = tuple(share.node for share in sorted(self.shares, key=lambda share: share.rank))
        self._epoch_loss = []

    @property
    def steps(self) -> int:
        """Of the whole run."""
        whole = self.spec.epochs * self._order.steps_per_epoch
        return whole if self.spec.max_steps is None else min(whole, self.spec.max_steps)

    @property
    def leads(self) -> bool:
        """Whether this is the lowest rank of the view."""
        return self._members[0] == self.me

    def state(self) -> State:
        """As of the last finished step; not a copy."""
        return State(
            self.step, self.model.weights, self.model.buffers, self.optimizer.slots(), self.optimizer.scalars()
        )

    def begin(self, peers: tuple[Peer, ...]) -> None:
        """Meet the other members. Raises as `run` does."""
        try:
            self.collective.connect(peers)
        except Exception:
            self._heed()
            raise

    def run(self) -> Result:
        """Train to the end.

        Raises:
            Cancelled: by order; the state is that of the last finished step.
            JobFailed: training diverged.
            HiveError: this member cannot go on.
        """
        per_epoch, steps = self._order.steps_per_epoch, self.steps
        self._look_around()
        self._meter = _Meter(time.monotonic())
        accuracy = test_loss = None
        loss = 0.0
        while self.step < steps:
            self._heed()
            if self.step % per_epoch == 0:
                self._epoch_loss.clear()
            self._train_step()
            loss = math.fsum(self._epoch_loss) / len(self._epoch_loss)
            epoch_ended = self.step % per_epoch == 0 or self.step == steps
            keeps = self.step % self.spec.checkpoint_every_steps == 0
            if epoch_ended or keeps:
                self._share_buffers()
            if epoch_ended:
                accuracy, test_loss = self._evaluate()
            if epoch_ended or time.monotonic() - self._meter.started >= PROGRESS_SECONDS:
                self._progress(accuracy)
            if self.leads and keeps and self.step < steps:
                self.save(self.state())
        if accuracy is None:  # resumed after the last step
            accuracy, test_loss = self._evaluate()
        try:
            self.collective.finish()
        except Exception:
            self._heed()
            raise
        return Result(self.step, loss, accuracy, test_loss)

    def _train_step(self) -> None:
        gradient = self.vector[:-1]
        size = 0

        def compute() -> int:
            nonlocal size
            mine, size = self._order.part(self.step, self._members, self._weights, self.me)
            started = time.monotonic()
            if len(mine):
                self.vector[-1] = self.model.backward(*self.data.train.take(mine), draw=self._draw())
            else:
                self.vector.fill(0.0)
            self._meter.compute_seconds += time.monotonic() - started
            return len(mine)

        self._agree(self.vector, compute)
        loss = float(self.vector[-1])
        if not math.isfinite(loss):
            raise JobFailed(
                f"Training diverged: the loss of step {self.step + 1} is {loss}.",
                fix="Lower training.learning_rate.",
            )
        self.optimizer.step(self.model.weights, gradient)
        self.step += 1
        self._epoch_loss.append(loss)
        self._meter.steps += 1
        self._meter.samples += size
        self._meter.loss += loss

    def _evaluate(self) -> tuple[float | None, float | None]:
        """Accuracy (where there are right answers) and mean loss on the held-out part. The members' counts are
        combined, never compared: machines that round differently still agree on the result."""
        total, info = len(self.data.test), self.data.info
        if total == 0:
            return None, None
        vector = np.zeros(2, np.float32)

        def compute() -> int:
            part = self._part(total)
            vector.fill(0.0)
            for start in range(part.start, part.stop, EVALUATED_SAMPLES):
                places = np.arange(start, min(start + EVALUATED_SAMPLES, part.stop))
                vector[:] += self.model.evaluate(*self.data.test.take(places))
            vector[:] /= max(len(part), 1)
            return len(part)

        self._agree(vector, compute)
        answers = total * (info.features if info.task == "language" else 1)
        accuracy = round(float(vector[0]) * total) / answers if info.task in SCORED else None
        return accuracy, float(vector[1])

    def _share_buffers(self) -> None:
        """Replace running statistics by their mean over the members, so that all evaluate and keep the same model."""
        buffers = self.model.buffers
        if not buffers.size:
            return
        shared = buffers.copy()

        def compute() -> int:
            shared[:] = buffers
            return 1

        self._agree(shared, compute)
        buffers[:] = shared

    def _draw(self) -> int:
        """Seed of what a model draws in this step: a function of the job, the step and the member."""
        return (self.spec.seed * 1_000_003 + self.step * 4099 + self._members.index(self.me)) % 2**63

    def _agree(self, vector: Vector, compute: Callable[[], int]) -> None:
        """Have `compute` fill `vector` and return its weight, and replace it by the mean; again while members go."""
        while True:
            weight = compute()
            again = False
            try:
                self.collective.mean(vector, float(weight))
            except MembersChanged:
                again = True
            except Exception:
                self._heed()
                raise
            self._look_around()
            if not again:
                return

    def _heed(self) -> None:
        """A cancel also closes the collective, so it is the cause of whatever goes wrong after it."""
        if (reason := self.cancelled()) is not None:
            raise Cancelled(reason) from None

    def _look_around(self) -> None:
        members = self.collective.members
        lost = tuple(node for node in self._members if node not in members)
        self._members = members
        if lost:
            self.report(ViewChanged(step=self.step, members=members, lost=lost))

    def _part(self, total: int) -> range:
        return member_range(total, self._members, self._weights, self.me)

    def _progress(self, accuracy: float | None) -> None:
        now, meter = time.monotonic(), self._meter
        self.report(
            WorkerProgress(
                step=self.step,
                steps=self.steps,
                epoch=-(-self.step // self._order.steps_per_epoch),
                epochs=self.spec.epochs,
                loss=meter.loss / max(meter.steps, 1),
                accuracy=accuracy,
                samples_per_second=meter.samples / max(now - meter.started, 1e-9),
                step_seconds=meter.compute_seconds / max(meter.steps, 1),
                members=self._members,
            )
        )
        self._meter = _Meter(now)
