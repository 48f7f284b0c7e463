"""What a daemon and its forkservers say to each other: msgpack, one SOCK_SEQPACKET packet a message.

`Fork` carries two descriptors (SCM_RIGHTS): the worker's end of its channel and the write end of its log
pipe. `Forked` carries one: a pidfd of the worker, so that the daemon can kill it without racing the reuse of
its pid.
"""

from __future__ import annotations

import msgspec

from hivenode.net.local import WorkerLimits
from hivenode.spec.values import Name, Sentence

MAX_PACKET = 64 * 1024


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    number: int
    kind: Name
    limits: WorkerLimits


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The framework is imported. `threads` alive at that moment; more than one makes forking unsafe."""

    pid: int
    threads: int


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    number: int
    pid: int


class NotForked(msgspec.Struct, frozen=True, tag="not_forked"):
    number: int
    reason: Sentence


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """`code`: exit status, or the negated number of the signal that killed it. `peak_bytes`: the most memory that it
    had at once (getrusage(2), ru_maxrss), what it shared with its server included."""

    number: int
    code: int
    peak_bytes: int


FromForkserver = Hello | Forked | NotForked | Ended

REQUEST: msgspec.msgpack.Decoder[Fork] = msgspec.msgpack.Decoder(Fork)
REPLY: msgspec.msgpack.Decoder[FromForkserver] = msgspec.msgpack.Decoder(FromForkserver)
