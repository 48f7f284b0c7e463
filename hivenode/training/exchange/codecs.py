"""How numbers are written for the wire: float32 as they are, in half the bytes, in a quarter, or only the largest.

A codec turns any run of float32 into a number of bytes that follows from its length alone, and back. Decoding is a
function of the bytes: everybody who decodes the same bytes holds the same bits. It trusts nothing: bytes of the wrong
length, scales that are not finite, places outside of their chunk are refused before a number is believed.

Lossy codecs are used with `Feedback`: what a message could not say is added to the next one (Seide et al.,
Interspeech 2014; Karimireddy et al., arXiv 1901.09847), so that the sum of what arrives follows the sum of what was
meant.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.training.exchange.reduction import Vector

Bytes = npt.NDArray[np.uint8]

PIECE = 16 * 4096
"""Elements worked on at a time, so that what is worked on stays in the cache; a multiple of every block."""
_EXPONENT16, _QUIET16 = np.uint16(0x7F80), np.uint16(0x0040)


class Undecodable(Exception):
    """Bytes that no encoder has written.

    Attributes:
        nonfinite: they say a NaN or an infinity, which an encoder does write when it is given one.
    """

    def __init__(self, why: str, *, nonfinite: bool = False) -> None:
        super().__init__(why)
        self.nonfinite = nonfinite


class Codec(Protocol):
    """Stateless; safe from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def lossless(self) -> bool: ...

    def size(self, count: int) -> int:
        """Bytes that `count` elements take."""
        ...

    def encode(self, values: Vector, out: Bytes) -> None:
        """Write all of `values` to `out`, (size(len(values)),) bytes. Values too large for the codec become its
        largest; a NaN or an infinity makes the bytes undecodable."""
        ...

    def decode(self, data: Bytes, out: Vector) -> None:
        """Fill `out`. Raises Undecodable; what `out` holds then is of no use."""
        ...


def _expect(codec: Codec, data: Bytes, count: int) -> None:
    if data.dtype != np.uint8 or data.size != codec.size(count):
        raise Undecodable(f"{data.size} bytes of {codec.name} where {codec.size(count)} say {count} numbers")


def _finite(values: Vector) -> None:
    if not np.isfinite(values).all():
        raise Undecodable("numbers that are not finite", nonfinite=True)


class Float32:
    """As it is."""

    name, lossless = "fp32", True

    def size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Vector, out: Bytes) -> None:
        out[:] = values.view(np.uint8)

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        out.view(np.uint8)[:] = data
        _finite(out)


class Float16:
    """IEEE 754 half precision, rounded to nearest: relative error 2**-11 above 6e-5, largest value 65504."""

    name, lossless = "fp16", False

    def size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Vector, out: Bytes) -> None:
        halves = np.empty(min(values.size, PIECE), np.float16)
        for start in range(0, values.size, PIECE):
            piece = values[start : start + PIECE]
            half = halves[: piece.size]
            with np.errstate(over="ignore", invalid="ignore"):
                half[:] = piece
            over = np.isinf(half)
            if over.any():
                over &= np.isfinite(piece)
                half[over] = np.copysign(np.float16(65504), half[over])
            out[2 * start : 2 * (start + piece.size)] = half.view(np.uint8)

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        for start in range(0, out.size, PIECE):
            piece = out[start : start + PIECE]
            piece[:] = _aligned(data[2 * start : 2 * (start + piece.size)], np.float16)
            _finite(piece)


class BFloat16:
    """The upper half of a float32, rounded to nearest even: relative error 2**-8 over the whole range of float32."""

    name, lossless = "bf16", False

    def size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Vector, out: Bytes) -> None:
        for start in range(0, values.size, PIECE):
            bits = values[start : start + PIECE].view(np.uint32)
            rounded = bits >> np.uint32(16)
            rounded &= np.uint32(1)
            rounded += np.uint32(0x7FFF)
            with np.errstate(over="ignore"):
                rounded += bits
            rounded >>= np.uint32(16)
            half = rounded.astype(np.uint16)
            full = (half & _EXPONENT16) == _EXPONENT16
            given = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
            if full.any() or given.any():
                upper = (bits >> np.uint32(16)).astype(np.uint16)
                half = np.where(given, upper | _QUIET16, np.where(full, upper, half))
            out[2 * start : 2 * (start + half.size)] = half.view(np.uint8)

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        for start in range(0, out.size, PIECE):
            piece = out[start : start + PIECE]
            bits = piece.view(np.uint32)
            bits[:] = _aligned(data[2 * start : 2 * (start + piece.size)], np.uint16)
            bits <<= np.uint32(16)
            _finite(piece)


