"""Everything a node may say to another node, typed and bounded. One msgpack map per frame, tagged with `t`.

A frame is at most `MAX_FRAME` bytes. Field bounds are part of the types, so a decoded message is a valid one.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from hivenode.data.info import DataInfo
from hivenode.spec.values import BlobRef, Digest, Epoch, JobId, Name, NodeId, Plan, Sentence

MAX_FRAME = 128 * 1024
PROTOCOL = "hive.v1"

Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Address = Annotated[str, msgspec.Meta(max_length=256)]
"""`host:port`, or `[v6]:port`."""


class _Message(msgspec.Struct, frozen=True, tag_field="t", omit_defaults=True):
    pass


# --- membership (SWIM) -----------------------------------------------------------------------------------------


class Alive(_Message, frozen=True, tag="alive"):
    """Signed by the subject: I run, at these addresses, in this incarnation (boot counter << 32 | sequence).
    `standing`: how fit I am to coordinate (`hive.standing`), 0 if I can neither vote nor lead. `leads`: the counter of
    the epoch in which I coordinate, said only where not every member gets my heartbeats."""

    node: NodeId
    incarnation: Incarnation
    name: Name
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=8)]
    version: Name
    standing: Annotated[int, msgspec.Meta(ge=0, le=255)]
    leads: Annotated[int, msgspec.Meta(ge=0, le=2**48)]
    signature: Signature


class Left(_Message, frozen=True, tag="left"):
    """Signed by the subject: I stopped on purpose."""

    node: NodeId
    incarnation: Incarnation
    signature: Signature


class Suspect(_Message, frozen=True, tag="suspect"):
    """Signed by the accuser `by`."""

    node: NodeId
    incarnation: Incarnation
    by: NodeId
    signature: Signature


class Dead(_Message, frozen=True, tag="dead"):
    """Signed by the accuser `by`."""

    node: NodeId
    incarnation: Incarnation
    by: NodeId
    signature: Signature


Statement = Alive | Left | Suspect | Dead
Statements = Annotated[tuple[Statement, ...], msgspec.Meta(max_length=256)]


class Ping(_Message, frozen=True, tag="ping"):
    sequence: Count
    gossip: Statements = ()


class Ack(_Message, frozen=True, tag="ack"):
    sequence: Count
    gossip: Statements = ()


class PingRequest(_Message, frozen=True, tag="ping_req"):
    """Probe `target` for me; answer with Ack or, in time, Nack under my sequence."""

    sequence: Count
    target: NodeId
    gossip: Statements = ()


class Nack(_Message, frozen=True, tag="nack"):
    sequence: Count


class Gossip(_Message, frozen=True, tag="gossip"):
    gossip: Statements


class PushPull(_Message, frozen=True, tag="push_pull"):
    """Whole membership as the sender sees it (in pieces of at most 256); `reply` asks for the other's."""

    members: Statements
    reply: bool


class Sums(_Message, frozen=True, tag="sums"):
    """Whole membership as the sender sees it, in brief: members fall by a hash of their ids into a number of groups,
    and this is an 8-byte hash of each. Who sees it otherwise answers with a PushPull of the groups that differ and, to
    `reply`, with its own Sums."""

    sums: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8 * 1024)]
    reply: bool


# --- certificates ----------------------------------------------------------------------------------------------


class Certificate(_Message, frozen=True, tag="cert"):
    """My certificate was renewed, and this link need not end with the old one. X.509, DER."""

    der: Annotated[bytes, msgspec.Meta(max_length=4096)]


class Renew(_Message, frozen=True, tag="renew"):
    """Make a new certificate for this member. Whoever cannot passes it on, if it comes from that member itself."""

    node: NodeId


class Renewed(_Message, frozen=True, tag="renewed"):
    """A certificate for whoever asked, PEM."""

    certificate: Annotated[str, msgspec.Meta(max_length=8192)]


