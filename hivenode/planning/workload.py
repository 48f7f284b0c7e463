"""What a job costs, in plain numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.spec.job import JobSpec
from hivenode.spec.split import held_out
from hivenode.spec.values import COMPLEXITY_EDGES, Precision, Strategy

DATASET_EDGES = (1e4, 1e6)
"""Samples: small below 10,000, medium below 1,000,000, large from there."""
NODES_EDGES = (2, 4, 8)
"""Nodes that may take part: one, 2-3, 4-7, 8 or more."""
LATENCY_EDGES = (0.002, 0.03)
"""Median round trip between them, seconds: one network below 2 ms, one region below 30 ms, far from there."""
SHAPE = (len(COMPLEXITY_EDGES) + 1, len(DATASET_EDGES) + 1, len(NODES_EDGES) + 1, len(LATENCY_EDGES) + 1)

BACKWARD_FACTOR = 3.0
"""Forward and backward together cost three times the forward pass: two products backward for each one forward."""

WIRE: Mapping[str, float] = {
    "auto": 1.0, "fp32": 1.0, "fp16": 0.5, "bf16": 0.5, "int8": 0.2503, "int4": 0.129, "topk": 0.0237,
}  # fmt: skip
"""Bytes that a codec of the exchange takes over those of float32; `auto` decides when it has measured."""

State = tuple[int, int, int, int]


class LayerNumbers(Protocol):
    """One layer as a model describes it; `flops` forward, per sample."""

    @property
    def parameters(self) -> int: ...
    @property
    def flops(self) -> float: ...
    @property
    def activation_bytes(self) -> int: ...
    @property
    def inner_bytes(self) -> int: ...
    @property
    def output(self) -> tuple[int, ...]: ...
    @property
    def passing_bytes(self) -> int: ...


class ModelNumbers(Protocol):
    """A model as it describes itself; FLOPs forward, per sample."""

    @property
    def parameters(self) -> int: ...
    @property
    def flops_per_sample(self) -> float: ...
    @property
    def activation_bytes_per_sample(self) -> int: ...
    @property
    def layers(self) -> Sequence[LayerNumbers]: ...


class DataNumbers(Protocol):
    """A data set as it describes itself."""

    @property
    def samples(self) -> int: ...
    @property
    def sample_bytes(self) -> int: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer that may be cut before and after."""

    parameters: int
    flops: float
    """Forward and backward, per sample."""
    activation_bytes: int
    """Output kept for the backward pass, and sent to the next stage, per sample."""
    inner_bytes: int = 0
    """Kept inside it besides, per sample."""
    output: tuple[int, ...] = ()
    """Shape of the output of one sample; empty where it is not known."""
    passing_bytes: int = 0
    """Taken for a moment, however many samples there are; by one layer at a time."""

    @property
    def kept_bytes(self) -> int:
        """All that is kept for the backward pass, per sample."""
        return self.activation_bytes + self.inner_bytes