class Int8:
    """Blocks of 4096: a float32 scale, the block's largest magnitude over 127, and a signed byte for each number.
    Error at most half a scale."""

    name, lossless = "int8", False
    block, levels = 4096, 127

    def size(self, count: int) -> int:
        return count + 4 * _blocks(count, self.block)

    def encode(self, values: Vector, out: Bytes) -> None:
        count = values.size
        scales = np.empty(_blocks(count, self.block), np.float32)
        codes = out[scales.nbytes :].view(np.int8)
        for start in range(0, count, PIECE):
            piece = values[start : start + PIECE]
            first = start // self.block
            quantised = _quantise(piece, self.block, self.levels, scales[first:])
            codes[start : start + piece.size] = quantised
        out[: scales.nbytes] = scales.view(np.uint8)

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        scales = _scales(data, _blocks(out.size, self.block), self.levels)
        codes = data[scales.nbytes :].view(np.int8)
        for start in range(0, out.size, PIECE):
            piece = out[start : start + PIECE]
            piece[:] = codes[start : start + piece.size]
            _scale(piece, self.block, scales[start // self.block :])


class Int4:
    """Blocks of 256: a float32 scale, the largest magnitude over 7, and half a byte for each number."""

    name, lossless = "int4", False
    block, levels = 256, 7

    def size(self, count: int) -> int:
        return (count + 1) // 2 + 4 * _blocks(count, self.block)

    def encode(self, values: Vector, out: Bytes) -> None:
        count = values.size
        scales = np.empty(_blocks(count, self.block), np.float32)
        codes = out[scales.nbytes :]
        for start in range(0, count, PIECE):
            piece = values[start : start + PIECE]
            raised = np.zeros(piece.size + piece.size % 2, np.uint8)
            raised[: piece.size] = _quantise(piece, self.block, self.levels, scales[start // self.block :])
            raised &= np.uint8(0x0F)
            raised[1::2] <<= np.uint8(4)
            np.bitwise_or(raised[0::2], raised[1::2], out=codes[start // 2 : start // 2 + raised.size // 2])
        out[: scales.nbytes] = scales.view(np.uint8)

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        scales = _scales(data, _blocks(out.size, self.block), self.levels)
        codes = data[scales.nbytes :].view(np.int8)
        for start in range(0, out.size, PIECE):
            piece = out[start : start + PIECE]
            pairs = codes[start // 2 : (start + piece.size + 1) // 2]
            piece[0::2] = (pairs << np.int8(4)) >> np.int8(4)
            piece[1::2] = (pairs >> np.int8(4))[: piece.size // 2]
            _scale(piece, self.block, scales[start // self.block :])


class TopK:
    """Chunks of 4096: the 128 numbers of largest magnitude, each by a 16-bit place and a signed byte, and a float32
    scale (as in SparseLoCo, arXiv 2508.15706). All others are 0 to whoever decodes."""

    name, lossless = "topk", False
    block, kept, levels = 4096, 128, 127

    def size(self, count: int) -> int:
        whole, rest = divmod(count, self.block)
        return whole * (4 + 3 * self.kept) + (4 + 3 * self._kept(rest) if rest else 0)

    def _kept(self, width: int) -> int:
        return max(1, -(-width * self.kept // self.block))

    def encode(self, values: Vector, out: Bytes) -> None:
        at = 0
        for start, rows, width in self._runs(values.size):
            kept = self._kept(width)
            piece = values[start : start + rows * width].reshape(rows, width)
            magnitudes = np.abs(piece)
            places = np.argpartition(magnitudes, width - kept, axis=1)[:, width - kept :]
            places.sort(axis=1)
            chosen = np.take_along_axis(piece, places, axis=1)
            scales = np.empty(rows, np.float32)
            codes = _quantise(np.ascontiguousarray(chosen).ravel(), kept, self.levels, scales)
            size = rows * (4 + 3 * kept)
            target = out[at : at + size]
            target[: 4 * rows] = scales.view(np.uint8)
            target[4 * rows : rows * (4 + 2 * kept)] = places.astype("<u2").view(np.uint8).ravel()
            target[rows * (4 + 2 * kept) :] = codes.view(np.uint8)
            at += size

    def decode(self, data: Bytes, out: Vector) -> None:
        _expect(self, data, out.size)
        out.fill(0.0)
        at = 0
        for start, rows, width in self._runs(out.size):
            kept = self._kept(width)
            size = rows * (4 + 3 * kept)
            source = data[at : at + size]
            scales = _scales(source, rows, self.levels)
            places = _aligned(source[4 * rows : rows * (4 + 2 * kept)], np.dtype("<u2")).reshape(rows, kept)
            if (places >= width).any() or (places[:, 1:] <= places[:, :-1]).any():
                raise Undecodable("places that are not in a chunk, or not in order")
            chosen = source[rows * (4 + 2 * kept) :].view(np.int8).astype(np.float32)
            _scale(chosen, kept, scales)
            piece = out[start : start + rows * width].reshape(rows, width)
            np.put_along_axis(piece, places.astype(np.int64), chosen.reshape(rows, kept), axis=1)
            at += size

    def _runs(self, count: int) -> list[tuple[int, int, int]]:
        """(first element, rows, width) of pieces whose chunks are of one width."""
        whole = count // self.block * self.block
        runs = [
            (start, (min(start + PIECE, whole) - start) // self.block, self.block) for start in range(0, whole, PIECE)
        ]
        return [*runs, (whole, 1, count - whole)] if count > whole else runs


def _blocks(count: int, block: int) -> int:
    return -(-count // block)


def _quantise(values: Vector, block: int, levels: int, scales: Vector) -> npt.NDArray[np.int8]:
    """Signed codes of `values`; each block's scale goes to `scales`. A block that is not finite gets the scale NaN."""
    count, whole = values.size, values.size // block * block
    work = np.empty(count, np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
        for start, stop, width in ((0, whole, block), (whole, count, count - whole)):
            if start == stop:
                continue
            rows = values[start:stop].reshape(-1, width)
            target = work[start:stop].reshape(-1, width)
            largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
            scale = np.minimum(largest / np.float32(levels), _largest_scale(levels))
            scale[~np.isfinite(largest)] = np.nan
            scales[start // block : start // block + len(rows)] = scale
            # Not by the reciprocal: that of a scale near 0 is infinite. A block of zeros is divided by 1.
            np.divide(rows, np.where(scale > 0, scale, np.float32(1.0))[:, None], out=target)
        np.rint(work, out=work)
        np.clip(work, -levels, levels, out=work)
        return work.astype(np.int8)


def _scales(data: Bytes, count: int, levels: int) -> Vector:
    scales: Vector = _aligned(data[: 4 * count], np.float32)
    if not np.isfinite(scales).all():
        raise Undecodable("a scale that is not finite", nonfinite=True)
    if (scales < 0).any() or (scales > _largest_scale(levels)).any():
        raise Undecodable("a scale that is no block's")
    return scales


def _largest_scale(levels: int) -> np.float32:
    """With which every code, the one that no encoder writes included, is still finite."""
    return np.float32(np.finfo(np.float32).max / np.float32(levels + 2))


def _scale(piece: Vector, block: int, scales: Vector) -> None:
    """Multiply each block of `piece` by its scale."""
    whole = piece.size // block * block
    rows = piece[:whole].reshape(-1, block)
    rows *= scales[: len(rows), None]
    if whole < piece.size:
        piece[whole:] *= scales[len(rows)]


def _aligned(data: Bytes, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Bytes as numbers, wherever they begin."""
    if data.ctypes.data % 4 or not data.flags.c_contiguous:
        data = data.copy()
    return data.view(dtype)


_ALL: tuple[Codec, ...] = (Float32(), Float16(), BFloat16(), Int8(), Int4(), TopK())
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}
"""By name, the most exact first."""


class Feedback:
    """What this sender still owes: e <- e + g - Q(e + g), by element of the whole vector.

    It belongs to the sender, not to a view: whoever leaves or owns which slice, what has not been said is said with
    the next message. Until a round is known to be done its errors are only noted; a void round leaves the debt as it
    was.

    Args:
        size: length of the vector.
    """

    def __init__(self, size: int) -> None:
        self.residual: Vector = np.zeros(size, np.float32)
        self._noted: dict[int, Vector] = {}

    def encode(self, codec: Codec, values: Vector, start: int, out: Bytes) -> Vector:
        """Write `values`, elements from `start` on, and what is owed of them; returns what a receiver will decode.

        Raises:
            Undecodable: a value is not finite.
        """
        owed = self.residual[start : start + values.size] + values
        codec.encode(owed, out)
        said = np.empty_like(owed)
        codec.decode(out, said)
        owed -= said
        self._noted[start] = owed
        return said

    def commit(self) -> None:
        """The round is done: all that was encoded has been heard."""
        for start, owed in self._noted.items():
            self.residual[start : start + owed.size] = owed
        self._noted.clear()

    def revoke(self) -> None:
        """The round is void: nothing that was encoded counts."""
        self._noted.clear()


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a codec on this machine: float32 bytes/s."""

    encode: float
    decode: float


def measure(codec: Codec, count: int = 1 << 18) -> Speed:
    """Its speed here, over so many numbers: the better of two tries each way."""
    values = np.random.default_rng(0).standard_normal(count, np.float32)
    data = np.empty(codec.size(count), np.uint8)
    best = [float("inf"), float("inf")]
    for _ in range(2):
        began = time.perf_counter()
        codec.encode(values, data)
        turned = time.perf_counter()
        codec.decode(data, values)
        ended = time.perf_counter()
        best = [min(best[0], turned - began), min(best[1], ended - turned)]
    return Speed(4 * count / max(best[0], 1e-9), 4 * count / max(best[1], 1e-9))


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec's name, the seconds an exchange is expected to take with it, and why it was chosen."""

    codec: str
    seconds: float
    reason: str


WORTH = 0.8
"""A less exact codec must save a fifth of the time: bandwidth is a guess, lost precision is not (arXiv 2103.00543)."""


def choose(count: int, bandwidth: float, speeds: Mapping[str, Speed], allowed: Sequence[str]) -> Choice:
    """The most exact codec that no other beats by a fifth.

    An exchange sends and receives about twice the vector; what is sent is encoded once as a part and once as a result,
    what is received decoded likewise. Coding and sending do not overlap, which errs on the side of exactness.

    Args:
        count: float32 elements.
        bandwidth: bytes/s to the slowest member, as measured.
        speeds: of the codecs on the slowest member; fp32 needs none.
        allowed: names, the most exact first; not empty.
    """
    times = {name: _seconds(count, bandwidth, name, speeds.get(name)) for name in allowed}
    chosen = allowed[0]
    for name in allowed[1:]:
        if times[name] < WORTH * times[chosen]:
            chosen = name
    others = sorted((name for name in allowed if name != chosen), key=lambda name: times[name])
    link = f"{4 * count / 1e6:.3g} MB over {bandwidth * 8 / 1e6:.3g} Mbit/s take {times[chosen]:.3g} s as {chosen}"
    if not others:
        return Choice(chosen, times[chosen], f"{link}; no other codec is allowed")
    rival = others[0]
    verdict = "not worth its loss" if times[rival] < times[chosen] else "slower"
    return Choice(chosen, times[chosen], f"{link}, {times[rival]:.3g} s as {rival}, which is {verdict}")


def _seconds(count: int, bandwidth: float, name: str, speed: Speed | None) -> float:
    coding = 0.0 if speed is None else 2 * 4 * count * (1 / speed.encode + 1 / speed.decode)
    return 2 * CODECS[name].size(count) / bandwidth + coding
