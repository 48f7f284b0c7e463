"""Frames between a daemon and its workers: `u32 length | msgpack`, both lengths bounded, decoding typed.

The worker's side blocks and may be written to from several threads; the daemon's side is asyncio.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import msgspec

from hivenode.errors import Corrupted, InvalidInput
from hivenode.net.local import MAX_LOCAL_FRAME, FromWorker, ToWorker

_HEADER = struct.Struct("!I")
_TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """One frame, header included.

    Raises:
        InvalidInput: the message is larger than `MAX_LOCAL_FRAME`.
    """
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_LOCAL_FRAME:
        raise InvalidInput(
            f"A {type(message).__name__.lower()} message of {len(body)} bytes is over the "
            f"{MAX_LOCAL_FRAME} that pass between a daemon and a worker.",
            fix="Send fewer rows at once.",
        )
    return _HEADER.pack(len(body)) + body


def _length(header: bytes) -> int:
    length: int = _HEADER.unpack(header)[0]
    if length > MAX_LOCAL_FRAME:
        raise Corrupted(
            f"A local frame announces {length} bytes; at most {MAX_LOCAL_FRAME} are allowed.",
            fix="Daemon and worker must be of the same version.",
        )
    return length


def _truncated() -> Corrupted:
    return Corrupted("The local channel ended inside a frame.", fix="The other process was killed; see its log.")


def _unreadable(error: Exception) -> Corrupted:
    return Corrupted(
        f"A local frame could not be decoded: {error}.", fix="Daemon and worker must be of the same version."
    )


async def read_from_worker(reader: asyncio.StreamReader) -> FromWorker | None:
    """The next message of a worker; None at the end of the channel.

    A frame cut off by the end counts as the end: a worker may be killed while it writes.

    Raises:
        Corrupted: a frame is too long or not one of the messages.
    """
    try:
        header = await reader.readexactly(_HEADER.size)
        body = await reader.readexactly(_length(header))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return _FROM_WORKER.decode(body)
    except msgspec.DecodeError as error:
        raise _unreadable(error) from error


class Channel:
    """The worker's end of its channel to the daemon.

    Args:
        sock: a connected, blocking stream socket; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._writing = threading.Lock()

    def send(self, message: FromWorker) -> None:
        """Write one message; any thread may.

        Raises:
            InvalidInput: it is too large.
            OSError: the daemon is gone.
        """
        frame = encode(message)
        with self._writing:
            self._socket.sendall(frame)

    def receive(self) -> ToWorker | None:
        """Wait for the next message; None once the daemon is gone. One thread only.

        Raises:
            Corrupted: a frame is cut off, too long, or not one of the messages.
        """
        header = self._exactly(_HEADER.size)
        if not header:
            return None
        if len(header) < _HEADER.size:
            raise _truncated()
        length = _length(header)
        body = self._exactly(length)
        if len(body) < length:
            raise _truncated()
        try:
            return _TO_WORKER.decode(body)
        except msgspec.DecodeError as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except ConnectionError:
                break
            if not part:
                break
            parts += part
        return bytes(parts)
