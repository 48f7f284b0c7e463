"""Training a model that is cut into stages: this worker holds one of them.

Every stage runs this loop over the same batches in the same order. A batch is cut into small ones which pass through
the line forward and back (1F1B); the gradient of the whole batch is in each stage's vector at the end of the step, and
each updates its own tensors. With one small batch a step this is model parallelism, with more a pipeline. Several lines
may share every batch; then the gradient is the mean of theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from hivenode.data.dataset import Dataset
from hivenode.data.partition import Batches, Indices
from hivenode.errors import HiveError
from hivenode.net.local import FromWorker, Log, WorkerProgress
from hivenode.spec.training import TrainingSpec
from hivenode.training.frameworks.torch_framework import judged, mean_loss
from hivenode.training.loop import LOGGED_SECONDS, PROGRESS_SECONDS, SCORED, Result
from hivenode.training.optimizers import Optimizer
from hivenode.training.patience import Patience
from hivenode.training.schedules import learning_rate, sum_of_squares
from hivenode.training.stages.graph import Value
from hivenode.training.stages.line import Line, Subject, Tag
from hivenode.training.stages.replicas import Replicas
from hivenode.training.stages.schedule import Pass, one_forward_one_backward, small_batches
from hivenode.training.stages.stage import Stage, as_bytes, as_tensor
from hivenode.training.strategies.group import Cancelled
from hivenode.training.strategies.way import check_loss

WINDOW = 4
"""Small batches that a stage may be ahead of the next one while evaluating."""
EVALUATION = 1 << 20
"""Added to the number of small batches that are evaluated, to tell them from those of training."""
LOSS, MEAN, JUDGED, SQUARES, NORM = 0, 1, 2, 3, 4
"""Places of `Subject.numbers`."""

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Ends:
    """What only the ends of the line do: take samples in at the first stage, judge outputs at the last."""

    data: Dataset

    def enter(self, rows: Indices, training: bool) -> Tensors:
        """Inputs of these samples, in the order of the model's inputs."""
        return [torch.from_numpy((self.data.train if training else self.data.test).take(rows)[0])]

    def loss(self, outputs: Tensors, rows: Indices) -> torch.Tensor:
        """Mean over these samples of the training part."""
        labels = torch.from_numpy(self.data.train.take(rows)[1])
        return mean_loss(self.data.info.task, outputs[0], labels)

    def judge(self, outputs: Tensors, rows: Indices) -> tuple[int, float]:
        """Right answers and the sum of losses, of samples held out."""
        return judged(self.data.info.task, outputs[0], torch.from_numpy(self.data.test.take(rows)[1]))


