"""The arithmetic of a round: how a vector is cut, how a slice is reduced, how a result is summarised.

All of it is deterministic to the bit: the same contributions give the same result on every machine with IEEE 754
float32, whatever the order in which they arrived.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hivenode.training.exchange.scratch import PIECE, SCRATCH, Vector


def cut(count: int, ranks: Sequence[int], shares: Mapping[int, float] | None = None, step: int = 1) -> tuple[int, ...]:
    """Bounds of the slices of a vector of `count` elements: member `ranks[k]` owns `[bounds[k], bounds[k + 1])`.

    Args:
        count: length of the vector.
        ranks: the members, ascending.
        shares: relative size of each member's slice; equal where absent.
        step: the bounds are multiples of it.
    """
    weights = [1.0 if shares is None else float(shares.get(rank, 1.0)) for rank in ranks]
    total = math.fsum(weights)
    bounds, running = [0], 0.0
    for weight in weights[:-1]:
        running += weight
        bounds.append(min(count, max(bounds[-1], int(count * (running / total)) // step * step)))
    bounds.append(count)
    return tuple(bounds)


def total_of(weights: Sequence[float]) -> np.float32:
    """Sum of the weights, in float32, in the order given."""
    total = np.float32(0.0)
    for weight in weights:
        total = np.float32(total + np.float32(weight))
    return total


Reader = Callable[[int, int, Vector], None]
"""Writes the elements of a contribution from the first to before the second."""


def reduce_into(out: Vector, inputs: Sequence[Vector | Reader], weights: Sequence[float]) -> tuple[int, ...]:
    """Write the weighted mean of the inputs to `out`: float32 throughout, added in the order given.

    `out[k] = (((w0 * x0[k]) + w1 * x1[k]) + ...) / (((0 + w0) + w1) + ...)`; zeros when all weights are zero.

    Returns:
        Indices of the inputs that hold a NaN or an infinity (then `out` is of no use); empty when all are finite.
        A sum of finite values that overflows stays infinite: nobody is to blame.
    """
    scales = [np.float32(weight) for weight in weights]
    total = total_of(weights)
    with np.errstate(all="ignore"):
        for start in range(0, out.size, PIECE):
            stop = min(start + PIECE, out.size)
            block, scratch = out[start:stop], SCRATCH.sums[: stop - start]
            np.multiply(_read(inputs[0], start, stop, scratch), scales[0], out=block)
            for values, scale in zip(inputs[1:], scales[1:], strict=True):
                np.multiply(_read(values, start, stop, scratch), scale, out=scratch)
                np.add(block, scratch, out=block)
            if not np.isfinite(block).all():
                culprits = tuple(
                    index
                    for index, values in enumerate(inputs)
                    if not np.isfinite(_read(values, start, stop, scratch)).all()
                )
                if culprits:
                    return culprits
            if total == 0.0:
                block.fill(0.0)
            else:
                np.divide(block, total, out=block)
    return ()


def _read(values: Vector | Reader, start: int, stop: int, scratch: Vector) -> Vector:
    if isinstance(values, np.ndarray):
        return values[start:stop]
    values(start, stop, scratch)
    return scratch


def digest_of(values: Vector, copy_to: Vector | None = None) -> int:
    """A 63-bit summary of the exact bits, to notice accidents (not malice) at memory speed: BLAKE2b over the
    wrapping 64-bit sums of blocks. Copies the values on the way when asked, while they are in the cache."""
    summary = hashlib.blake2b(digest_size=8)
    for start in range(0, values.size, PIECE):
        block = values[start : start + PIECE]
        if copy_to is not None:
            copy_to[start : start + PIECE] = block
        bits = block.view(np.uint32)
        even = bits.size & ~1
        sums = np.add.reduceat(bits[:even].view(np.uint64), np.arange(0, even // 2, 512)) if even else bits[:0]
        summary.update(sums.tobytes())
        summary.update(bits[even:].tobytes())
    return int.from_bytes(summary.digest(), "little") >> 1
