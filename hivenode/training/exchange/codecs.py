"""How numbers travel: as float32, in half the bytes, in a quarter, an eighth, or only the largest of them.

A vector is encoded in blocks, each on its own, so that it can be cut, sent and decoded in chunks of whole blocks. What
a member contributes and what a round results in both pass through the codec, also where nothing is sent: everybody
takes the decoded values, hence the same bits. Bytes are trusted in nothing: those that no encoder writes decode to NaN,
which a round refuses with the sender named.

Lossy codecs are used with `Feedback`: what a message could not say is added to the next one (Seide et al.,
Interspeech 2014; Karimireddy et al., arXiv 1901.09847), so that the sum of what arrives follows the sum of what was
meant.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hivenode.training.exchange.halves import narrow, widen
from hivenode.training.exchange.scratch import PIECE, SCRATCH, Vector

Encoded = npt.NDArray[np.uint8]

BLOCK = 4096
"""Elements: slices and chunks begin at multiples of it, so that every codec's blocks are the same wherever a vector is
cut. A codec's own block divides it."""

_FULL, _QUIET = np.uint16(0x7F80), np.uint16(0x0040)
"""Of bfloat16: the exponent of what is not finite, and the bit that makes a NaN of it."""

_LARGEST_BF16 = np.uint32(0x7F7F7FFF).view(np.float32)
"""The largest float32 that is not rounded to infinity."""


class Codec(Protocol):
    """Stateless, deterministic to the bit on all machines, and safe to use from several threads at once. No method
    keeps its arguments, or works element by element in Python."""

    @property
    def name(self) -> str:
        """Equal on all members of a round; parameters included, such as "topk-0.01"."""
        ...

    def encoded_size(self, count: int) -> int:
        """Bytes that `count` elements take. `size(a + b) == size(a) + size(b)` where `a` is a multiple of `BLOCK`; at
        most `4 * count + 64` for `count <= BLOCK`."""
        ...

    def encode(self, values: Vector, out: Encoded) -> None:
        """Fill `out`, `(encoded_size(values.size),)` uint8, C-contiguous. `values` begin at a block; encoding them
        whole or in pieces of whole blocks gives the same bytes. Values that are not finite must not be hidden: a block
        with any decodes to one with any. Finite ones stay finite."""
        ...

    def decode(self, data: Encoded, out: Vector) -> None:
        """Fill `out` from `(encoded_size(out.size),)` bytes of another member. Any bytes at all give some values
        (not finite ones, if need be): never an exception, never reading or writing elsewhere."""
        ...


def _pieces(values: Vector, encoded: Encoded, codec: Codec) -> Iterator[tuple[Vector, Encoded]]:
    """Runs of whole blocks that fit the cache, then what is left of the last block; with the bytes of each."""
    whole = values.size // BLOCK * BLOCK
    bounds = [*range(0, whole, PIECE), whole]
    if whole < values.size:
        bounds.append(values.size)
    at = 0
    for i in range(len(bounds) - 1):
        piece = values[bounds[i] : bounds[i + 1]]
        size = codec.encoded_size(piece.size)
        yield piece, encoded[at : at + size]
        at += size


class Fp32:
    """As it is: the array's own bytes, little-endian. The exchange sends them without a copy."""

    name = "fp32"

    def encoded_size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Vector, out: Encoded) -> None:
        out[:] = values.view(np.uint8)

    def decode(self, data: Encoded, out: Vector) -> None:
        out.view(np.uint8)[:] = data


class Fp16:
    """IEEE 754 half precision, rounded to nearest: relative error 2**-11 above 6e-5. What is finite but too large
    becomes the largest half, 65504."""

    name = "fp16"

    def encoded_size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Vector, out: Encoded) -> None:
        for piece, data in _pieces(values, out, self):
            data[:] = narrow(piece).view(np.uint8)

    def decode(self, data: Encoded, out: Vector) -> None:
        for piece, part in _pieces(out, data, self):
            halves = SCRATCH.halves[: piece.size]
            halves.view(np.uint8)[:] = part
            widen(halves, piece)


class Bf16:
    """The upper half of a float32, rounded to nearest even: relative error 2**-8 over nearly all of float32's range."""

    name = "bf16"

    def encoded_size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Vector, out: Encoded) -> None:
        for piece, data in _pieces(values, out, self):
            bits, work = piece.view(np.uint32), SCRATCH.words[: piece.size]
            bounded = np.abs(piece, out=SCRATCH.floats[: piece.size]).max(initial=0) <= _LARGEST_BF16
            np.right_shift(bits, np.uint32(16), out=work)
            work &= np.uint32(1)
            work += np.uint32(0x7FFF)
            work += bits
            work >>= np.uint32(16)
            half = SCRATCH.halves[: piece.size]
            np.copyto(half, work, casting="unsafe")
            if not bounded:
                upper = (bits >> np.uint32(16)).astype(np.uint16)
                full = (half & _FULL) == _FULL
                half = np.where(np.isfinite(piece), np.where(full, upper, half), upper | _QUIET)
            data[:] = half.view(np.uint8)

    def decode(self, data: Encoded, out: Vector) -> None:
        for piece, part in _pieces(out, data, self):
            bits = piece.view(np.uint32)
            bits[:] = _numbers(part, np.uint16)
            bits <<= np.uint32(16)


