"""The channel between a daemon and its workers: what they say, and the framing.

A socket pair made by the daemon and handed to the worker at its birth, so there is no path, no port and nobody
else on it. Frames are `u32 length | msgpack`. Large things (checkpoints, models) pass as files in the worker's
own directory and are named here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from hivenode.spec.tracing import TraceNumbers, TraceOrder
from hivenode.spec.values import BlobRef, JobId, Name, NodeId, Plan, Sentence

MAX_LOCAL_FRAME = 1024 * 1024


class _Local(msgspec.Struct, frozen=True, tag_field="t", omit_defaults=True):
    pass


class WorkerLimits(msgspec.Struct, frozen=True):
    threads: int
    memory_bytes: int
    """RLIMIT_DATA of the worker process."""
    nice: int


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """What this machine's owner lends to jobs, and what was brought here for this one.

    Attributes:
        directories: of transformers models, by the name that `hf:NAME` gives.
        packages: whose factories `python:` may call.
        private: declarations (JSON) of data that stay here, by the name that `private:NAME` gives.
        blobs: paths by digest.
    """

    directories: dict[str, str] = {}
    packages: tuple[str, ...] = ()
    private: dict[str, bytes] = {}
    blobs: dict[str, str] = {}


class Begin(_Local, frozen=True, tag="begin"):
    """First message to a training worker."""

    job: JobId
    attempt: int
    node: NodeId
    spec: bytes
    """The `JobSpec` as JSON."""
    plan: Plan
    directory: str
    """The worker's own directory; checkpoints and the model are written here."""
    host: str
    """Address to listen on for other workers (the node's own, or a loopback one)."""
    ports: tuple[int, int]
    """Inclusive port range for that listener; (0, 0) lets the system choose."""
    resume: str | None = None
    """Path of the checkpoint to continue from."""
    resources: Resources = Resources()
    trusted: tuple[str, ...] = ()
    """Subnets on which the owner lets workers speak in plaintext."""


class Peer(msgspec.Struct, frozen=True):
    node: NodeId
    rank: int
    host: str
    port: int
    certificate: str
    group_port: int = 0
    """Where it listens for those who hold the same stage of other lines; the certificate is the same."""


class PeersReady(_Local, frozen=True, tag="peers"):
    """Endpoints of the other workers of the attempt; training starts on it. Nodes of the plan missing here are lost
    already and are left out of the first view."""

    peers: tuple[Peer, ...]
    joining: bool = False
    """They train already: join them, and take over their state."""


class PeerJoining(_Local, frozen=True, tag="peer_joining"):
    """One more worker wants to take part."""

    peer: Peer


class PeerLost(_Local, frozen=True, tag="peer_lost"):
    """The daemon's failure detector has given this node up."""

    node: NodeId


class Predict(_Local, frozen=True, tag="predict"):
    """To a worker started for prediction: load the model once, answer each request."""

    request: int
    model: str
    """Path of the model file."""
    inputs: list[list[float]]
    """One flattened float32 sample a row, or its tokens."""
    texts: Annotated[list[str], msgspec.Meta(max_length=4096)] = []
    """Samples in the place of `inputs`."""
    continue_tokens: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    """How far to go on with each sample, of a model that writes text."""
    resources: Resources = Resources()


class Trace(_Local, frozen=True, tag="trace"):
    """Only message to a worker that traces: it answers and ends."""

    order: TraceOrder


class Cancel(_Local, frozen=True, tag="cancel"):
    reason: Sentence


class Ready(_Local, frozen=True, tag="ready"):
    """The worker has its data and model and listens for the others."""

    pid: int
    port: int
    certificate: str
    parameters: int
    group_port: int = 0
    """See `Peer`."""


class WorkerProgress(_Local, frozen=True, tag="progress"):
    """At most twice a second, and at every epoch's end. `accuracy` is on the held-out part, in [0, 1]."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float | None
    samples_per_second: float
    """By this worker; the sum over all of them is that of the job."""
    step_seconds: float
    """Mean compute time of this worker's share of a step since the last report, exchange excluded."""
    members: tuple[NodeId, ...]
    test_loss: float | None = None
    """On the held-out part, at an epoch's end."""
    convergence: float | None = None
    """By how much of itself the loss fell from one epoch to the next, as of the latest."""
    tokens_per_second: float | None = None
    """Of text."""
    share: float | None = None
    """Of the samples, that is this worker's; it moves with the workers' speeds."""


class ViewChanged(_Local, frozen=True, tag="view"):
    """The workers agreed to go on without `lost` and with `joined`, from `step`."""

    step: int
    members: tuple[NodeId, ...]
    lost: tuple[NodeId, ...]
    joined: tuple[NodeId, ...] = ()


class CheckpointWritten(_Local, frozen=True, tag="checkpoint"):
    """Complete and closed; the daemon takes the file over. Written by the lowest rank of the view only."""

    step: int
    path: str


class DebtsWritten(_Local, frozen=True, tag="debts"):
    """What this worker's codec has still to say as of a checkpoint's step: a file in the worker's directory, complete
    and closed. A worker of a later attempt on this node finds it in its own under the same name."""

    step: int
    path: str


class CheckpointFailed(_Local, frozen=True, tag="no_checkpoint"):
    """There is none of this step; training goes on, and the last one stands."""

    step: int
    reason: Annotated[str, msgspec.Meta(max_length=1000)]


class Finished(_Local, frozen=True, tag="finished"):
    """Every member writes the model; the files are bit-identical, `lead` marks the lowest rank of the view."""

    step: int
    path: str
    seconds: float
    """Wall time from PeersReady (or resume) to here."""
    metrics: Annotated[dict[str, float], msgspec.Meta(max_length=64)]
    lead: bool


class Predicted(_Local, frozen=True, tag="predicted"):
    request: int
    outputs: list[list[float]]
    """One row of class probabilities (or regression values) a sample."""
    labels: list[str]
    """Name of each output column."""
    texts: list[str] = []
    """Continuations, where they were asked for."""


class Traced(_Local, frozen=True, tag="traced"):
    numbers: TraceNumbers


class Failed(_Local, frozen=True, tag="failed"):
    """The worker ends after this. `retry`: another attempt elsewhere or later may work (lost peers, excluded,
    out of memory); otherwise the job itself is wrong."""

    code: Name
    message: Sentence
    fix: Sentence
    retry: bool
    request: int | None = None
    """Set when only this prediction failed and the worker lives on."""
    needed_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What it would have taken, where memory has run out; 0: it did not, or nobody knows."""


class Log(_Local, frozen=True, tag="log"):
    level: Literal["debug", "info", "warning", "error"]
    event: Annotated[str, msgspec.Meta(max_length=2000)]
    fields: Annotated[dict[str, str | int | float | bool | None], msgspec.Meta(max_length=32)] = {}


class Need(_Local, frozen=True, tag="need"):
    """The worker wants these pieces of its data."""

    blobs: Annotated[tuple[BlobRef, ...], msgspec.Meta(max_length=256)]


class Brought(_Local, frozen=True, tag="brought"):
    """The answer: their paths by digest, or why they cannot be had."""

    paths: dict[str, str]
    error: Sentence = ""
    fix: Sentence = ""


ToWorker = Begin | PeersReady | PeerJoining | PeerLost | Predict | Trace | Cancel | Brought
FromWorker = (
    Need | Ready | WorkerProgress | ViewChanged | CheckpointWritten | CheckpointFailed | Finished | Predicted | Traced
    | Failed | Log | DebtsWritten
)  # fmt: skip