class AuthorityRequest(_Message, frozen=True, tag="authority_req"):
    """I have the admin role: let me keep a copy of the authority's key."""


class AuthorityKey(_Message, frozen=True, tag="authority"):
    """The hive's private key, 32 raw bytes. Sent to members with the admin role only."""

    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

    def __repr__(self) -> str:
        return "AuthorityKey()"


# --- election --------------------------------------------------------------------------------------------------


class VoteRequest(_Message, frozen=True, tag="vote_req"):
    """`trial` is the pre-vote: would you? It persists nothing."""

    epoch: Epoch
    trial: bool


class VoteReply(_Message, frozen=True, tag="vote"):
    epoch: Epoch
    trial: bool
    granted: bool
    highest: Epoch


class Heartbeat(_Message, frozen=True, tag="beat"):
    """`heir`: the member to which the leader hands over, and which may be voted for although the leader lives."""

    epoch: Epoch
    heir: Annotated[str, msgspec.Meta(max_length=32)] = ""


class HeartbeatAck(_Message, frozen=True, tag="beat_ack"):
    """The epoch that the sender obeys. `over`, from the leader itself: it has laid this epoch down."""

    epoch: Epoch
    over: bool = False


# --- feeds -----------------------------------------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One signed entry of a feed. `signature` covers the msgpack of the other fields plus the hive id."""

    author: NodeId
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    prev: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """SHA-256 of the previous event's encoding; zeros for the first."""
    hlc: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    """Hybrid logical clock: milliseconds << 16 | counter."""
    body: Annotated[bytes, msgspec.Meta(max_length=100_000)]
    signature: Signature


class FeedHeads(_Message, frozen=True, tag="heads"):
    """Version vector: highest sequence number held of each author; a hash over the events under these numbers; and the
    number and digest of the latest seal."""

    heads: Annotated[dict[NodeId, Count], msgspec.Meta(max_length=2000)]
    reply: bool = False
    seal: Count = 0
    digest: Annotated[str, msgspec.Meta(max_length=64)] = ""
    tips: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class FeedSummary(_Message, frozen=True, tag="heads_hash"):
    """SHA-256 of the version vector and the latest seal: answered with FeedHeads by whoever has another."""

    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class SealOffered(_Message, frozen=True, tag="seal"):
    """The receiver is behind what is sealed: the file of seal `number` can be fetched from the sender."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    digest: Digest
    """Of the snapshot."""
    blob: BlobRef


class FeedDelta(_Message, frozen=True, tag="delta"):
    """Consecutive events the receiver lacks; `more` says that further ones follow once these are acknowledged by
    a new FeedHeads."""

    events: Annotated[tuple[Event, ...], msgspec.Meta(max_length=512)]
    more: bool = False


# --- jobs ------------------------------------------------------------------------------------------------------


class Assign(_Message, frozen=True, tag="assign"):
    """Coordinator to executor: run your share of this attempt."""

    job: JobId
    attempt: Count
    epoch: Epoch
    spec: Annotated[bytes, msgspec.Meta(max_length=65536)]
    plan: Plan
    resume: BlobRef | None = None
    resume_step: int = 0
    resume_holders: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=64)] = ()
    planned: Epoch | None = None
    """In which it was planned, if not in this one."""
    joining: bool = False
    """The attempt runs already: an earlier worker of it here, if any, has ended."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where the worker of `node` listens for the other workers of its attempt, and the certificate (PEM) it will
    show. Passed on by the coordinator over authenticated links; workers trust exactly these certificates."""

    node: NodeId
    rank: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    address: Address
    certificate: Annotated[str, msgspec.Meta(max_length=4096)]
    group_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    """Where it listens, at the same host, for those who hold the same stage of other lines; 0: nowhere."""


class Start(_Message, frozen=True, tag="start"):
    """Coordinator to the executors that have prepared an attempt: these are the workers, begin."""

    job: JobId
    attempt: Count
    planned: Epoch
    epoch: Epoch
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=128)]
    joining: bool = False
    """The others train already; this worker is to join them."""


class Welcome(_Message, frozen=True, tag="welcome"):
    """Coordinator to the executors of a running attempt: this worker is to be let in."""

    job: JobId
    attempt: Count
    planned: Epoch
    epoch: Epoch
    endpoint: Endpoint


class Adopt(_Message, frozen=True, tag="adopt"):
    """A coordinator claims the attempt that was planned in epoch `planned` and asks how it stands."""

    job: JobId
    attempt: Count
    planned: Epoch
    epoch: Epoch


class Stop(_Message, frozen=True, tag="stop"):
    """Kill the workers of this job."""

    job: JobId
    epoch: Epoch
    reason: Sentence


class Standing(_Message, frozen=True, tag="standing"):
    """Reply to Assign, Start, Adopt and Stop: what this executor has of that attempt.
    `state`: none, preparing, prepared, running, finished, failed."""

    job: JobId
    attempt: Count
    state: Name
    step: int = 0
    detail: Sentence = ""
    fix: Sentence = ""
    retry: bool = True
    """After `failed`: whether another attempt may work."""
    needed_bytes: Count = 0
    """After `failed` for want of memory: what the worker would have taken."""
    endpoint: Endpoint | None = None


class Progress(_Message, frozen=True, tag="progress"):
    """How a worker is getting on; sent at most twice a second to every linked node."""

    job: JobId
    attempt: Count
    node: NodeId
    step: Count
    steps: Count
    epoch: Count
    epochs: Count
    loss: float
    accuracy: float | None
    samples_per_second: float
    members: Count
    state: Name = "running"
    """running, finished or failed."""
    test_loss: float | None = None
    convergence: float | None = None
    """By how much of itself the loss fell in the latest whole epoch."""
    tokens_per_second: float | None = None
    trouble: Sentence = ""
    """What it goes on in spite of."""
    share: float | None = None
    """Of the samples, that is this worker's."""


