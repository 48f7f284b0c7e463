"""A training assignment in which this worker holds one stage of the model, from `Begin` to `Finished`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from hivenode.data.loading import Dataset, load
from hivenode.data.partition import Indices
from hivenode.errors import Corrupted, InvalidInput
from hivenode.models.zoo import describe, tensor_shapes
from hivenode.net.framing import Channel
from hivenode.net.local import Begin, CheckpointWritten, Finished, Log, Ready, WorkerLimits
from hivenode.spec.job import JobSpec
from hivenode.training import checkpoints, modelfile, tensorfiles
from hivenode.training.exchange import Seat
from hivenode.training.frameworks.model import Vector, initial_tensor
from hivenode.training.frameworks.torch_models import build
from hivenode.training.loop import Cancelled, Result
from hivenode.training.optimizers import Optimizer
from hivenode.training.stages.gather import Holdings, Snapshots, Wanted, copy, give, live, read_part, spread, take
from hivenode.training.stages.line import Line
from hivenode.training.stages.loop import Ends, StagedTraining, Tensors
from hivenode.training.stages.schedule import small_batches
from hivenode.training.stages.stage import Cutting, Stage
from hivenode.worker.orders import Orders
from hivenode.worker.threads import useful_threads


class StagedAssignment:
    """One stage's part of an attempt.

    Raises (here and in `run`):
        Cancelled: by order; a checkpoint of the last finished step is written if all stages are there to give it.
        HiveError: a sentence for whoever submitted the job.
    """

    def __init__(self, channel: Channel, begin: Begin, limits: WorkerLimits) -> None:
        self._started = time.monotonic()
        self._channel, self._begin, self._limits = channel, begin, limits
        self._spec = JobSpec.model_validate_json(begin.spec)
        self._directory = Path(begin.directory)
        shares = sorted(begin.plan.shares, key=lambda share: share.rank)
        self._number = next(place for place, share in enumerate(shares) if share.node == begin.node)
        self._share = shares[self._number]
        self._data = load(self._spec.data)
        self._card = modelfile.card(self._spec.model, self._data)
        self._layers = self._card.layers()
        self._shapes = tensor_shapes(self._layers)
        self._small = -(-self._spec.training.batch_size // begin.plan.micro_batches)
        firsts = []
        for share in shares[1:]:
            if share.layer_range is None or not 0 < share.layer_range[0] < len(self._layers):
                raise InvalidInput("The plan does not say which layers each stage holds.", fix="Submit the job again.")
            firsts.append(self._layers[share.layer_range[0]].name)
        torch.set_num_threads(self._threads())
        shape = self._data.info.input_shape
        self._cutting = Cutting(
            lambda: build(self._layers), lambda samples: {"x": torch.empty(samples, *shape)}, firsts
        )
        self._stage = Stage(self._cutting, self._number, self._small, self._shapes)
        stages = self._cutting.stages(self._small, training=True)
        self._holdings = Holdings(
            self._shapes, tuple(tuple(n for n in self._shapes if n in stage.parameters) for stage in stages)
        )
        self._optimizer = Optimizer(self._spec.training, len(self._stage.weights))

    def run(self) -> None:
        """Prepare, wait for the word to begin, train, leave the model."""
        line = Line(Seat(self._begin.node, self._share.rank, self._begin.host, self._begin.ports))
        orders = Orders(self._channel, line)
        try:
            step = self._start_values()
            self._trace_sizes()
            line.limit = self._longest_message()
            self._channel.send(
                Ready(
                    pid=os.getpid(),
                    port=line.port,
                    certificate=line.certificate,
                    parameters=len(self._stage.weights),
                    load_seconds=time.monotonic() - self._started,
                )
            )
            peers = orders.wait_for_peers().peers
            began = time.monotonic()
            snapshots = Snapshots(
                line, self._number, self._holdings, self._checkpoint, self._written, self._not_written, self._directory
            )
            training = StagedTraining(
                number=self._number,
                small=self._small,
                spec=self._spec.training,
                stage=self._stage,
                optimizer=self._optimizer,
                ends=_ends(self._data),
                line=line,
                report=self._channel.send,
                cancelled=lambda: orders.cancelled,
                save=lambda step: snapshots.save(step, self._vectors()),
                step=step,
            )
            try:
                line.connect(peers)
                result = training.run()
                snapshots.wait()
                path = self._model(line, result)
                line.finish()
            except Exception:
                if (reason := orders.cancelled) is not None:
                    raise Cancelled(reason) from None
                raise
            self._finished(path, result, began)
        finally:
            line.close()

    # --- before -------------------------------------------------------------------------------------------------

    def _start_values(self) -> int:
        """First or saved values of this stage's tensors; returns the finished steps."""
        if self._begin.resume is None:
            for number, (name, shape) in enumerate(self._shapes.items()):
                if name in self._stage.names:
                    initial_tensor(self._stage.weights[self._stage.part(name)], shape, self._spec.training.seed, number)
            return 0
        path = Path(self._begin.resume)
        parts = tensorfiles.Parts(path)
        head = checkpoints.check(path, parts.metadata, self._spec)
        slots = {slot: checkpoints.OPTIMIZER + slot for slot in self._optimizer.slots()}
        try:
            weights, state = read_part(parts, self._holdings, self._number, checkpoints.MODEL, slots)
            self._stage.weights[:] = weights
            self._optimizer.restore(state, head.scalars)
        except (KeyError, ValueError) as error:
            raise Corrupted(
                f"{path.name} is an incomplete checkpoint: {error}.", fix="Use another copy of it."
            ) from error
        return head.step

    def _trace_sizes(self) -> None:
        """Trace the model for every size of small batch that will come, so that training never waits for it."""
        size, train, test = self._spec.training.batch_size, len(self._data.train_labels), len(self._data.test_labels)
        for batch in {min(size, train), train % size or size}:
            for part in small_batches(batch, self._small):
                self._stage.graph(len(part), training=True)
        for part in small_batches(test, self._small) if test else ():
            self._stage.graph(len(part), training=False)

    def _longest_message(self) -> int:
        graph = self._stage.graph(self._small, training=True)
        values = [value.bytes for value in (*graph.receives, *graph.sends)]
        shared = [4 * prod(self._shapes[name]) for name in self._stage.shared]
        return max(1024 * 1024, *values, *shared)

    def _threads(self) -> int:
        card = self._card
        cost = describe(card.source, card.params, card.input_shape, card.classes)
        return useful_threads(3 * cost.flops_per_sample * self._small * self._share.weight, self._limits.threads)

    # --- files --------------------------------------------------------------------------------------------------

    def _vectors(self) -> list[Vector]:
        return [self._stage.weights, *self._optimizer.slots().values()]

    def _checkpoint(self, step: int) -> Wanted:
        total = sum(map(prod, self._shapes.values()))
        slots = list(self._optimizer.slots())
        shapes = {checkpoints.MODEL + name: shape for name, shape in self._shapes.items()}
        shapes |= {checkpoints.OPTIMIZER + slot: (total,) for slot in slots}
        plan = tensorfiles.layout(shapes, checkpoints.metadata(step, self._optimizer.scalars(), self._spec))
        stages = range(len(self._holdings.names))
        weights = tuple(self._holdings.in_model(stage, plan, checkpoints.MODEL) for stage in stages)
        state = tuple(
            tuple(self._holdings.in_vector(stage, plan, checkpoints.OPTIMIZER + slot) for stage in stages)
            for slot in slots
        )
        return Wanted(self._directory / f"checkpoint-{step}.safetensors", plan, (weights, *state))

    def _written(self, step: int, path: Path) -> None:
        self._channel.send(CheckpointWritten(step=step, path=str(path)))

    def _not_written(self, step: int, reason: str) -> None:
        self._channel.send(
            Log(
                level="error",
                event="a checkpoint could not be written; training goes on",
                fields={"step": step, "reason": reason},
            )
        )

    def _model(self, line: Line, result: Result) -> Path:
        """The whole model as a file; the same bytes at every stage."""
        card = replace(self._card, accuracy=result.accuracy)
        plan = tensorfiles.layout(self._shapes, modelfile.metadata(card))
        path = self._directory / "model.safetensors"
        if self._number > 0:
            give(line, result.step, len(self._stage.weights), live([self._stage.weights]))
            copy(line, result.step, path, plan.size)
            return path
        stages = range(len(self._holdings.names))
        places = tuple(self._holdings.in_model(stage, plan, "") for stage in stages)
        take(line, result.step, self._holdings, live([self._stage.weights]), Wanted(path, plan, (places,)))
        spread(line, result.step, path, plan.size)
        return path

    def _finished(self, path: Path, result: Result, began: float) -> None:
        metrics = {"loss": result.loss}
        if result.accuracy is not None and result.test_loss is not None:
            metrics |= {"accuracy": result.accuracy, "test_loss": result.test_loss}
        self._channel.send(
            Finished(
                step=result.step,
                path=str(path),
                seconds=time.monotonic() - began,
                metrics=metrics,
                lead=self._number == 0,
            )
        )


def _ends(data: Dataset) -> Ends:
    """A classifier's inputs, loss and score."""

    def enter(rows: Indices, training: bool) -> Tensors:
        return [torch.from_numpy((data.train_inputs if training else data.test_inputs)[rows])]

    def loss(outputs: Tensors, rows: Indices) -> torch.Tensor:
        return functional.cross_entropy(outputs[0], torch.from_numpy(data.train_labels[rows]))

    def judge(outputs: Tensors, rows: Indices) -> tuple[int, float]:
        expected = torch.from_numpy(np.ascontiguousarray(data.test_labels[rows]))
        correct = int((outputs[0].argmax(1) == expected).sum())
        return correct, float(functional.cross_entropy(outputs[0], expected, reduction="sum"))

    return Ends(len(data.train_labels), len(data.test_labels), enter, loss, judge)