@dataclass(frozen=True, slots=True)
class Workload:
    """One training job in numbers. FLOPs count forward and backward of one sample."""

    parameters: int
    flops_per_sample: float
    activation_bytes_per_sample: int
    samples: int
    """In the training part of the data."""
    batch_size: int
    epochs: int
    optimizer: str
    sample_bytes: int = 0
    layers: tuple[Layer, ...] = ()
    momentum: bool = False
    max_steps: int | None = None
    framework: str = "torch"
    needs: tuple[str, ...] = ()
    """What a node has to offer besides the framework."""
    libraries: tuple[str, ...] = ()
    """What has to be installed on it besides the framework."""
    sync_every: int = 1
    """Steps between two exchanges."""
    fragments: int = 1
    """Parts that are exchanged one after another within these."""
    overlap: int = 0
    """Steps that go on while one is."""
    wire: float = 1.0
    """Bytes on the wire over those of float32."""
    private: str = ""
    """Name of data of which each node has its own, and keeps it."""
    members: int = 0
    """Of an ensemble, each of which is fitted by one node."""
    precision: Literal["auto"] | Precision = "fp32"
    """What the person asked for: fp32, bf16, fp16 or auto."""
    engine: str = "auto"
    """What the job asks to be averaged by."""
    not_by_torch: str = ""
    """Why torch.distributed cannot do that; "" if it can."""
    normalised: int = 0
    """Layers of batch normalisation whose statistics nodes tell each other within every step."""
    masked: Mapping[Strategy, str] = field(default_factory=dict)
    """Strategies that cannot run for this framework and model, and why."""
    input_shape: tuple[int, ...] = ()
    """Of one sample."""
    checkpoint_every: int | None = None
    """Steps after which the state is kept."""
    exchanging: bool = False
    """Gradients go through the exchange, which takes two more vectors: to send from, and to receive into."""
    memory_factor: float = 1.0
    """What workers turned out to take over what these numbers say."""

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        *,
        model: ModelNumbers,
        data: DataNumbers,
        masked: Mapping[Strategy, str] | None = None,
        normalised: int = 0,
    ) -> Workload:
        """The numbers of a declared job. `normalised`: its layers of batch normalisation."""
        training = spec.training
        if not training.normalises_together(private=spec.data.kind == "private"):
            normalised = 0
        return cls(
            parameters=model.parameters,
            flops_per_sample=BACKWARD_FACTOR * model.flops_per_sample,
            activation_bytes_per_sample=model.activation_bytes_per_sample,
            samples=max(1, data.samples - held_out(data.samples, spec.data.test_fraction)),
            batch_size=training.batch_size,
            epochs=training.epochs,
            optimizer=training.optimizer,
            sample_bytes=data.sample_bytes,
            layers=tuple(
                Layer(
                    layer.parameters,
                    BACKWARD_FACTOR * layer.flops,
                    layer.activation_bytes,
                    layer.inner_bytes,
                    tuple(layer.output),
                    layer.passing_bytes,
                )
                for layer in model.layers
            ),
            momentum=training.momentum > 0,
            max_steps=training.max_steps,
            framework=spec.runtime,
            needs=spec.needs,
            libraries=spec.libraries,
            sync_every=training.sync_every if training.sync == "local" else 1,
            fragments=training.fragments,
            overlap=training.overlap,
            wire=WIRE[training.codec],
            precision=training.precision,
            private=spec.data.source if spec.data.kind == "private" else "",
            engine=training.engine,
            not_by_torch=f"it averages torch models, and this is one of {spec.framework}"
            if spec.framework != "torch"
            else "each node has samples of its own, and how many is agreed on first"
            if spec.data.kind == "private"
            else training.not_by_torch
            or ("it would normalise each node's part of a batch alone (training.batch_norm)" if normalised else ""),
            normalised=normalised,
            masked=masked or {},
            input_shape=tuple(data.input_shape),
            checkpoint_every=training.checkpoint_every_steps,
        )

    def taking(self, factor: float) -> Workload:
        """The same job, whose workers were seen to take so many times the memory that its numbers say."""
        layers = tuple(
            replace(
                layer,
                inner_bytes=math.ceil(factor * layer.kept_bytes) - layer.activation_bytes,
                passing_bytes=math.ceil(factor * layer.passing_bytes),
            )
            for layer in self.layers
        )
        activations = math.ceil(factor * self.activation_bytes_per_sample)
        return replace(self, layers=layers, activation_bytes_per_sample=activations, memory_factor=factor)

    @property
    def batch(self) -> int:
        """Samples in a full step: the batch, or the whole set where that is smaller."""
        return max(1, min(self.batch_size, self.samples))

    @property
    def steps(self) -> int:
        """Optimizer steps until the end."""
        steps = self.epochs * math.ceil(self.samples / self.batch)
        return max(1, steps if self.max_steps is None else min(steps, self.max_steps))

    @property
    def gradient_bytes(self) -> int:
        """One float32 per parameter."""
        return 4 * self.parameters

    @property
    def wire_bytes(self) -> int:
        """What is exchanged of them at a time."""
        return int(self.gradient_bytes * self.wire / self.fragments)

    @property
    def bytes_per_parameter(self) -> int:
        """Weights, gradients and the optimizer's state, float32: SGD 8, with momentum 12, Adam and AdamW 16; and what
        the exchange takes."""
        return math.ceil(self.memory_factor * (4 + self._state_bytes + (8 if self.exchanging else 0)))

    @property
    def _state_bytes(self) -> int:
        """Of one parameter in a checkpoint."""
        if self.optimizer == "sgd":
            return 8 if self.momentum else 4
        return 12

    @property
    def copy_bytes(self) -> int:
        """A worker that holds the whole model writes a copy of its state while it trains on."""
        if self.checkpoint_every is None or self.steps <= self.checkpoint_every:
            return 0
        return math.ceil(self.memory_factor * self._state_bytes * self.parameters)

    @property
    def data_bytes(self) -> int:
        """The training set in memory; each worker holds all of it."""
        return math.ceil(self.memory_factor * self.samples * self.sample_bytes)


def passing(layers: Sequence[Layer]) -> int:
    """Bytes that these layers, one after another, take for a moment."""
    return max((layer.passing_bytes for layer in layers), default=0)


def state_of(workload: Workload, nodes: Sequence[NodeProfile], cluster: ClusterView) -> State:
    """The row of the planner's table for this job on these nodes."""
    ids = sorted(node.node for node in nodes)
    trips = sorted(cluster.latency(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :])
    median = trips[len(trips) // 2] if trips else 0.0
    return (
        bisect_right(COMPLEXITY_EDGES, workload.parameters),
        bisect_right(DATASET_EDGES, workload.samples),
        bisect_right(NODES_EDGES, len(ids)),
        bisect_right(LATENCY_EDGES, median),
    )