class Hold(_Message, frozen=True, tag="hold"):
    """Please fetch this blob from me and keep it. Replied to with Held once it is on disk."""

    blob: BlobRef
    announce: bool = False
    """State in your feed that you hold it (models; checkpoints are stated by whoever made them)."""


class Held(_Message, frozen=True, tag="held"):
    digest: Digest


class Waiting(_Message, frozen=True, tag="waiting"):
    """Why an open job does not run, from who coordinates; to every linked node and the submitter, now and then."""

    job: JobId
    epoch: Epoch
    reason: Sentence


class Have(_Message, frozen=True, tag="have"):
    """Which of these blobs are really there, whole? What is found damaged is thrown away."""

    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=16)]


class Having(_Message, frozen=True, tag="having"):
    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=16)]
    damaged: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=16)] = ()
    """Were there until now, and were not what they should be."""


class LogsRequest(_Message, frozen=True, tag="logs_req"):
    job: JobId
    after: Count = 0
    """Line number to start after."""


class LogsReply(_Message, frozen=True, tag="logs"):
    lines: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=8192)], ...], msgspec.Meta(max_length=1000)]
    """JSON objects as written, one a line."""
    next: Count
    more: bool


CONFIG_BYTES = 16_384
"""Of the largest configuration of a model that is told to others."""
OFFERED_CHARACTERS = 128
Offered = Annotated[str, msgspec.Meta(max_length=OFFERED_CHARACTERS)]
"""`private:NAME`, `hf:NAME` or `python:PACKAGE`."""


class ProfileRequest(_Message, frozen=True, tag="profile_req"):
    about: Annotated[tuple[Offered, ...], msgspec.Meta(max_length=8)] = ()
    """What of the node's own a job needs, to be told all that there is to say about it."""


