"""A training assignment in which this worker holds one stage of the model, from `Begin` to `Finished`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path

import msgspec
import torch

from hivenode.errors import Corrupted, InvalidInput, Unavailable
from hivenode.models.declared import describe
from hivenode.net.framing import Channel
from hivenode.net.local import Begin, CheckpointFailed, CheckpointWritten, Finished, Log, Peer, Ready, WorkerLimits
from hivenode.spec.job import JobSpec
from hivenode.spec.split import split
from hivenode.spec.values import Share
from hivenode.training import checkpoints, modelfile, tensorfiles
from hivenode.training.exchange import Seat, WorkerKey
from hivenode.training.frameworks.given_weights import given, told_afresh
from hivenode.training.frameworks.model import Vector
from hivenode.training.loop import Result
from hivenode.training.optimizers import Optimizer
from hivenode.training.stages.blueprint import blueprint
from hivenode.training.stages.gather import (
    Kind,
    Own,
    Snapshots,
    Wanted,
    copy,
    give,
    read_named,
    read_slots,
    spread,
    take,
)  # fmt: skip
from hivenode.training.stages.holdings import Holdings
from hivenode.training.stages.line import Line
from hivenode.training.stages.loop import Ends, StagedTraining
from hivenode.training.stages.replicas import Replicas
from hivenode.training.stages.schedule import small_batches
from hivenode.training.stages.stage import Cutting, Stage
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Cancelled
from hivenode.training.strategies.single import Alone
from hivenode.worker.orders import Orders
from hivenode.worker.pieces import PieceFinder, open_data
from hivenode.worker.threads import useful_threads


class StagedAssignment:
    """One stage's part of an attempt.

    Raises (here and in `run`):
        Cancelled: by order; what came after the last checkpoint is lost.
        HiveError: a sentence for whoever submitted the job.
    """

    def __init__(self, channel: Channel, begin: Begin, limits: WorkerLimits) -> None:
        self._channel, self._begin, self._limits = channel, begin, limits
        self._spec = JobSpec.model_validate_json(begin.spec)
        self._directory = Path(begin.directory)
        lines = begin.plan.lines()
        self._mine = next(line for line in lines if any(share.node == begin.node for share in line))
        self._number = next(place for place, share in enumerate(self._mine) if share.node == begin.node)
        self._pieces = PieceFinder(channel)
        self._data = open_data(self._spec.data, begin.resources, self._pieces)
        training, info = self._spec.training, self._data.info
        part = split(training.batch_size, [sum(share.weight for share in line) for line in lines])
        self._small = max(1, -(-len(part[lines.index(self._mine)]) // begin.plan.micro_batches))
        self._blueprint = blueprint(self._spec.model, info, training.seed, begin.resources)
        torch.set_num_threads(self._threads())
        self._cutting = Cutting(self._blueprint, self._example, _firsts(lines))
        self._held, self._running = self._cutting.holdings(self._small)
        self._stage = Stage(self._cutting, self._number, self._held, self._running)
        if len(lines) > 1 and self._stage.buffers.size:
            raise InvalidInput(
                "A model with running statistics is not trained by several lines of stages.",
                fix="Use placement.strategy model_parallel or data_parallel for it.",
            )
        self._optimizer = Optimizer(training, len(self._stage.weights))

    def _example(self, samples: int) -> torch.Tensor:
        info = self._data.info
        return torch.zeros(samples, *info.input_shape, dtype=torch.int64 if info.vocabulary else torch.float32)

    def run(self) -> None:
        """Prepare, wait for the word to begin, train, leave the model."""
        begin, lines, key = self._begin, self._begin.plan.lines(), WorkerKey.create()
        line = Line(Seat(begin.node, self._number, begin.host, begin.ports), key=key)
        number = lines.index(self._mine)
        same = Together(Seat(begin.node, number, begin.host, begin.ports), key) if lines[1:] else Alone(begin.node)
        orders = Orders(self._channel, Others(line, same))
        self._pieces.orders = orders
        try:
            replicas = Replicas(
                begin.node, lines, self._number, same, self._spec.training.codec, len(self._stage.weights),
                self._channel.send, lambda: orders.cancelled,
            )  # fmt: skip
            head = self._start_values()
            self._blueprint.forget()
            self._trace_sizes(replicas)
            line.limit = self._longest_message()
            self._channel.send(
                Ready(
                    pid=os.getpid(),
                    port=line.port,
                    certificate=line.certificate,
                    parameters=len(self._stage.weights),
                    group_port=same.port,
                )
            )
            peers = orders.wait_for_peers().peers
            began = time.monotonic()
            snapshots = Snapshots(
                line, self._number, self._directory, self._checkpoint, self._written, self._not_written
            )
            training = self._training = StagedTraining(
                number=self._number,
                small=self._small,
                spec=self._spec.training,
                stage=self._stage,
                optimizer=self._optimizer,
                ends=Ends(self._data),
                line=line,
                replicas=replicas,
                members=tuple(share.node for share in sorted(begin.plan.shares, key=lambda share: share.rank)),
                report=self._channel.send,
                cancelled=lambda: orders.cancelled,
                save=lambda step: snapshots.save(step, self._vectors()) if number == 0 else None,
                step=head.step,
            )
            training.restore(head.scalars)
            try:
                line.connect(_placed(peers, self._mine, begin.node))
                replicas.connect(_placed(peers, [each[self._number] for each in lines], begin.node, group=True))
                result = training.run()
                snapshots.wait()
                replicas.finish()
                path = self._model(line, result)
                line.finish()
            except Exception:
                if (reason := orders.cancelled) is not None:
                    raise Cancelled(reason) from None
                raise
            self._finished(path, result, began)
        finally:
            line.close()
            same.close()

    # --- before -------------------------------------------------------------------------------------------------

    def _start_values(self) -> checkpoints.Head:
        """First or saved values of this stage's tensors; returns what is known besides."""
        stage, number = self._stage, self._number
        if self._begin.resume is None:
            for holdings, vector in self._owned():
                for name, part in holdings.parts(number).items():
                    self._blueprint.start(name, vector[part])
            afresh = self._take_given() if self._spec.model.weights else self._blueprint.afresh
            if number == self._mine[0].replica == 0 and (told := told_afresh(afresh)):
                self._channel.send(Log(level="info", event=told))
            return checkpoints.Head(0, {})
        path = Path(self._begin.resume)
        parts = tensorfiles.Parts(path)
        head = checkpoints.check(path, parts.metadata, self._spec)
        slots = {slot: checkpoints.OPTIMIZER + slot for slot in self._optimizer.slots()}
        try:
            read_named(parts, self._held, number, checkpoints.MODEL, stage.weights)
            read_named(parts, self._running, number, checkpoints.BUFFER, stage.buffers)
            self._optimizer.restore(read_slots(parts, self._held, number, slots), head.scalars)
        except (KeyError, ValueError) as error:
            raise Corrupted(
                f"{path.name} is an incomplete checkpoint: {error}.", fix="Use another copy of it."
            ) from error
        return head

    def _owned(self) -> tuple[tuple[Holdings, Vector], ...]:
        return (self._held, self._stage.weights), (self._running, self._stage.buffers)

    def _take_given(self) -> tuple[str, ...]:
        """This stage's tensors of those that training is to begin with; returns which it lacks of all. Raises as
        `given_weights.overlay`."""
        with given(self._spec.model, self._begin.resources, "pt") as file:
            afresh = file.lacking({**self._held.shapes, **self._running.shapes})
            for holdings, vector in self._owned():
                for name, part in holdings.parts(self._number).items():
                    if name not in afresh:
                        file.fill(vector[part], name)
        return afresh

    def _trace_sizes(self, replicas: Replicas) -> None:
        """Trace the model for every size of small batch that will come, so that training never waits for it."""
        size, train, test = self._spec.training.batch_size, len(self._data.train), len(self._data.test)
        for batch in {min(size, train), train % size or size}:
            for part in small_batches(len(replicas.part(batch)), self._small):
                self._stage.graph(len(part), training=True)
        for part in small_batches(len(replicas.part(test)), self._small):
            self._stage.graph(len(part), training=False)

    def _longest_message(self) -> int:
        graph = self._stage.graph(self._small, training=True)
        values = [value.bytes for value in (*graph.receives, *graph.sends)]
        shared = [4 * prod(self._held.shapes[name]) for name in self._stage.shared]
        return max(1024 * 1024, *values, *shared)

    def _threads(self) -> int:
        cost = describe(self._blueprint.declared, self._data.info)
        part = self._mine[self._number].weight / sum(share.weight for share in self._mine)
        return useful_threads(3 * cost.flops_per_sample * self._small * part, self._limits.threads)

    # --- files --------------------------------------------------------------------------------------------------

    def _vectors(self) -> list[Vector]:
        return [self._stage.weights, self._stage.buffers, *self._optimizer.slots().values()]

    def _checkpoint(self, step: int) -> Wanted:
        held, running, slots = self._held, self._running, list(self._optimizer.slots())
        shapes = {checkpoints.MODEL + name: shape for name, shape in held.shapes.items()}
        shapes |= {checkpoints.BUFFER + name: shape for name, shape in running.shapes.items()}
        shapes |= {checkpoints.OPTIMIZER + slot: (sum(map(prod, held.shapes.values())),) for slot in slots}
        plan = tensorfiles.layout(shapes, checkpoints.metadata(step, self._training.scalars(), self._spec))
        kinds = [Kind(held, held.in_model(plan, checkpoints.MODEL))]
        kinds += [Kind(running, running.in_model(plan, checkpoints.BUFFER))]
        kinds += [Kind(held, held.in_vector(plan, checkpoints.OPTIMIZER + slot)) for slot in slots]
        return Wanted(self._directory / f"checkpoint-{step}.safetensors", plan, tuple(kinds))

    def _written(self, step: int, path: Path) -> None:
        self._channel.send(CheckpointWritten(step=step, path=str(path)))

    def _not_written(self, step: int, reason: str) -> None:
        self._channel.send(CheckpointFailed(step=step, reason=reason[:1000]))

    def _model(self, line: Line, result: Result) -> Path:
        """The whole model as a file; the same bytes at every stage."""
        card = modelfile.card(self._spec, self._blueprint.declared.model_copy(update={"weights": ""}), self._data)
        held, running = self._held, self._running
        plan = tensorfiles.layout(
            {**held.shapes, **running.shapes}, modelfile.metadata(replace(card, accuracy=result.accuracy))
        )
        path = self._directory / "model.safetensors"
        own = [Own.live(self._stage.weights), Own.live(self._stage.buffers)]
        if self._number > 0:
            give(line, result.step, own)
            copy(line, result.step, path, plan.size)
            return path
        kinds = (Kind(held, held.in_model(plan, "")), Kind(running, running.in_model(plan, "")))
        take(line, result.step, own, Wanted(path, plan, kinds))
        spread(line, result.step, path, plan.size)
        return path

    def _finished(self, path: Path, result: Result, began: float) -> None:
        self._channel.send(
            Finished(
                step=result.step,
                path=str(path),
                seconds=time.monotonic() - began,
                metrics=result.metrics(),
                lead=self._number == 0 and self._mine[0].replica == 0,
            )
        )


