"""A training assignment, from `Begin` to `Finished`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from hivenode.data.loading import load
from hivenode.errors import InvalidInput
from hivenode.models.zoo import describe
from hivenode.net.framing import Channel
from hivenode.net.local import Begin, CheckpointWritten, Finished, Log, Ready, WorkerLimits
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Strategy
from hivenode.training import checkpoints, modelfile
from hivenode.training.checkpoints import State
from hivenode.training.exchange import Seat
from hivenode.training.frameworks.model import initial_weights
from hivenode.training.frameworks.torch_framework import TorchModel
from hivenode.training.loop import Result, Training
from hivenode.training.modelfile import ModelCard
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Cancelled, Group
from hivenode.training.strategies.making import notes_of, way_of
from hivenode.training.strategies.single import Alone
from hivenode.training.strategies.way import Samples
from hivenode.worker.orders import Orders

THREAD_FLOPS = 2e8
"""A step's work worth one more thread: some 20 ms of it."""


class TrainingAssignment:
    """One member's part of an attempt.

    Raises (here and in `run`):
        Cancelled: by order; the lowest rank has written a checkpoint of the last finished step.
        HiveError: a sentence for whoever submitted the job.
    """

    def __init__(self, channel: Channel, begin: Begin, limits: WorkerLimits) -> None:
        self._started = time.monotonic()
        self._channel = channel
        self._begin = begin
        self._limits = limits
        self._spec = JobSpec.model_validate_json(begin.spec)
        self._directory = Path(begin.directory)
        self._data = load(self._spec.data)
        self._layers = self._card(None).layers()

    def run(self) -> None:
        """Prepare, wait for the word to begin, train, leave the model."""
        collective = _collective(self._begin)
        orders = Orders(self._channel, collective)
        writer = checkpoints.Writer(self._write_checkpoint, self._not_written)
        try:
            training = self._training(collective, orders, writer)
            self._channel.send(
                Ready(
                    pid=os.getpid(),
                    port=collective.port,
                    certificate=collective.certificate,
                    parameters=len(training.way.weights),
                    load_seconds=time.monotonic() - self._started,
                )
            )
            peers = orders.wait_for_peers().peers
            began = time.monotonic()
            try:
                training.begin(peers)
                result = training.run()
            except Cancelled:
                if training.leads and training.step > 0:
                    writer.submit(training.state())
                raise
            writer.close()
            self._finish(training, result, began)
        finally:
            writer.close()
            collective.close()

    def _training(self, collective: Collective, orders: Orders, writer: checkpoints.Writer) -> Training:
        spec, begin = self._spec.training, self._begin
        weights = initial_weights(self._layers, spec.seed)
        state = None
        if begin.resume is not None:
            state = checkpoints.read(
                Path(begin.resume), self._spec, self._layers, limit_bytes=self._limits.memory_bytes
            )
            weights = state.weights
        vector = np.zeros(len(weights) + notes_of(spec, len(begin.plan.shares)), np.float32)
        model = TorchModel(self._layers, weights, vector[: len(weights)], self._threads())
        group = Group(begin.node, begin.plan.shares, collective, self._channel.send, lambda: orders.cancelled)
        samples = Samples(self._data, spec)
        training = Training(
            spec=spec,
            group=group,
            way=way_of(spec, group, samples, model, vector, self._channel.send),
            model=model,
            samples=samples,
            data=self._data,
            collective=collective,
            report=self._channel.send,
            save=writer.submit,
        )
        if state is not None:
            training.resume(state)
        return training

    def _threads(self) -> int:
        """As many threads as this share of a step can feed, within the limit: on a busy machine, threads that wait for
        each other in small steps are many times slower than one."""
        card, begin = self._card(None), self._begin
        share = next(share.weight for share in begin.plan.shares if share.node == begin.node)
        cost = describe(card.source, card.params, card.input_shape, card.classes)
        flops = 3 * cost.flops_per_sample * self._spec.training.batch_size * share
        return max(1, min(self._limits.threads, int(flops / THREAD_FLOPS)))

    def _finish(self, training: Training, result: Result, began: float) -> None:
        path = self._directory / "model.safetensors"
        modelfile.write(path, self._card(result.accuracy), training.way.weights)
        self._channel.send(
            Finished(
                step=result.step,
                path=str(path),
                seconds=time.monotonic() - began,
                metrics=result.metrics(),
                lead=training.leads,
            )
        )

    def _card(self, accuracy: float | None) -> ModelCard:
        info = self._data.info
        return ModelCard(
            source=self._spec.model.source,
            params=dict(self._spec.model.params),
            input_shape=info.input_shape,
            classes=info.classes,
            labels=info.labels,
            normalisation=self._data.normalisation,
            accuracy=accuracy,
        )

    def _write_checkpoint(self, state: State) -> None:
        path = self._directory / f"checkpoint-{state.step}.safetensors"
        checkpoints.write(path, state, self._spec, self._layers)
        self._channel.send(CheckpointWritten(step=state.step, path=str(path)))

    def _not_written(self, state: State, reason: str) -> None:
        self._channel.send(
            Log(
                level="error",
                event="a checkpoint could not be written; training goes on",
                fields={"step": state.step, "reason": reason},
            )
        )


def _collective(begin: Begin) -> Collective:
    strategy = begin.plan.strategy
    if strategy not in (Strategy.single_node, Strategy.data_parallel):
        raise InvalidInput(
            f"A torch worker cannot train by {strategy}.", fix="Use placement.strategy single_node or data_parallel."
        )
    if len(begin.plan.shares) == 1:
        return Alone(begin.node)
    rank = next(share.rank for share in begin.plan.shares if share.node == begin.node)
    return Together(Seat(begin.node, rank, begin.host, begin.ports))