class Offer(msgspec.Struct, frozen=True):
    """Something that only some nodes have.

    Attributes:
        info: of data, without the names of the outputs.
        same: a digest that nodes which may work together have in common; "" where it does not matter.
        parameters: of a model.
        config: of a model, as JSON, if the request was about it; empty where it is too large.
    """

    name: Offered
    info: DataInfo | None = None
    same: Annotated[str, msgspec.Meta(max_length=64)] = ""
    parameters: Count = 0
    config: Annotated[bytes, msgspec.Meta(max_length=CONFIG_BYTES)] = b""


class Unfit(msgspec.Struct, frozen=True):
    """Something that its owner would offer, was it not for what is wrong with it."""

    name: Offered
    reason: Sentence
    fix: Sentence


MAX_LINES = 128
"""To peers, told in one profile."""


class ProfileReply(_Message, frozen=True, tag="profile"):
    """What a node has measured of itself, for the planner."""

    flops: float
    """Effective float32 FLOP/s of one worker."""
    memory_bytes: Count
    """Free for a worker now."""
    cores: Count
    bandwidth: float
    """Bytes/s of its own line: the best that one to a peer was measured at; a guess where `lines` is empty."""
    frameworks: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)]
    running: Count
    """Assignments it is working on."""
    paused: Sentence = ""
    """Why it takes no work now; empty when it does."""
    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=128)] = ()
    versions: Annotated[dict[Name, Name], msgspec.Meta(max_length=32)] = {}
    """Of what jobs may need and is installed."""
    bf16: bool = False
    """Its processor has instructions for products of bfloat16."""
    fp16: bool = False
    """Likewise of float16."""
    address: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """Where its workers listen for others'."""
    trusted: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    """Subnets on which its owner lets workers speak in plaintext."""
    looking: Annotated[tuple[Offered, ...], msgspec.Meta(max_length=128)] = ()
    """What it may soon offer, once it has been read."""
    unfit: Annotated[tuple[Unfit, ...], msgspec.Meta(max_length=8)] = ()
    """Of what the request was about."""
    lines: Annotated[dict[NodeId, float], msgspec.Meta(max_length=MAX_LINES)] = {}
    """Bytes/s that came in from peers, as measured; the ones measured last if there are more."""


class Failure(_Message, frozen=True, tag="failure"):
    """A request was refused: a HiveError by value."""

    code: Name
    message: Sentence
    fix: Sentence


class Keep(_Message, frozen=True, tag="keep"):
    """Between the transports, of the link it arrives on: whether the sender wants it kept up. One that neither end
    wants is closed when it has been idle."""

    wanted: bool


Request = (
    Assign | Start | Welcome | Adopt | Stop | Hold | Have | LogsRequest | ProfileRequest | Renew | AuthorityRequest
)
Response = Standing | Held | Having | LogsReply | ProfileReply | Renewed | AuthorityKey | Failure


class Call(_Message, frozen=True, tag="call"):
    id: Count
    request: Request


class Reply(_Message, frozen=True, tag="reply"):
    id: Count
    response: Response


Message = (
    Ping | Ack | PingRequest | Nack | Gossip | PushPull | Sums
    | VoteRequest | VoteReply | Heartbeat | HeartbeatAck
    | FeedHeads | FeedSummary | FeedDelta | SealOffered
    | Progress | Waiting
    | Certificate
    | Call | Reply
    | Keep
)  # fmt: skip

PRIORITY: dict[type, int] = {
    VoteRequest: 0, VoteReply: 0, Heartbeat: 0, HeartbeatAck: 0,
    Keep: 1, Ping: 1, Ack: 1, PingRequest: 1, Nack: 1, Gossip: 1, PushPull: 1, Sums: 1,
    Call: 2, Reply: 2, Certificate: 2,
    FeedHeads: 3, FeedSummary: 3, FeedDelta: 3, SealOffered: 3, Progress: 3, Waiting: 3,
}  # fmt: skip
"""Outbound queue of each message type: election, membership, rpc, gossip. Lower goes first."""
