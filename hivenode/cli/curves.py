"""What a job's log says of its training, as curves. Pure: lines in, points out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EVENTS = ("epoch", "progress")
"""Lines of the log that hold measurements."""
MAX_POINTS = 512


@dataclass(frozen=True, slots=True)
class Point:
    """Measurements by name, as of a step.

    Attributes:
        at: seconds since 1970.
    """

    step: int
    at: float
    values: Mapping[str, float]


def points(lines: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """Those of a log's lines that hold measurements, in their order."""
    for line in lines:
        step = line.get("step")
        if line.get("event") in EVENTS and isinstance(step, int):
            values = {
                key: float(value)
                for key, value in line.items()
                if key not in ("step", "time", "attempt") and _measured(value)
            }
            yield Point(step, float(line.get("time", 0.0)), values)


def _measured(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class Curve:
    """Values over steps, at most `MAX_POINTS` of them: when there are more, every second one goes."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float | None) -> None:
        """One more; what was known of this step and later ones is replaced, as training went back before them."""
        if value is None or not math.isfinite(value):
            return
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) > MAX_POINTS:
            self.steps, self.values = self.steps[1::2], self.values[1::2]