@dataclass(frozen=True)
class Others:
    """All other workers of the attempt that this one is linked with; see `worker.orders.Others`."""

    line: Line
    same: Collective

    def lost(self, node: str) -> None:
        self.line.lost(node)
        self.same.lost(node)

    def admit(self, peer: Peer) -> None:
        self.line.admit(peer)

    def close(self) -> None:
        self.line.close()
        self.same.close()


def _placed(peers: Sequence[Peer], shares: Sequence[Share], me: str, *, group: bool = False) -> list[Peer]:
    """The peers that hold these shares, ranked by their place among them; at the ports for those of the same stage if
    `group`. Raises Unavailable when one has not come to the start."""
    places = {share.node: place for place, share in enumerate(shares)}
    if missing := places.keys() - {me, *(peer.node for peer in peers)}:
        raise Unavailable(
            f"Workers are missing at the start: {', '.join(sorted(missing))}.",
            fix="The job is planned again for the nodes that are there.",
        )
    return [
        msgspec.structs.replace(peer, rank=places[peer.node], port=peer.group_port if group else peer.port)
        for peer in peers
        if peer.node in places
    ]


def _firsts(lines: Sequence[Sequence[Share]]) -> list[int]:
    """Layers with which the stages after the first begin, in all lines alike."""
    ranges = [share.layer_range for share in lines[0]]
    found = [span[0] for span in ranges[1:] if span is not None]
    alike = all([share.layer_range for share in line] == ranges for line in lines)
    if None in ranges or not alike or any(low >= high for low, high in pairwise([0, *found])):
        raise InvalidInput("The plan does not say which layers each stage holds.", fix="Submit the job again.")
    return found
