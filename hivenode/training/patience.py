"""Ending early: when the loss on the held-out part has stopped to improve. The same on all members, as that loss is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hivenode.spec.training import TrainingSpec

_BEST, _WAITED = "patience.best", "patience.waited"


class Patience:
    """Counts the epochs that brought nothing, where `training.patience` says how many may."""

    def __init__(self, spec: TrainingSpec) -> None:
        self._spec = spec
        self._best, self._waited = math.inf, 0

    @property
    def going(self) -> bool:
        """Whether it is worth going on."""
        return self._spec.patience is None or self._waited < self._spec.patience

    def judge(self, test_loss: float | None) -> None:
        """At an epoch's end; None without a held-out part."""
        if self._spec.patience is None or test_loss is None:
            return
        if test_loss < self._best - self._spec.min_improvement:
            self._best, self._waited = test_loss, 0
        else:
            self._waited += 1

    def __str__(self) -> str:
        return (
            f"Training ends early: the held-out loss was {self._best:.4g} at best, and has not improved "
            f"by {self._spec.min_improvement:g} in {self._waited} epochs."
        )

    def scalars(self) -> dict[str, str]:
        """For checkpoints and newcomers, exactly."""
        if self._spec.patience is None:
            return {}
        return {_BEST: self._best.hex(), _WAITED: str(self._waited)}

    def restore(self, scalars: Mapping[str, str]) -> None:
        """Raises KeyError, ValueError where they are of a job without patience."""
        if self._spec.patience is not None:
            self._best, self._waited = float.fromhex(scalars[_BEST]), int(scalars[_WAITED])
