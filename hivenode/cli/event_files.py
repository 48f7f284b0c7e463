"""TensorBoard's event files: TFRecords (length and data, each with a masked CRC-32C) of `Event` messages in protocol
buffers (tensorflow/core/util/event.proto). Scalars only."""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType

from hivenode.cli.curves import Point

TAGS = {
    "loss": "loss/train",
    "test_loss": "loss/held_out",
    "accuracy": "accuracy/held_out",
    "samples_per_second": "speed/samples_per_second",
    "tokens_per_second": "speed/tokens_per_second",
    "seconds": "speed/seconds_per_epoch",
    "epoch": "training/epoch",
    "learning_rate": "training/learning_rate",
    "convergence": "training/convergence",
}
"""By the name of a measurement what TensorBoard shows it under."""


class EventFile:
    """One file, begun anew. Raises OSError when it cannot be written.

    Args:
        folder: of the run; made if need be.
        began: seconds since 1970; part of the file's name.
        host: the other part.
    """

    def __init__(self, folder: Path, began: float, host: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(began)}.{host}"
        self._file = self.path.open("wb")
        self._file.write(record(_time(began) + _text(3, b"brain.Event:2")))

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, point: Point) -> None:
        """What is in it that has a tag."""
        told = [_text(1, _text(1, tag.encode()) + b"\x15" + struct.pack("<f", point.values[name]))
                for name, tag in TAGS.items() if name in point.values]  # fmt: skip
        if told:
            self._file.write(record(_time(point.at) + b"\x10" + _varint(point.step) + _text(5, b"".join(told))))

    def flush(self) -> None:
        """So that a TensorBoard that runs shows it."""
        self._file.flush()


def record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _time(seconds: float) -> bytes:
    return b"\x09" + struct.pack("<d", seconds)


def _text(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _table()


def _masked(data: bytes) -> bytes:
    """CRC-32C (RFC 3720, appendix B.4), rotated and shifted as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
