"""What is said for torch.distributed: between members, as notes of the exchange, and between a worker and its child
process. Typed and bounded."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Annotated, Generic, TypeVar

import msgspec

from hivenode.data.info import DataInfo
from hivenode.net.local import Resources
from hivenode.spec.values import Precision

MAX_KEYS = 512
MAX_VALUE = 32 * 1024
"""Bytes."""
MAX_FRAME = 64 << 20
"""Bytes between a worker and its child; a `Birth` has the names of all classes."""

Key = Annotated[str, msgspec.Meta(max_length=512)]
Value = Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE)]
Keys = Annotated[tuple[Key, ...], msgspec.Meta(max_length=MAX_KEYS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Message(msgspec.Struct, frozen=True, tag_field="t"):
    pass


# --- a store: keys and values that members share ------------------------------------------------------------------


class Set(_Message, frozen=True, tag="set"):
    key: Key
    value: Value


class Append(_Message, frozen=True, tag="append"):
    key: Key
    value: Value


class Add(_Message, frozen=True, tag="add"):
    key: Key
    amount: Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class CompareSet(_Message, frozen=True, tag="compare_set"):
    """Sets `desired` where the value is `expected`, or where there is none and `expected` is empty."""

    key: Key
    expected: Value
    desired: Value


class Wait(_Message, frozen=True, tag="wait"):
    """Answered when there are values for all of these; with them, if `values`."""

    keys: Keys
    values: bool = False


class Check(_Message, frozen=True, tag="check"):
    keys: Keys


class Delete(_Message, frozen=True, tag="delete"):
    key: Key


class Size(_Message, frozen=True, tag="size"):
    pass


Wish = Set | Append | Add | CompareSet | Wait | Check | Delete | Size


class Answer(msgspec.Struct, frozen=True):
    """Attributes:
    values: asked for.
    number: a sum, a count, or 1 for yes.
    error: why not.
    """

    values: tuple[Value, ...] = ()
    number: int = 0
    error: Annotated[str, msgspec.Meta(max_length=500)] = ""


# --- between members ----------------------------------------------------------------------------------------------


class Ask(_Message, frozen=True, tag="ask"):
    """To the member that keeps a generation's store."""

    generation: Count
    number: Count
    wish: Wish


class Told(_Message, frozen=True, tag="told"):
    generation: Count
    number: Count
    answer: Answer


class Broken(_Message, frozen=True, tag="broken"):
    """`step` failed here in that generation, and those before it are finished, the last of them with `loss`: no more
    will come of this generation. Where do you stand?"""

    generation: Count
    step: Count
    loss: float


class Stand(_Message, frozen=True, tag="stand"):
    """The answer: `step` is finished here, with that loss; or it is not, and never will be in that generation."""

    generation: Count
    step: Count
    finished: bool
    loss: float


Letter = Ask | Told | Broken | Stand


# --- between a worker and its child -------------------------------------------------------------------------------


class Birth(_Message, frozen=True, tag="birth"):
    """First to a child: what it is.

    Attributes:
        model: the declaration, as JSON.
        places: byte offsets of weights, buffers, gradient and batch in the shared memory, then its size.
        codec: fp32, fp16 or bf16.
        host: the only address it listens on.
        namespace: of its keys in the store.
    """

    model: bytes
    info: DataInfo
    seed: int
    resources: Resources
    threads: int
    precision: Precision
    places: tuple[int, int, int, int, int]
    codec: str
    host: str
    namespace: str
    rank: int
    size: int


class Step(_Message, frozen=True, tag="step"):
    """Compute the gradient of a batch, which lies in the shared memory, and average it with the others'.

    Attributes:
        inputs, labels: shape and dtype of each; one follows the other.
        scale: this member's part of the global batch, times the number of members and, in float16, the loss scale.
        part: the same part, of 1.
        draw: seed of what the model draws.
    """

    inputs: tuple[tuple[int, ...], str]
    labels: tuple[tuple[int, ...], str]
    scale: float
    part: float
    draw: int


class Formed(_Message, frozen=True, tag="formed"):
    """All have met."""


class Held(_Message, frozen=True, tag="held"):
    """The averaged gradient lies in the shared memory, whole. Whether all others have theirs is not known yet."""


class Done(_Message, frozen=True, tag="done"):
    """All have theirs."""

    loss: float
    """Mean over the global batch."""
    seconds: float
    """Of forward and backward."""


class Trouble(_Message, frozen=True, tag="trouble"):
    """The child ends after this. `own`: the cause is here, not with the others or the network."""

    text: str
    own: bool


class Request(_Message, frozen=True, tag="request"):
    """On a connection of its own: a wish for the store."""

    number: Count
    wish: Wish


class Reply(_Message, frozen=True, tag="reply"):
    number: Count
    answer: Answer


ToChild = Birth | Step
FromChild = Formed | Held | Done | Trouble

_LENGTH = struct.Struct("!I")
T = TypeVar("T")

_letters: msgspec.msgpack.Decoder[Letter] = msgspec.msgpack.Decoder(Letter)


def encode(letter: Letter) -> bytes:
    return msgspec.msgpack.encode(letter)


def decode(body: bytes) -> Letter:
    """Raises msgspec.MsgspecError."""
    return _letters.decode(body)


class Pipe(Generic[T]):
    """Messages over a stream socket, which it owns. Any thread may send, one may receive.

    Args:
        heard: the type of what comes in.
    """

    def __init__(self, connection: socket.socket, heard: type[T]) -> None:
        self._socket = connection
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(heard)
        self._sending = threading.Lock()

    def send(self, message: _Message) -> bool:
        """False when the other side is gone."""
        body = msgspec.msgpack.encode(message)
        try:
            with self._sending:
                self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> T | None:
        """The next message; None when the other side is gone, or silent for so long."""
        self._socket.settimeout(seconds)
        try:
            header = self._exactly(_LENGTH.size)
            length = _LENGTH.unpack(header)[0]
            return self._decoder.decode(self._exactly(length)) if length <= MAX_FRAME else None
        except OSError:
            return None

    def hang_up(self) -> None:
        """Make both sides' `receive` end; from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Once nobody receives."""
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionResetError
            parts += part
        return bytes(parts)
