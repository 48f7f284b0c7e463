"""Float32 to IEEE 754 half precision and back: the bits that numpy gives, which converts one number after the other, at
several times its speed. Where the process has PyTorch, its conversion is used, which is the processor's own."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hivenode.training.exchange.scratch import SCRATCH, Vector

Halves = npt.NDArray[np.uint16]

LARGEST = np.float16(65504)

_TOO_LARGE = np.float32(65520)
"""The least that is not rounded to `LARGEST` or below."""

_MAGNITUDE, _FULL = np.uint16(0x7FFF), np.uint16(0x7C00)
"""Of a half: all but the sign; the exponent of what is not finite."""

_ALONE = 32 * 1024
"""Elements that PyTorch converts in the thread that asks, whatever it does with more."""


def narrow(values: Vector) -> Halves:
    """Rounded to the nearest half, ties to even. What is finite but too large becomes the largest half, 65504.

    Args:
        values: `scratch.PIECE` at most.

    Returns:
        Memory of this thread, valid until its next call.
    """
    halves = SCRATCH.halves[: values.size]
    torch = _torch()
    if torch is not None and values.flags.writeable:
        _convert(torch, values, halves.view(np.float16))
        done = _finite(halves)
    else:
        done = _by_adding(values, halves)
    if not done:
        _one_by_one(values, halves)
    return halves


def widen(halves: Halves, out: Vector) -> None:
    """As float32, exactly.

    Args:
        halves: aligned and writeable, as `out`.
    """
    torch = _torch()
    if torch is not None and _finite(halves):
        _convert(torch, halves.view(np.float16), out)
    else:
        _table().take(halves, out=out, mode="clip")


def _torch() -> Any | None:
    """PyTorch, if this process has imported it."""
    if sys.modules.get("torch") is None:
        return None
    import torch  # waits for a thread that is still at it

    return torch


def _convert(torch: Any, source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    for at in range(0, source.size, _ALONE):
        torch.from_numpy(target[at : at + _ALONE]).copy_(torch.from_numpy(source[at : at + _ALONE]))


def _finite(halves: Halves) -> bool:
    return bool(np.bitwise_and(halves, _MAGNITUDE).max(initial=0) < _FULL)


def _by_adding(values: Vector, halves: Halves) -> bool:
    """In float32, `x + 2**(e + 13)` is rounded to the 11 bits that a half keeps of an `x` from `2**e` to `2**(e + 1)`:
    they are the last bits of the sum. Below `2**-14` halves are all as far apart as there.

    Returns:
        False, and nothing, if some values are not finite or too large.
    """
    count = values.size
    sums, words = SCRATCH.floats[:count], SCRATCH.words[:count]
    np.abs(values, out=sums)
    if not sums.max(initial=0) < _TOO_LARGE:
        return False
    bits = sums.view(np.uint32)
    np.bitwise_and(bits, np.uint32(0x7F800000), out=words)
    np.clip(words, np.uint32((127 - 14) << 23), np.uint32((127 + 15) << 23), out=words)
    words += np.uint32(13 << 23)
    sums += words.view(np.float32)
    np.copyto(halves, bits, casting="unsafe")
    # The exponent: the two formats' differ by 112, what was added is by 13 above, and the leading bit counts as one.
    words -= np.uint32((112 + 13 + 1) << 23)
    words >>= np.uint32(13)
    np.right_shift(values.view(np.uint32), np.uint32(16), out=bits)
    bits &= np.uint32(0x8000)
    words |= bits
    halves += words.astype(np.uint16)
    return True


def _one_by_one(values: Vector, halves: Halves) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    over = np.isinf(half) & np.isfinite(values)
    half[over] = np.copysign(LARGEST, half[over])
    halves[:] = half.view(np.uint16)


@cache
def _table() -> Vector:
    """Of all halves, in float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
