"""The learning rate of a step, and gradients cut to length: the same bits on every member."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hivenode.spec.training import TrainingSpec

Vector = npt.NDArray[np.float32]

_BLOCK = 64 * 1024


def learning_rate(spec: TrainingSpec, step: int, steps: int) -> float:
    """Of a step (from 0) of a run of `steps`, warm-up first, then as `spec.schedule` says.

    To seven digits: a system's cosine may be off in the last bit of a double, and members of an attempt must not be.
    """
    if step < spec.warmup_steps:
        rate = spec.learning_rate * (step + 1) / spec.warmup_steps
    else:
        done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
        span = spec.learning_rate - spec.final_learning_rate
        match spec.schedule:
            case "constant":
                return spec.learning_rate
            case "linear":
                rate = spec.learning_rate - span * done
            case "cosine":
                rate = spec.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * done))
    return float(f"{rate:.7g}")


def clip(gradient: Vector, longest: float) -> float:
    """Shorten `gradient` to that Euclidean norm if it is longer; returns the norm it had."""
    norm = math.sqrt(sum_of_squares(gradient))
    if norm > longest:
        gradient *= np.float32(longest / norm)
    return norm


def sum_of_squares(values: Vector) -> float:
    """In float64, by halves: only additions of whole arrays, whose order no instruction set changes."""
    sums = []
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        block *= block
        while block.size > 1:
            half = block.size // 2
            folded = block[:half] + block[half : 2 * half]
            if block.size % 2:
                folded[0] += block[-1]
            block = folded
        sums.append(float(block[0]))
    return math.fsum(sums)
