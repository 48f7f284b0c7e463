"""What the loss is multiplied by where gradients are computed in float16, so that small ones do not vanish there
(Micikevicius et al., ICLR 2018, section 3.2). Its rule is that of torch.amp.GradScaler, for any framework."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hivenode.spec.values import Precision
from hivenode.training.frameworks.model import Vector

FIRST = 65_536.0
LEAST = 1.0
"""Below it a gradient does not fit for what it is, and not for what it was multiplied by."""
MOST = float(2**127)
"""What float32 holds."""
CALM_STEPS = 2000
"""Steps in a row that fit, after which it is doubled."""
SCALE, CALM = "loss_scale", "loss_scale_steps"
"""Scalars of a checkpoint."""


class LossScale:
    """Attributes:
    value: a power of two, so that dividing by it takes nothing from a number.
    """

    def __init__(self) -> None:
        self.value = FIRST
        self._calm = 0

    def judge(self, fits: bool) -> bool:
        """A gradient was finite, or not and is to be dropped; returns `fits`."""
        if not fits:
            self.value, self._calm = self.value / 2.0, 0
            return False
        self._calm += 1
        if self._calm == CALM_STEPS:
            self._calm = 0
            if self.value * 2.0 <= MOST:
                self.value *= 2.0
        return True

    def scalars(self) -> dict[str, str]:
        """Exactly."""
        return {SCALE: self.value.hex(), CALM: str(self._calm)}

    def restore(self, scalars: Mapping[str, str]) -> None:
        """Raises KeyError, ValueError: it was not computed in float16, or makes no sense."""
        value, calm = float.fromhex(scalars[SCALE]), int(scalars[CALM])
        if not (0.0 < value <= MOST and 0 <= calm < CALM_STEPS):
            raise ValueError(f"the loss cannot be multiplied by {value}, unchanged for {calm} steps")
        self.value, self._calm = value, calm


def loss_scale(precision: Precision) -> LossScale | None:
    """None where gradients keep float32's range."""
    return LossScale() if precision == "fp16" else None


def finite(gradient: Vector) -> bool:
    """Whether all of it is; without a copy of its size."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return math.isfinite(float(gradient.sum(dtype=np.float64)))
