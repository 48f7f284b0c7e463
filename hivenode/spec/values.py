"""Small values that travel between rooms and over the wire."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

NodeId = Annotated[str, msgspec.Meta(min_length=32, max_length=32, pattern=r"\A[a-z0-9]+\Z")]
"""32 lower-case base32 characters: the first 20 bytes of SHA-256 of the node's raw Ed25519 public key."""

HiveId = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
"""The same hash, of the hive authority's raw Ed25519 public key."""

Digest = Annotated[str, msgspec.Meta(min_length=64, max_length=64, pattern=r"\A[0-9a-f]+\Z")]
"""SHA-256 of a blob, 64 lower-case hexadecimal characters."""

JobId = Annotated[str, msgspec.Meta(min_length=3, max_length=40, pattern=r"\A[a-z0-9-]+\Z")]
"""Part of file names, hence the narrow alphabet."""
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Sentence = Annotated[str, msgspec.Meta(max_length=2000)]

COMPLEXITY_EDGES = (1e6, 1e8, 1e9)
"""Parameters: a model is small below 1e6, medium below 1e8, large below 1e9, xlarge from there."""


Precision = Literal["fp32", "bf16", "fp16"]


class Role(StrEnum):
    """What a member may do. `admin` grants and revokes, `submitter` submits jobs, `coordinator` may be elected
    and votes, `worker` runs assignments."""

    admin = "admin"
    submitter = "submitter"
    coordinator = "coordinator"
    worker = "worker"


class Strategy(StrEnum):
    """The five ways to break a job down; the order is the action order of the planner's table."""

    single_node = "single_node"
    data_parallel = "data_parallel"
    model_parallel = "model_parallel"
    pipeline_parallel = "pipeline_parallel"
    federated = "federated"


class Epoch(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A coordinator's term. Totally ordered: counter first, then the coordinator's node id."""

    counter: Annotated[int, msgspec.Meta(ge=0, le=2**48)]
    node: str = ""

    def __str__(self) -> str:
        return f"{self.counter}.{self.node[:6]}" if self.node else str(self.counter)


ZERO_EPOCH = Epoch(0, "")


class BlobRef(msgspec.Struct, frozen=True, array_like=True):
    """Immutable bytes by name: SHA-256 and length in bytes."""

    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=2**50)]


class Share(msgspec.Struct, frozen=True):
    """One node's part of a plan."""

    node: NodeId
    rank: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    weight: float
    """Fraction of every global batch this node computes, in (0, 1]; all shares sum to 1."""
    step_seconds: float
    """Predicted compute time of one step of this share, seconds."""
    memory_bytes: int
    """Predicted peak memory of the worker, bytes."""
    layer_range: tuple[int, int] | None = None
    """Layers it holds, first and past the last; None for all."""
    replica: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """Which line of stages it belongs to, where several lines share every batch."""
    input_shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=8)] = ()
    """Of one sample as it comes into its layers; empty where it is not known."""
    output_shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=8)] = ()


class Engine(StrEnum):
    """What the nodes of a data-parallel plan average by."""

    exchange = "exchange"
    """Our own, over TLS."""
    torch = "torch"
    """torch.distributed, in plaintext."""


class Candidate(msgspec.Struct, frozen=True):
    """One strategy as the planner saw it when it chose."""

    strategy: Strategy
    feasible: bool
    reason: Sentence
    """Why it was masked, or a sentence on how the time was predicted."""
    nodes: int = 0
    predicted_seconds: float | None = None
    residual: float = 0.0
    """Learned correction, natural log of measured/predicted."""
    visits: int = 0
    q: float | None = None


class Plan(msgspec.Struct, frozen=True):
    """A breakdown of one job over nodes."""

    strategy: Strategy
    shares: tuple[Share, ...]
    predicted_seconds: float
    reason: Sentence
    explored: bool
    state: tuple[int, int, int, int]
    """Planner state: complexity, dataset size, nodes, latency buckets."""
    candidates: tuple[Candidate, ...]
    micro_batches: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    """Small batches that each line of stages cuts its part of a batch into, where layers are divided."""
    precision: Precision = "fp32"
    """What all of them compute in."""
    engine: Engine = Engine.exchange
    engine_reason: Sentence = ""
    """Why that one, in a sentence; "" where nothing is averaged."""

    @property
    def staged(self) -> bool:
        """Whether layers are divided: no node can go on without those that hold the others."""
        return self.strategy in (Strategy.model_parallel, Strategy.pipeline_parallel)

    def lines(self) -> tuple[tuple[Share, ...], ...]:
        """Where layers are divided: the shares of each line, first stage first."""
        found: dict[int, list[Share]] = {}
        for share in sorted(self.shares, key=lambda share: share.rank):
            found.setdefault(share.replica, []).append(share)
        return tuple(tuple(found[replica]) for replica in sorted(found))
