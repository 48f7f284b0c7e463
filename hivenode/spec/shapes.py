"""Shapes of one sample: (channels, height, width), (length, width), (length,) or (width,)."""

from __future__ import annotations

Shape = tuple[int, ...]


def spelled(shape: Shape) -> str:
    """A shape for people: 1x8x8."""
    return "x".join(map(str, shape)) or "nothing"
