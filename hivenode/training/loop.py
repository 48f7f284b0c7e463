"""The training loop, the same on one member or many and whatever the way they share the work: steps, then at each
epoch's end a look at the held-out part, progress for the daemon, states to keep, and the decision to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hivenode.data.dataset import Dataset
from hivenode.errors import Corrupted
from hivenode.net.local import FromWorker, Log, Peer, WorkerProgress
from hivenode.spec.training import TrainingSpec
from hivenode.training.checkpoints import State
from hivenode.training.exchange.inheritance import State as Arrays
from hivenode.training.frameworks.model import Inputs, Labels, Vector
from hivenode.training.handover import HEADER_ELEMENTS, Header, pack, unpack
from hivenode.training.patience import Patience
from hivenode.training.pooling import COMMON
from hivenode.training.schedules import learning_rate
from hivenode.training.strategies.balance import KEY, LEAST_STEPS, LOOKS_PER_EPOCH, Cut, Scales
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Advance, Course, Pool, Way

PROGRESS_SECONDS = 0.5
CHECKPOINT_SECONDS = 1.0
"""Between two checkpoints at least: each is written, hashed, copied to another node and told to all, and where steps
are short more of them would save less work than they cost."""
LOGGED_SECONDS = 10.0
"""Between two lines on the progress of an epoch in the job's log."""
GATE_STEPS = 10
"""Steps after which newcomers may come in (with running statistics, which differ between members, whenever these have
been averaged)."""
EVALUATED_SAMPLES = 4096
"""Of the held-out part, in memory at once."""
SCORED = ("classification", "language", "text_to_text")
"""Tasks with right and wrong answers."""


class Judged(Protocol):
    """What the loop needs of a model, beside the way it trains."""

    @property
    def buffers(self) -> Vector:
        """See `Model.buffers`."""
        ...

    def evaluate(self, inputs: Inputs, labels: Labels) -> tuple[int, float]:
        """See `Model.evaluate`."""
        ...


@dataclass(frozen=True)
class Result:
    """The end of a run. `accuracy` and `test_loss` are None without a held-out part; `loss` is the mean over the last
    epoch's samples.

    Attributes:
        epochs: passes over the data, the last perhaps not whole.
        samples_per_second: all members together; `tokens_per_second` likewise, of text.
        convergence: by how much of itself the loss fell in the last epoch; None in the first.
    """

    step: int
    loss: float
    accuracy: float | None
    test_loss: float | None
    epochs: float
    samples_per_second: float
    convergence: float | None
    tokens_per_second: float | None = None
    skipped_steps: int | None = None
    """In float16, those whose gradient did not fit."""

    def metrics(self) -> dict[str, float]:
        """By name, those that there are."""
        found = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "test_loss": self.test_loss,
            "epochs": self.epochs,
            "samples_per_second": self.samples_per_second,
            "tokens_per_second": self.tokens_per_second,
            "convergence": self.convergence,
            "skipped_steps": self.skipped_steps,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(slots=True)
