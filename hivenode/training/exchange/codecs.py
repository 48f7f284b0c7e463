"""How numbers travel: what a codec has to offer, and the two that only change the width.

A vector is encoded in blocks, each on its own, so that it can be cut, sent and decoded in chunks of whole blocks. What
a member contributes and what a round results in both pass through the codec, also where nothing is sent: everybody
takes the decoded values, hence the same bits.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from hivenode.training.exchange.reduction import Vector

Encoded = npt.NDArray[np.uint8]

BLOCK = 4096
"""Elements: slices and chunks begin at multiples of it, so that every codec's blocks are the same wherever a vector is
cut. A codec's own block divides it."""


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


class Fp32:
    """As it is: the array's own bytes, little-endian. The exchange sends them without a copy."""

    name = "fp32"

    def encoded_size(self, count: int) -> int:
        return 4 * count

    def encode(self, values: Vector, out: Encoded) -> None:
        out.view(np.float32)[:] = values

    def decode(self, data: Encoded, out: Vector) -> None:
        out[:] = data.view(np.float32)


class Fp16:
    """IEEE 754 half precision, rounded to nearest; what is finite but too large becomes the largest half, 65504."""

    name = "fp16"

    def encoded_size(self, count: int) -> int:
        return 2 * count

    def encode(self, values: Vector, out: Encoded) -> None:
        half = out.view(np.float16)
        with np.errstate(over="ignore", invalid="ignore"):
            half[:] = values
            beyond = ~np.isfinite(half)
            if beyond.any():
                half[beyond] = np.where(
                    np.isfinite(values[beyond]), np.copysign(np.float32(65504.0), values[beyond]), values[beyond]
                )

    def decode(self, data: Encoded, out: Vector) -> None:
        out[:] = data.view(np.float16)
