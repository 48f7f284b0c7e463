"""Pictures in characters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

SHADES = " ░▒▓█"
SMALLEST_SIDE, LARGEST_SIDE = 4, 32


def side_of(count: int) -> int | None:
    """The side of a square image of `count` values that is worth drawing, else None."""
    side = isqrt(count)
    return side if side * side == count and SMALLEST_SIDE <= side <= LARGEST_SIDE else None


def digit(values: Sequence[float], side: int) -> str:
    """A grey-scale image, two characters a pixel so that it looks square; the lightest value is blank.

    Args:
        values: `side * side` of them, row by row, in any range.

    Raises:
        ValueError: their number is not `side * side`.
    """
    if len(values) != side * side:
        raise ValueError(f"{len(values)} values are not a picture of {side} by {side}")
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(SHADES) - 1) / (high - low) if high > low else 0.0
    shades = [SHADES[round((value - low) * scale)] * 2 for value in values]
    return "\n".join("".join(shades[row * side : (row + 1) * side]).rstrip() for row in range(side))