@dataclass(slots=True)
class StagedTraining:
    """One stage's run.

    Args:
        number: place of the stage, 0 first; the rank in the line.
        small: samples of a small batch at most.
        replicas: those who hold the same stage of other lines.
        members: all nodes of the attempt.
        save: called with the step, on every stage, when its state is to be kept.
        step: finished steps; above 0 when resuming.
    """

    number: int
    small: int
    spec: TrainingSpec
    stage: Stage
    optimizer: Optimizer
    ends: Ends
    line: Line
    replicas: Replicas
    members: tuple[str, ...]
    report: Callable[[FromWorker], None]
    cancelled: Callable[[], str | None]
    save: Callable[[int], None]
    step: int = 0
    _batches: Batches = field(init=False)
    _last: int = field(init=False)
    _patience: Patience = field(init=False)
    _previous: float | None = field(init=False, default=None)
    _convergence: float | None = field(init=False, default=None)
    _epoch_losses: list[float] = field(init=False)
    _epoch_samples: int = field(init=False)
    _since: float = field(init=False)
    _steps_since: int = field(init=False)
    _samples_since: int = field(init=False)
    _busy: float = field(init=False)
    _loss_since: float = field(init=False)
    _epoch_began: float = field(init=False, default_factory=time.monotonic)
    _logged: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._batches = Batches(len(self.ends.data.train), self.spec.batch_size, self.spec.seed)
        self._patience = Patience(self.spec)
        self._epoch_losses, self._epoch_samples = [], 0
        self._reset()

    @property
    def steps(self) -> int:
        """Of the whole run."""
        whole = self.spec.epochs * self._batches.steps_per_epoch
        return whole if self.spec.max_steps is None else min(whole, self.spec.max_steps)

    def run(self) -> Result:
        """Train to the end. All stages must be linked.

        Raises:
            Cancelled: by order.
            JobFailed: training diverged.
            HiveError: a stage is lost, or this one cannot go on.
        """
        self._last = len(self.line.ranks) - 1
        per_epoch, steps = self._batches.steps_per_epoch, self.steps
        found: tuple[float | None, float | None] | None = None
        loss, began, samples, started = 0.0, self.step, 0, time.monotonic()
        order = self._batches.order(self.step // per_epoch)
        self._reset()
        self._epoch_began = self._logged = time.monotonic()
        try:
            while self.step < steps and self._patience.going:
                self._heed()
                if self.step % per_epoch == 0:
                    order = self._batches.order(self.step // per_epoch)
                    self._epoch_losses, self._epoch_samples = [], 0
                    self._epoch_began = time.monotonic()
                batch = self._batches.of_step(order, self.step)
                self._train_step(batch)
                samples += len(batch)
                loss = math.fsum(self._epoch_losses) / self._epoch_samples
                ended = self.step % per_epoch == 0 or self.step == steps
                if ended:
                    found = self._end_epoch(loss)
                if ended or time.monotonic() - self._since >= PROGRESS_SECONDS:
                    self._progress(*(found if ended and found is not None else (None, None)))
                if self.step % self.spec.checkpoint_every_steps == 0 and self.step < steps and self._patience.going:
                    self.save(self.step)
            if found is None:  # resumed after the last step
                found = self._evaluate()
        except HiveError:
            self._heed()
            raise
        speed = samples / max(time.monotonic() - started, 1e-9) if self.step > began else 0.0
        return Result(self.step, loss, *found, self.step / per_epoch, speed, self._convergence, self._tokens(speed))

    def _tokens(self, samples: float) -> float | None:
        """In so many samples, of text."""
        info = self.ends.data.info
        return samples * info.features if info.vocabulary else None

    def scalars(self) -> dict[str, str]:
        """What a checkpoint has to hold beside vectors."""
        return {**self.optimizer.scalars(), **self._patience.scalars()}

    def restore(self, scalars: Mapping[str, str]) -> None:
        """Take over what a checkpoint holds beside vectors; nothing at the first start. Raises KeyError, ValueError."""
        if scalars:
            self._patience.restore(scalars)

    def _end_epoch(self, loss: float) -> tuple[float | None, float | None]:
        found = self._evaluate()
        self._patience.judge(found[1])
        if self._previous is not None and self._previous > 0:
            self._convergence = (self._previous - loss) / self._previous
        self._previous = loss
        if self.leads:
            seconds = max(time.monotonic() - self._epoch_began, 1e-9)
            told = {"seconds": seconds, "accuracy": found[0], "test_loss": found[1], "convergence": self._convergence}
            self._log("epoch", loss, self._epoch_samples / seconds, told)
        if self.leads and not self._patience.going:
            self.report(Log(level="info", event=str(self._patience), fields={"step": self.step}))
        return found

    @property
    def leads(self) -> bool:
        """Whether this stage tells of the whole run."""
        return self.number == 0 and self.replicas.number == 0

    def _log(self, event: str, loss: float, speed: float, more: Mapping[str, float | None]) -> None:
        """A line in the job's log; `speed` in samples/s."""
        self._logged = time.monotonic()
        fields: dict[str, str | int | float | bool | None] = {
            "step": self.step,
            "epoch": self._epoch,
            "loss": loss,
            "samples_per_second": speed,
            "tokens_per_second": self._tokens(speed),
            "learning_rate": learning_rate(self.spec, self.step - 1, self.steps),
        }
        self.report(Log(level="info", event=event, fields={**fields, **more}))

    @property
    def _epoch(self) -> int:
        return -(-self.step // self._batches.steps_per_epoch)

    # --- a step -------------------------------------------------------------------------------------------------

    def _train_step(self, batch: Indices) -> None:
        part = self.replicas.part(len(batch))
        own = batch[part.start : part.stop]

        rate = learning_rate(self.spec, self.step, self.steps)
        loss = 0.0

        def compute() -> float:
            nonlocal loss
            (loss,) = self._from_last(LOSS, [self._passes(own)])
            check_loss(self.spec, loss, self.step, self._batches.steps_per_epoch, rate)
            self._sum_shared()
            self.stage.vector[-1] = loss
            return float(len(own))

        self.replicas.agree(self.stage.vector, compute, self.step)
        self._spread_shared()
        if self.replicas.several:
            (loss,) = self._from_last(MEAN, [float(self.stage.vector[-1])])
        if self.spec.clip_norm is not None:
            self._clip(self.spec.clip_norm)
        self.optimizer.step(self.stage.weights, self.stage.gradient, rate)
        self.step += 1
        self._epoch_losses.append(loss * len(batch))
        self._epoch_samples += len(batch)
        self._steps_since += 1
        self._samples_since += len(batch)
        self._loss_since += loss

    def _passes(self, own: Indices) -> float:
        """Pass this line's part of a batch through the line and back; at the last stage its mean loss."""
        parts = small_batches(len(own), self.small)
        self.stage.begin_step()
        losses: list[float] = []
        for what, number in one_forward_one_backward(self.number, self._last + 1, len(parts)):
            part = parts[number]
            mine = own[part.start : part.stop]
            if what is Pass.forward:
                received = self._received(number, mine, training=True)
                started = time.monotonic()
                outputs = self.stage.forward(number, len(mine), received, self._draw(number))
                if self.number == self._last:
                    share = len(mine) / len(own)
                    losses.append(
                        self.stage.loss(number, lambda sent, mine=mine: self.ends.loss(sent, mine), share)  # type: ignore[misc]
                    )
                self._busy += time.monotonic() - started
                self._pass_on(number, outputs)
            else:
                self._backward(number, len(mine))
        return math.fsum(losses)

    def _received(self, number: int, mine: Indices, *, training: bool) -> Tensors:
        if self.number == 0:
            return self.ends.enter(mine, training)
        due = self.stage.graph(len(mine), training=training).receives
        at = number if training else EVALUATION + number
        return self._receive(self.number - 1, Subject.activation, at, list(enumerate(due)))

    def _receive(self, rank: int, subject: Subject, number: int, due: Sequence[tuple[int, Value]]) -> Tensors:
        return [
            as_tensor(self.line.receive(rank, Tag(subject, self.step, number, index), value.bytes), value)
            for index, value in due
        ]

    def _send(self, rank: int, subject: Subject, number: int, tensors: Sequence[tuple[int, torch.Tensor]]) -> None:
        for index, tensor in tensors:
            self.line.send(rank, Tag(subject, self.step, number, index), as_bytes(tensor))

    def _pass_on(self, number: int, outputs: Tensors) -> None:
        if self.number < self._last:
            self._send(self.number + 1, Subject.activation, number, list(enumerate(outputs)))

    def _backward(self, number: int, samples: int) -> None:
        graph = self.stage.graph(samples, training=True)
        gradients: list[torch.Tensor | None]
        if self.number == self._last:
            gradients = [torch.ones(())]
        else:
            due = [(index, value) for index, value in enumerate(graph.sends) if value.differentiable]
            came = self._receive(self.number + 1, Subject.gradient, number, due)
            gradients = [None] * len(graph.sends)
            for (index, _), gradient in zip(due, came, strict=True):
                gradients[index] = gradient
        started = time.monotonic()
        back = self.stage.backward(number, samples, gradients)
        self._busy += time.monotonic() - started
        if self.number > 0:
            known = [(index, gradient) for index, gradient in enumerate(back) if gradient is not None]
            self._send(self.number - 1, Subject.gradient, number, known)

    def _sum_shared(self) -> None:
        """A tensor that several stages hold has one gradient: its first holder adds them up, in order of the line."""
        for index, (name, (first, *others)) in enumerate(self.stage.shared.items()):
            if self.number not in (first, *others):
                continue
            part = self.stage.gradient[self.stage.part(name)]
            if self.number == first:
                for other in others:
                    there = self.line.receive(other, Tag(Subject.shared, self.step, other, index), part.nbytes)
                    part += np.frombuffer(there, np.float32)
            else:
                self.line.send(first, Tag(Subject.shared, self.step, self.number, index), part.tobytes())

    def _spread_shared(self) -> None:
        """What the first holder of a tensor has come to goes to the others: all apply the same update to the same
        values."""
        for index, (name, (first, *others)) in enumerate(self.stage.shared.items()):
            if self.number not in (first, *others):
                continue
            part = self.stage.gradient[self.stage.part(name)]
            back = Tag(Subject.shared, self.step, 0, index)
            if self.number == first:
                for other in others:
                    self.line.send(other, back, part.tobytes())
            else:
                part[:] = np.frombuffer(self.line.receive(first, back, part.nbytes), np.float32)

    def _clip(self, longest: float) -> None:
        """Shorten the gradient of the whole model, of which each stage knows its part, to that length."""
        first = [name for name, stages in self.stage.shared.items() if self.number in stages[1:]]
        squares = sum_of_squares(self.stage.gradient)
        squares -= math.fsum(sum_of_squares(self.stage.gradient[self.stage.part(name)]) for name in first)
        mine = Tag(Subject.numbers, self.step, self.number, SQUARES)
        if self.number < self._last:
            self.line.send(self._last, mine, np.float64(squares).tobytes())
            (norm,) = self._from_last(NORM, [0.0])
        else:
            others = [
                float(np.frombuffer(self.line.receive(rank, mine._replace(number=rank), 8), np.float64)[0])
                for rank in self.line.ranks[:-1]
            ]
            (norm,) = self._from_last(NORM, [math.sqrt(math.fsum([*others, squares]))])
        if norm > longest:
            self.stage.gradient *= np.float32(longest / norm)

    def _from_last(self, index: int, values: Sequence[float]) -> tuple[float, ...]:
        """What the last stage knows, for all."""
        tag = Tag(Subject.numbers, self.step, 0, index)
        if self.number == self._last:
            sent = np.array(values, np.float64)
            for rank in self.line.ranks[:-1]:
                self.line.send(rank, tag, sent.view(np.uint8).data)
            return tuple(sent.tolist())
        return tuple(np.frombuffer(self.line.receive(self._last, tag, 8 * len(values)), np.float64).tolist())

    def _draw(self, number: int) -> int:
        """Seed of what the model draws itself: a function of the job, the step, the line, the small batch and the
        stage."""
        line = self.replicas.number * 524_287
        return ((self.spec.seed * 1_000_003 + self.step) * 4099 + line + number * 64 + self.number) % 2**63

    # --- evaluation ---------------------------------------------------------------------------------------------

    def _evaluate(self) -> tuple[float | None, float | None]:
        """Accuracy and mean loss on the held-out part."""
        total = len(self.ends.data.test)
        if total == 0:
            return None, None
        correct, loss = 0, 0.0
        whole = self.replicas.part(total)
        parts = small_batches(len(whole), self.small)
        for number, part in enumerate(parts):
            mine = np.arange(whole.start + part.start, whole.start + part.stop, dtype=np.int64)
            outputs = self.stage.evaluate(len(mine), self._received(number, mine, training=False))
            if self.number == self._last:
                right, some = self.ends.judge(outputs, mine)
                correct, loss = correct + right, loss + some
            else:
                if number >= WINDOW:
                    self.line.receive(self.number + 1, Tag(Subject.ask, self.step, number - WINDOW), 0)
                self._pass_on(EVALUATION + number, outputs)
            if self.number > 0 and number < len(parts) - WINDOW:
                self.line.send(self.number - 1, Tag(Subject.ask, self.step, number), memoryview(b""))
        told = [0.0, 0.0]
        if self.number == self._last:
            count = max(len(whole), 1)
            told = self.replicas.mean([correct / count, loss / count], len(whole), self.step)
        found = self._from_last(JUDGED, told)
        info = self.ends.data.info
        answers = total * (info.features if info.task == "language" else 1)
        return round(found[0] * total) / answers if info.task in SCORED else None, found[1]

    # --- around it ----------------------------------------------------------------------------------------------

    def _heed(self) -> None:
        if (reason := self.cancelled()) is not None:
            raise Cancelled(reason) from None

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._steps_since = self._samples_since = 0
        self._busy = self._loss_since = 0.0

    def _progress(self, accuracy: float | None, test_loss: float | None) -> None:
        speed = self._samples_since / max(time.monotonic() - self._since, 1e-9)
        steps = max(self._steps_since, 1)
        if self.leads and time.monotonic() - self._logged >= LOGGED_SECONDS:
            self._log("progress", self._loss_since / steps, speed, {})
        own = speed / len(self.members)  # all work on each batch, and what they report is added up
        self.report(
            WorkerProgress(
                step=self.step,
                steps=self.steps,
                epoch=self._epoch,
                epochs=self.spec.epochs,
                loss=self._loss_since / steps,
                accuracy=accuracy,
                samples_per_second=own,
                step_seconds=self._busy / steps,
                members=self.members,
                test_loss=test_loss,
                convergence=self._convergence,
                tokens_per_second=self._tokens(own),
            )
        )
        self._reset()