class _Meter:
    """What happened since some moment."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    samples: int = 0
    skipped: int = 0
    compute_seconds: float = 0.0
    computed: int = 0
    loss: float = 0.0

    def add(self, advance: Advance, steps: int) -> None:
        self.steps += steps
        self.samples += advance.samples
        self.skipped += advance.skipped
        self.compute_seconds += advance.compute_seconds
        self.computed += advance.computed
        self.loss += advance.loss * advance.samples

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.samples, 1)

    @property
    def samples_per_second(self) -> float:
        return self.samples / max(time.monotonic() - self.started, 1e-9)


@dataclass(slots=True)
class Training:
    """One member's run.

    Args:
        report: takes messages for the daemon.
        save: called with the state of every step that is to be kept, on the lowest rank only.
        owe: called with such a step, and with what this member's codec has still to say then, on every member.
        step: finished steps; above 0 when resuming.
    """

    spec: TrainingSpec
    group: Group
    way: Way
    model: Judged
    course: Course
    data: Dataset
    collective: Collective
    report: Callable[[FromWorker], None]
    save: Callable[[State], None]
    owe: Callable[[int, Mapping[str, Vector]], None] = lambda step, debts: None
    step: int = 0
    _meter: _Meter = field(init=False)
    _epoch: _Meter = field(init=False, default_factory=_Meter)
    _previous: float | None = field(init=False, default=None)
    _convergence: float | None = field(init=False, default=None)
    _patience: Patience = field(init=False)
    _held_out: int | None = field(init=False, default=None)
    """Samples of all members, where each has its own."""
    _logged: float = field(init=False, default_factory=time.monotonic)
    _kept: float = field(init=False, default=-math.inf)
    _pace: _Meter = field(init=False, default_factory=_Meter)
    _scales: Scales = field(init=False, default_factory=Scales)

    def __post_init__(self) -> None:
        self._patience = Patience(self.spec)

    @property
    def leads(self) -> bool:
        """Whether this is the lowest rank of the view."""
        return self.group.leads

    def state(self) -> State:
        """As of the last finished step; not a copy."""
        scalars = {**self.way.scalars(), **self._patience.scalars(), **self.course.scalars()}
        return State(self.step, self.way.weights, self.model.buffers, self.way.slots(), scalars)

    def resume(self, state: State) -> None:
        """Go on from there; weights and buffers are in their places already.

        Raises:
            Corrupted: it is the state of another way.
        """
        try:
            self._patience.restore(state.scalars)
            self.course.restore(state.scalars)
            own = {KEY, COMMON, *self._patience.scalars()}
            self.way.restore(state.slots, {name: value for name, value in state.scalars.items() if name not in own})
        except (KeyError, ValueError, OverflowError) as error:
            raise Corrupted(
                f"The checkpoint of step {state.step} is incomplete: {error}.", fix="Use another copy of it."
            ) from error
        self.step = state.step

    def begin(self, peers: tuple[Peer, ...]) -> None:
        """Meet the other members. Raises as `run` does."""
        try:
            self.collective.connect(peers)
        except Exception:
            self.group.heed()
            raise
        self.group.look_around(self.step)
        self._take_stock(self.course.pool(self.step))

    def _take_stock(self, pool: Pool | None) -> None:
        if pool is not None:
            self.data, self._held_out = pool

    def join(self, peers: tuple[Peer, ...]) -> None:
        """Meet members that train already, and take over their state. Raises as `run` does."""
        slots, _ = self.way.shared()
        size = self.way.weights.size + self.model.buffers.size + sum(slot.size for slot in slots.values())
        try:
            taken = unpack(self.collective.join(peers, size + HEADER_ELEMENTS))
        except Exception:
            self.group.heed()
            raise
        header = taken.header
        self.group.inherit(header.planned, header.members, header.shares)
        try:
            self.course.inherit(header.course)
            self.way.wire.inherit(header.codec)
            self.way.inherit(taken.weights, taken.slots, header.scalars)
            self.model.buffers[:] = taken.buffers
            self._patience.restore(header.patience)
        except (KeyError, ValueError, OverflowError) as error:
            raise Corrupted(
                f"The state of the other workers cannot be taken over: {error}.",
                fix="Run the same version on all nodes.",
            ) from error
        self._epoch = _Meter(samples=header.samples, loss=header.loss)
        self.step = header.step

    def _gate(self) -> None:
        """Let newcomers in. Members have everything in common here but the state of what they learn by themselves."""
        if self.way.wire.settled:
            self.group.gate(self._hand_over, self.step)
            self._take_stock(self.course.welcome(self.step))

    def _hand_over(self) -> Arrays:
        slots, scalars = self.way.shared()
        header = Header(
            step=self.step,
            planned=self.group.planned,
            members=self.group.members,
            shares=self.group.weights,
            codec=self.way.wire.codec,
            scalars=scalars,
            patience=self._patience.scalars(),
            course=self.course.scalars(),
            loss=self._epoch.loss,
            samples=self._epoch.samples,
            weights=0,
            buffers=0,
            slots=(),
        )
        return pack(header, self.way.weights, self.model.buffers, slots)

    def run(self) -> Result:
        """Train to the end.

        Raises:
            Cancelled: by order; the state is that of the last finished step.
            JobFailed: training diverged.
            HiveError: this member cannot go on.
        """
        self.group.look_around(self.step)
        self._gate()
        steps, per_epoch = self.course.steps, self.course.steps_per_epoch
        self._meter, whole = _Meter(), _Meter()
        found: tuple[float | None, float | None] | None = None
        loss, going = 0.0, self._patience.going
        while self.step < steps and going:
            self.group.heed()
            before = self.step
            advance = self.way.advance(before, steps)
            self.step = advance.step
            for meter in (self._meter, self._epoch, whole):
                meter.add(advance, self.step - before)
            if advance.skipped:
                self._tell_skipped(advance)
            loss = self._epoch.mean_loss
            ended = self.step // per_epoch > before // per_epoch or self.step == steps
            if self.course.turn(self.step):
                self._pace = _Meter()
            every = self.spec.checkpoint_every_steps
            keeps = self.step // every > before // every and self.step < steps
            if ended or keeps:
                self._share_buffers()
            if ended:
                found = self._evaluate()
                going = self._improves(found[1])
                self._tell_epoch(loss, *found)
                self._epoch = _Meter()
            if ended or time.monotonic() - self._meter.started >= PROGRESS_SECONDS:
                self._progress(*(found if ended and found is not None else (None, None)))
            if keeps and going:
                self._keep()
            shared = ended or keeps if self.model.buffers.size else self.step // GATE_STEPS > before // GATE_STEPS
            if shared and going and self.step < steps:
                self._gate()
            self._rebalance(advance, self.step - before)
        if found is None:  # resumed after the last step
            found = self._evaluate()
        self.group.finish()
        speed = whole.samples_per_second
        skipped = whole.skipped if self.spec.precision == "fp16" else None
        return Result(
            self.step, loss, *found, self.step / per_epoch, speed, self._convergence, self._tokens(speed), skipped
        )

    def _tell_skipped(self, advance: Advance) -> None:
        """Which all members did alike, unless each makes steps of its own."""
        if not self.leads and self.spec.sync != "local":
            return
        some = "Step" if advance.skipped == 1 else f"{advance.skipped} of the steps up to"
        event = (
            f"{some} {advance.step} changed nothing: the gradient did not fit float16. "
            f"From here on the loss is multiplied by {advance.loss_scale:g}."
        )
        self.report(Log(level="info", event=event, fields={"step": advance.step}))

    def _keep(self) -> None:
        """Save the state, unless that was done a moment ago; never without, or apart from, what members still owe."""
        owed, moment = self.way.wire.debts(), time.monotonic()
        self.owe(self.step, owed)
        if self.leads and (owed or moment - self._kept >= CHECKPOINT_SECONDS):
            self._kept = moment
            self.save(self.state())

    def _rebalance(self, advance: Advance, steps: int) -> None:
        """Where members have ranges of their own, look now and then whether these still fit their speeds."""
        if not self.course.ranged or self.course.pending:
            return
        self._pace.add(advance, steps)
        every = max(LEAST_STEPS, -(-self.course.steps_per_epoch // LOOKS_PER_EPOCH))
        if self._pace.steps < every or self.step >= self.course.steps:
            return
        pace, self._pace = self._pace, _Meter()
        paces = self.group.paces(pace.computed, pace.compute_seconds, self.step)
        weights, gain = self._scales.look(self.group.weights, paces, pace.steps)
        if not weights:
            return
        epoch, before, after = -(-self.step // self.course.steps_per_epoch), self.group.fraction, weights[self.group.me]
        self.course.recut(Cut(epoch, weights, gain))
        event = (
            f"From epoch {epoch + 1} on this node trains on {after:.1%} of the data, before on {before:.1%}: "
            f"the slowest took {gain:.1f} times as long as it will."
        )
        self.report(Log(level="info", event=event, fields={"step": self.step}))

    def _tokens(self, samples: float) -> float | None:
        """In so many samples, of text."""
        return samples * self.data.info.features if self.data.info.vocabulary else None

    def _evaluate(self) -> tuple[float | None, float | None]:
        """Accuracy (where there are right answers) and mean loss on the held-out part. The members' counts are
        combined, never compared: machines that round differently still agree on the result."""
        info, own = self.data.info, self._held_out is not None
        total = self._held_out if self._held_out is not None else len(self.data.test)
        if total == 0:
            return None, None
        vector = np.zeros(2, np.float32)

        def compute() -> float:
            part = range(len(self.data.test)) if own else self.group.part(total)
            vector.fill(0.0)
            for start in range(part.start, part.stop, EVALUATED_SAMPLES):
                places = np.arange(start, min(start + EVALUATED_SAMPLES, part.stop))
                vector[:] += self.model.evaluate(*self.data.test.take(places))
            vector[:] /= max(len(part), 1)
            return float(len(part))

        self.group.agree(vector, compute, self.step)
        answers = total * (info.features if info.task == "language" else 1)
        accuracy = round(float(vector[0]) * total) / answers if info.task in SCORED else None
        return accuracy, float(vector[1])

    def _share_buffers(self) -> None:
        """Replace running statistics by their mean over the members, so that all evaluate and keep the same model."""
        buffers = self.model.buffers
        if not buffers.size:
            return
        shared = buffers.copy()

        def compute() -> float:
            shared[:] = buffers
            return 1.0

        self.group.agree(shared, compute, self.step)
        buffers[:] = shared

    def _improves(self, test_loss: float | None) -> bool:
        """Whether it is worth going on: the same on all members, as the loss is."""
        self._patience.judge(test_loss)
        if not self._patience.going and self.leads:
            self.report(Log(level="info", event=str(self._patience), fields={"step": self.step}))
        return self._patience.going

    def _tell_epoch(self, loss: float, accuracy: float | None, test_loss: float | None) -> None:
        if self._previous is not None and self._previous > 0:
            self._convergence = (self._previous - loss) / self._previous
        self._previous = loss
        if self.leads:
            fields: dict[str, str | int | float | bool | None] = {
                "step": self.step,
                "epoch": self._epoch_number,
                "seconds": time.monotonic() - self._epoch.started,
                "loss": loss,
                "accuracy": accuracy,
                "test_loss": test_loss,
                "convergence": self._convergence,
                "samples_per_second": self._epoch.samples_per_second,
                "tokens_per_second": self._tokens(self._epoch.samples_per_second),
                "learning_rate": self._rate,
            }
            self._log("epoch", fields)

    def _log(self, event: str, fields: dict[str, str | int | float | bool | None]) -> None:
        self._logged = time.monotonic()
        self.report(Log(level="info", event=event, fields=fields))

    @property
    def _epoch_number(self) -> int:
        return -(-self.step // self.course.steps_per_epoch)

    @property
    def _rate(self) -> float:
        return learning_rate(self.spec, self.step - 1, self.course.steps)

    def _progress(self, accuracy: float | None, test_loss: float | None) -> None:
        meter = self._meter
        own = meter.samples_per_second * self.group.fraction
        if self.leads and time.monotonic() - self._logged >= LOGGED_SECONDS:
            self._log(
                "progress",
                {
                    "step": self.step,
                    "epoch": self._epoch_number,
                    "loss": meter.mean_loss,
                    "samples_per_second": meter.samples_per_second,
                    "tokens_per_second": self._tokens(meter.samples_per_second),
                    "learning_rate": self._rate,
                },
            )
        self.report(
            WorkerProgress(
                step=self.step,
                steps=self.course.steps,
                epoch=self._epoch_number,
                epochs=self.spec.epochs,
                loss=meter.mean_loss,
                accuracy=accuracy,
                samples_per_second=own,
                step_seconds=meter.compute_seconds / max(meter.steps, 1),
                members=self.group.members,
                test_loss=test_loss,
                convergence=self._convergence,
                tokens_per_second=self._tokens(own),
                share=self.group.fraction,
            )
        )
        self._meter = _Meter()