class Int8:
    """By block of 4096: a float32 scale, the largest magnitude over 127, then a signed byte for each number. Error at
    most half a scale."""

    name, levels = "int8", 127

    def encoded_size(self, count: int) -> int:
        return count + 4 * -(-count // BLOCK)

    def encode(self, values: Vector, out: Encoded) -> None:
        for piece, data in _pieces(values, out, self):
            rows = piece.reshape(-1, min(piece.size, BLOCK))
            target = data.reshape(len(rows), -1)
            scales = _quantise(rows, self.levels, target[:, 4:].view(np.int8))
            target[:, :4] = scales.view(np.uint8).reshape(-1, 4)

    def decode(self, data: Encoded, out: Vector) -> None:
        for piece, part in _pieces(out, data, self):
            rows = piece.reshape(-1, min(piece.size, BLOCK))
            source = part.reshape(len(rows), -1)
            np.multiply(source[:, 4:].view(np.int8), _scales(source[:, :4], self.levels), out=rows)


class Int4:
    """By block of 256: a float32 scale, the largest magnitude over 7, and half a byte for each number. The 16 scales of
    4096 numbers stand before them."""

    name, levels, block = "int4", 7, 256

    def encoded_size(self, count: int) -> int:
        whole, rest = divmod(count, BLOCK)
        return whole * self._size(BLOCK) + self._size(rest)

    def _size(self, width: int) -> int:
        return 4 * -(-width // self.block) + (width + 1) // 2

    def encode(self, values: Vector, out: Encoded) -> None:
        for piece, data in _pieces(values, out, self):
            rows, width = -(-piece.size // BLOCK), min(piece.size, BLOCK)
            blocks = -(-width // self.block)
            padded = np.zeros((rows * blocks, self.block), np.float32)
            padded.reshape(rows, -1)[:, :width] = piece.reshape(rows, width)
            codes = np.empty(padded.shape, np.int8)
            scales = _quantise(padded, self.levels, codes)
            pairs = codes.view(np.uint8).reshape(rows, -1)[:, : width + width % 2] & np.uint8(0x0F)
            target = data.reshape(rows, -1)
            target[:, : 4 * blocks] = scales.view(np.uint8).reshape(rows, -1)
            np.bitwise_or(pairs[:, 0::2], pairs[:, 1::2] << np.uint8(4), out=target[:, 4 * blocks :])

    def decode(self, data: Encoded, out: Vector) -> None:
        for piece, part in _pieces(out, data, self):
            rows, width = -(-piece.size // BLOCK), min(piece.size, BLOCK)
            blocks = -(-width // self.block)
            source = part.reshape(rows, -1)
            pairs = source[:, 4 * blocks :].view(np.int8)
            padded = np.zeros((rows, blocks * self.block), np.float32)
            padded[:, 0 : width + width % 2 : 2] = (pairs << np.int8(4)) >> np.int8(4)
            padded[:, 1 : width + width % 2 : 2] = pairs >> np.int8(4)
            scaled = padded.reshape(-1, self.block)
            scaled *= _scales(source[:, : 4 * blocks].reshape(-1, 4), self.levels)
            piece.reshape(rows, width)[:] = padded[:, :width]


class TopK:
    """By block of 4096: of the 128 numbers of largest magnitude a float32 scale, the places as 16 bits each, and a
    signed byte each (much as SparseLoCo, arXiv 2508.15706). All others are 0 to whoever decodes."""

    name, levels, kept = "topk", 127, 128

    def encoded_size(self, count: int) -> int:
        whole, rest = divmod(count, BLOCK)
        return whole * (4 + 3 * self.kept) + (4 + 3 * self._kept(rest) if rest else 0)

    def _kept(self, width: int) -> int:
        return max(1, -(-width * self.kept // BLOCK))

    def encode(self, values: Vector, out: Encoded) -> None:
        for piece, data in _pieces(values, out, self):
            rows = piece.reshape(-1, min(piece.size, BLOCK))
            width = rows.shape[1]
            kept = self._kept(width)
            magnitudes = np.abs(rows)  # a NaN sorts last, that is among the largest
            places = np.argpartition(magnitudes, width - kept, axis=1)[:, width - kept :]
            places.sort(axis=1)
            target = data.reshape(len(rows), -1)
            codes = target[:, 4 + 2 * kept :].view(np.int8)
            scales = _quantise(np.take_along_axis(rows, places, axis=1), self.levels, codes)
            target[:, :4] = scales.view(np.uint8).reshape(-1, 4)
            target[:, 4 : 4 + 2 * kept] = places.astype("<u2").view(np.uint8)

    def decode(self, data: Encoded, out: Vector) -> None:
        out.fill(0.0)
        for piece, part in _pieces(out, data, self):
            rows = piece.reshape(-1, min(piece.size, BLOCK))
            width = rows.shape[1]
            kept = self._kept(width)
            source = part.reshape(len(rows), -1)
            scales = _scales(source[:, :4], self.levels)
            places = _numbers(source[:, 4 : 4 + 2 * kept], np.uint16)
            lost = (places[:, -1:] >= width) | (places[:, 1:] <= places[:, :-1]).any(axis=1, keepdims=True)
            scales[lost] = np.nan
            chosen = source[:, 4 + 2 * kept :].view(np.int8) * scales
            np.put_along_axis(rows, np.minimum(places, width - 1).astype(np.int64), chosen, axis=1)


def _quantise(rows: Vector, levels: int, codes: npt.NDArray[np.int8]) -> Vector:
    """A scale (rows,) for each row of (rows, width), and into `codes` its signed codes; NaN for a row that is not
    finite."""
    highest = _largest_scale(levels)
    with np.errstate(invalid="ignore", under="ignore"):
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        scales: Vector = np.minimum(largest / np.float32(levels), highest)
        scales[~np.isfinite(largest)] = np.nan
        # Not by the reciprocal: that of a scale near 0 is infinite. A row of zeros is divided by 1.
        work = SCRATCH.floats[: rows.size].reshape(rows.shape)
        np.divide(rows, np.where(scales > 0, scales, np.float32(1.0))[:, None], out=work)
        np.rint(work, out=work)
        if not (scales.min() >= np.finfo(np.float32).tiny and scales.max() < highest):
            np.clip(work, -levels, levels, out=work)  # such a scale is not within half an ulp of what it should be
        np.copyto(codes, work, casting="unsafe")
        return scales


def _scales(data: Encoded, levels: int) -> Vector:
    """(rows, 4) bytes as scales (rows, 1); NaN for those that are no block's."""
    scales: Vector = _numbers(data, np.float32)
    with np.errstate(invalid="ignore"):
        return np.where((scales >= 0) & (scales <= _largest_scale(levels)), scales, np.float32(np.nan))


def _largest_scale(levels: int) -> np.float32:
    """With which every code, the one that no encoder writes included, is still finite."""
    return np.float32(np.finfo(np.float32).max / np.float32(levels + 2))


def _numbers(data: Encoded, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Bytes as numbers, wherever they begin; a copy."""
    return np.ascontiguousarray(data).copy().view(dtype)


_ALL: tuple[Codec, ...] = (Fp32(), Fp16(), Bf16(), Int8(), Int4(), TopK())
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}
"""By name, the most exact first."""


class Feedback:
    """What this sender still owes: e <- e + g - Q(e + g), for the whole vector.

    It belongs to the sender, not to a view: whoever leaves, or owns which slice, what has not been said is said with
    the next message. Until a round is known to be done its errors are only noted; a void round leaves the debt as it
    was.

    Args:
        size: length of the vector.
    """

    def __init__(self, size: int) -> None:
        self.residual: Vector = np.zeros(size, np.float32)
        self._noted: Vector | None = None

    def add(self, codec: Codec, vector: Vector) -> None:
        """Add what is owed to `vector`, (size,), which is then to be exchanged; note what `codec` leaves out of it."""
        vector += self.residual
        data = np.empty(codec.encoded_size(vector.size), np.uint8)
        codec.encode(vector, data)
        said = np.empty_like(vector)
        codec.decode(data, said)
        np.subtract(vector, said, out=said)
        self._noted = said

    def commit(self) -> None:
        """The round is done: what was said of the vector has been heard."""
        if self._noted is not None:
            self.residual, self._noted = self._noted, None

    def revoke(self) -> None:
        """The round is void: nothing that was said counts."""
        self._noted = None

    def carry(self, vector: Vector) -> None:
        """Nothing of the vector was heard: all of it, which holds what was owed before, is owed now."""
        self.residual, self._noted = vector.copy(), None

    def owe(self, start: int, values: Vector, factor: float) -> None:
        """Take on what is missing of the mean from element `start` on, `factor` times as much as of a contribution."""
        self.residual[start : start + values.size] += values * np.float32(factor)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a codec on this machine: float32 bytes/s."""

    encode: float
    decode: float


def measure(codec: Codec, count: int = 1 << 18) -> Speed:
    """Its speed here, over so many numbers: the better of two tries each way."""
    values = np.random.default_rng(0).standard_normal(count, np.float32)
    data = np.empty(codec.encoded_size(count), np.uint8)
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


def choose(
    count: int, bandwidth: float, speeds: Mapping[str, Speed], allowed: Sequence[str], fixed: float = 0.0
) -> Choice:
    """The most exact codec that no other beats by a fifth.

    An exchange sends and receives about twice the vector; what is sent is encoded once as a part and once as a result,
    what is received decoded likewise. Coding and sending do not overlap, which errs on the side of exactness.

    Args:
        count: float32 elements.
        bandwidth: bytes/s to the slowest member, as measured.
        speeds: of the codecs on the slowest member; fp32 needs none.
        allowed: names, the most exact first; not empty.
        fixed: seconds that an exchange takes however little is sent.
    """
    times = {name: fixed + _seconds(count, bandwidth, name, speeds.get(name)) for name in allowed}
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
    return 2 * CODECS[name].encoded_size(count) / bandwidth + coding
