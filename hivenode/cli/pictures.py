"""Pictures in characters. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import isqrt

SHADES = " ░▒▓█"
SMALLEST_CHART = 24
"""Width of a curve that still says something."""
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


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a Braille cell, by row and column (Unicode, U+2800)."""


def chart(steps: Sequence[int], values: Sequence[float], width: int, height: int) -> list[str]:
    """A curve in Braille dots, `height` lines of `width` characters with the largest and the smallest value before the
    first and the last of them. The width is that from the first step to the last; between two values it is straight.

    Args:
        steps: at least one, rising.
        values: at those steps, finite.
        width: with the labels, at least `SMALLEST_CHART`.
    """
    low, high = min(values), max(values)
    labels = _labels(low, high)
    space = max(map(len, labels))
    columns, rows = 2 * (width - space - 1), 4 * height
    cells = [[0] * (columns // 2) for _ in range(height)]
    before: int | None = None
    for column in range(columns):
        step = steps[0] + (steps[-1] - steps[0]) * column / (columns - 1)
        after = min(bisect_left(steps, step), len(steps) - 1)
        first = max(after - 1, 0)
        along = (step - steps[first]) / (steps[after] - steps[first]) if after > first else 0.0
        value = values[first] + (values[after] - values[first]) * along
        share = (value - low) / (high - low) if high > low else 0.5
        row = round((1 - share) * (rows - 1))
        start, end = sorted((row, before if before is not None else row))
        for each in range(start, end + 1):
            cells[each // 4][column // 2] |= _DOTS[each % 4][column % 2]
        before = row
    lines = ["".join(chr(0x2800 + cell) for cell in line) for line in cells]
    margins = [labels[0], *[""] * (height - 2), labels[1]] if height > 1 else [labels[0]]
    return [f"{margin.rjust(space)}▕{line}" for margin, line in zip(margins, lines, strict=True)]


def _labels(low: float, high: float) -> tuple[str, str]:
    """Of the largest and the smallest value, with enough digits to tell them apart."""
    for digits in range(3, 8):
        told = f"{high:.{digits}g}", f"{low:.{digits}g}"
        if low == high or told[0] != told[1]:
            break
    return told
