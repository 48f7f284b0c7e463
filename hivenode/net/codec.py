"""Messages to and from bytes: one msgpack map per frame, decoded straight into typed, bounded structures.

msgspec refuses what does not fit the types while it reads, so a frame that claims a million elements costs nothing.
"""

from __future__ import annotations

import msgspec

from hivenode.net.messages import MAX_FRAME, Message

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class ProtocolError(Exception):
    """A frame that the protocol does not allow; the text names what was wrong with it."""


def encode(message: Message) -> bytes:
    """The frame of a message.

    Raises:
        ProtocolError: the message does not fit into a frame, or holds a value that has no encoding.
    """
    try:
        frame = _ENCODER.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be encoded: {error}") from error
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"{type(message).__name__} of {len(frame)} bytes exceeds the frame limit of {MAX_FRAME}")
    return frame


def decode(frame: bytes) -> Message:
    """The message in a frame.

    Raises:
        ProtocolError: the frame is too large, not msgpack, or not a valid message.
    """
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"frame of {len(frame)} bytes exceeds the limit of {MAX_FRAME}")
    try:
        return _DECODER.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"frame of {len(frame)} bytes is not a valid message: {error}") from error
