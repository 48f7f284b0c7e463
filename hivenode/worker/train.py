"""A training assignment, from `Begin` to `Finished`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hivenode.errors import HiveError, InvalidInput
from hivenode.models.declared import describe
from hivenode.net.framing import Channel
from hivenode.net.local import (
    Begin,
    CheckpointFailed,
    CheckpointWritten,
    DebtsWritten,
    Finished,
    Log,
    Ready,
    WorkerLimits,
)
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine, Strategy
from hivenode.training import checkpoints, debts, modelfile
from hivenode.training.checkpoints import State
from hivenode.training.distributed.crew import Births
from hivenode.training.distributed.plaintext import InPlaintext
from hivenode.training.distributed.switchboard import Switchboard
from hivenode.training.exchange import Seat
from hivenode.training.frameworks.given_weights import told_afresh
from hivenode.training.frameworks.making import make
from hivenode.training.frameworks.model import Layout, Vector
from hivenode.training.loop import Result, Training
from hivenode.training.runs import Prepared, Run
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Cancelled, Group
from hivenode.training.strategies.making import way_of
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Course, Way
from hivenode.worker.orders import Orders
from hivenode.worker.pieces import PieceFinder, open_data
from hivenode.worker.threads import useful_threads


class TrainingAssignment:
    """One member's part of an attempt.

    Args:
        births: where the processes come from that torch.distributed runs in, if it is the plan's engine.

    Raises (here and in `run`):
        Cancelled: by order; the lowest rank has written a checkpoint of the last finished step.
        HiveError: a sentence for whoever submitted the job.
    """

    def __init__(self, channel: Channel, begin: Begin, limits: WorkerLimits, births: Births | None = None) -> None:
        self._channel = channel
        self._begin = begin
        self._limits = limits
        self._births = births
        self._spec = JobSpec.model_validate_json(begin.spec)
        self._directory = Path(begin.directory)
        self._pieces = PieceFinder(channel)
        self._data = open_data(self._spec.data, begin.resources, self._pieces)
        self._afresh: tuple[str, ...] = ()

    def run(self) -> None:
        """Prepare, wait for the word to begin, train, leave the model."""
        collective = _collective(self._begin, self._spec.training.norm_limit)
        orders = Orders(self._channel, collective)
        self._pieces.orders = orders
        writer = checkpoints.Writer(self._write_checkpoint, self._not_written)
        owing = checkpoints.Writer(self._write_debts, self._debts_not_written)
        try:
            self._prepared = self._prepare(collective, orders, writer)
            training = self._prepared.run
            if isinstance(training, Training):
                self._resume_debts(training)
                training.owe = lambda step, debts: owing.submit(_as_state(step, debts)) if debts else None
            self._channel.send(
                Ready(
                    pid=os.getpid(),
                    port=collective.port,
                    certificate=collective.certificate,
                    parameters=self._prepared.layout.size,
                )
            )
            ready = orders.wait_for_peers()
            began = time.monotonic()
            try:
                self._tell_of_data(training)
                if ready.joining:
                    training.join(ready.peers)
                else:
                    training.begin(ready.peers)
                result = training.run()
            except Cancelled:
                if training.leads and training.step > 0:
                    writer.submit(training.state(), last=True)
                if isinstance(training, Training) and training.step > 0 and (owed := training.way.wire.debts()):
                    owing.submit(_as_state(training.step, owed), last=True)
                raise
            writer.close()
            self._finish(training, result, began)
        finally:
            writer.close()
            owing.close()
            collective.close()

    def _prepare(self, collective: Collective, orders: Orders, writer: checkpoints.Writer) -> Prepared:
        spec, begin, report = self._spec, self._begin, self._channel.send
        group = Group(begin.node, begin.plan.shares, collective, report, lambda: orders.cancelled)
        self._declared = spec.model
        if spec.framework == "sklearn":
            from hivenode.training.earlier import earlier
            from hivenode.training.estimating import estimating

            self._declared = spec.model.model_copy(update={"weights": ""})
            return estimating(
                spec, group, self._data, collective, report, writer.submit, self._saved, self._limits.threads,
                lambda data: earlier(spec.model, data, begin.resources, self._limits.memory_bytes),
            )  # fmt: skip
        seed, precision = spec.training.seed, begin.plan.precision
        made = make(spec.runtime, spec.model, self._data.info, seed, begin.resources, self._threads(), precision)
        self._declared, self._afresh, model = made.declared, made.afresh, made.model
        state = self._saved(model.layout)
        if state is not None:
            model.weights[:], model.buffers[:] = state.weights, state.buffers
        course = Course(self._data, spec.training, group)
        if isinstance(collective, InPlaintext) and self._births is not None:
            from hivenode.training.distributed.making import torch_way

            way: Way = torch_way(
                spec, self._data.info, model, group, course, collective, self._births, begin.resources,
                self._threads(), precision, report,
            )  # fmt: skip
        else:
            way = way_of(spec.training, group, course, model, made.vector, report, precision)
        training = Training(
            spec=spec.training,
            group=group,
            way=way,
            model=model,
            course=course,
            data=self._data,
            collective=collective,
            report=report,
            save=writer.submit,
        )
        if state is not None:
            training.resume(state)
        return Prepared(training, model.layout, lambda: model)

    def _saved(self, layout: Layout) -> State | None:
        """The checkpoint to go on from."""
        if self._begin.resume is None:
            return None
        return checkpoints.read(Path(self._begin.resume), self._spec, layout, limit_bytes=self._limits.memory_bytes)

    def _tell_of_data(self, training: Run) -> None:
        """To the job's log, once."""
        if training.leads or self._data.private:  # of what is private each has its own
            for line in self._data.summary:
                self._channel.send(Log(level="info", event=line))
        if not training.leads:
            return
        if told := told_afresh(self._afresh):
            self._channel.send(Log(level="info", event=told))

    def _threads(self) -> int:
        """As many as this share of a step can feed."""
        begin = self._begin
        share = next(share.weight for share in begin.plan.shares if share.node == begin.node)
        cost = describe(self._spec.model, self._data.info)
        return useful_threads(3 * cost.flops_per_sample * self._spec.training.batch_size * share, self._limits.threads)

    def _finish(self, training: Run, result: Result, began: float) -> None:
        path = self._directory / "model.safetensors"
        card = modelfile.card(self._spec, self._declared, training.data if self._data.private else self._data)
        modelfile.write(path, replace(card, accuracy=result.accuracy), self._prepared.kept())
        self._channel.send(
            Finished(
                step=result.step,
                path=str(path),
                seconds=time.monotonic() - began,
                metrics=result.metrics(),
                lead=training.leads,
            )
        )

    def _write_checkpoint(self, state: State) -> None:
        path = self._directory / f"checkpoint-{state.step}.safetensors"
        checkpoints.write(path, state, self._spec, self._prepared.layout)
        self._channel.send(CheckpointWritten(step=state.step, path=str(path)))

    def _resume_debts(self, training: Training) -> None:
        """What this node had still to say when the checkpoint was written, if it was there and has kept it."""
        path = self._directory / debts.name_of(training.step)
        if training.step == 0 or not path.exists():
            return
        try:
            owed = debts.read(path, training.step, self._spec, limit_bytes=self._limits.memory_bytes)
            training.way.wire.restore(owed)
            event = f"What this node still owed as of step {training.step} is taken up again."
            self._channel.send(Log(level="info", event=event))
        except (HiveError, ValueError) as error:
            self._channel.send(Log(level="warning", event=f"Going on without what was still owed: {error}"[:2000]))

    def _write_debts(self, state: State) -> None:
        path = self._directory / debts.name_of(state.step)
        debts.write(path, state.step, state.slots, self._spec)
        self._channel.send(DebtsWritten(step=state.step, path=str(path)))

    def _debts_not_written(self, state: State, reason: str) -> None:
        event = f"What this node still owes could not be written: {reason}. Training goes on."
        self._channel.send(Log(level="warning", event=event[:2000], fields={"step": state.step}))

    def _not_written(self, state: State, reason: str) -> None:
        self._channel.send(CheckpointFailed(step=state.step, reason=reason[:1000]))


def _as_state(step: int, debts: Mapping[str, Vector]) -> State:
    nothing = np.empty(0, np.float32)
    return State(step, nothing, nothing, debts, {})


def _collective(begin: Begin, norm_limit: float | None) -> Collective:
    strategy = begin.plan.strategy
    if strategy not in (Strategy.single_node, Strategy.data_parallel, Strategy.model_parallel):
        raise InvalidInput(
            f"A worker with a whole model cannot train by {strategy}.",
            fix="Use placement.strategy single_node or data_parallel.",
        )
    if len(begin.plan.shares) == 1:
        return Alone(begin.node)
    rank = next(share.rank for share in begin.plan.shares if share.node == begin.node)
    seat = Seat(begin.node, rank, begin.host, begin.ports)
    if begin.plan.engine is Engine.torch:
        return InPlaintext(seat, Switchboard(begin.node), begin.trusted)
    return Together(seat, norm_limit=norm_limit)
