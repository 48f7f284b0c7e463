"""Optimizers on the flat float32 parameter vector, as PyTorch defines them (weight decay, bias correction, epsilon).

Written in separately rounded additions, multiplications, divisions and square roots, which IEEE 754 fixes to the bit,
instead of a framework's fused kernels, which differ between instruction sets: members of an attempt that apply the
same reduced gradient hold the same weights on whatever machines they run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hivenode.spec.training import TrainingSpec

Vector = npt.NDArray[np.float32]

BLOCK = 256 * 1024
"""Elements updated at a time: what is needed beside the vectors themselves stays in the processor's cache."""


class Optimizer:
    """Changes a parameter vector in place.

    Args:
        spec: kind, learning rate, momentum and weight decay. `adamw` decouples the decay (arXiv 1711.05101), the
            others add it to the gradient.
        size: length of the vector.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, spec: TrainingSpec, size: int) -> None:
        self._spec = spec
        self._scratch = np.zeros(min(size, BLOCK), np.float32)
        self._power1 = self._power2 = 1.0  # beta ** step, by repeated multiplication: `pow` is not exact everywhere
        names: tuple[str, ...] = ()
        if spec.optimizer != "sgd":
            names = ("mean", "square")
        elif spec.momentum > 0:
            names = ("momentum",)
        self._slots = {name: np.zeros(size, np.float32) for name in names}

    def step(self, weights: Vector, gradient: Vector, learning_rate: float) -> None:
        """One update. `gradient` is overwritten."""
        if self._spec.optimizer != "sgd":
            self._power1 *= self.BETA1
            self._power2 *= self.BETA2
        for start in range(0, len(weights), BLOCK):
            part = slice(start, min(start + BLOCK, len(weights)))
            slots = {name: slot[part] for name, slot in self._slots.items()}
            self._update(weights[part], gradient[part], slots, learning_rate)

    def _update(self, weights: Vector, gradient: Vector, slots: Mapping[str, Vector], learning_rate: float) -> None:
        """A block of it."""
        spec, scratch = self._spec, self._scratch[: len(weights)]
        rate = np.float32(learning_rate)
        if spec.weight_decay > 0:
            if spec.optimizer == "adamw":
                weights *= np.float32(1.0 - learning_rate * spec.weight_decay)
            else:
                np.multiply(weights, np.float32(spec.weight_decay), out=scratch)
                gradient += scratch
        if spec.optimizer == "sgd":
            if spec.momentum > 0:
                velocity = slots["momentum"]
                velocity *= np.float32(spec.momentum)
                velocity += gradient
                gradient = velocity
            np.multiply(gradient, rate, out=scratch)
            weights -= scratch
        else:
            self._adam(weights, gradient, slots, learning_rate)

    def _adam(self, weights: Vector, gradient: Vector, slots: Mapping[str, Vector], learning_rate: float) -> None:
        """Kingma and Ba, arXiv 1412.6980, algorithm 1."""
        scratch, mean, square = self._scratch[: len(weights)], slots["mean"], slots["square"]
        mean *= np.float32(self.BETA1)
        np.multiply(gradient, np.float32(1.0 - self.BETA1), out=scratch)
        mean += scratch
        square *= np.float32(self.BETA2)
        gradient *= gradient
        gradient *= np.float32(1.0 - self.BETA2)
        square += gradient
        np.sqrt(square, out=scratch)
        scratch /= np.float32(math.sqrt(1.0 - self._power2))
        scratch += np.float32(self.EPSILON)
        np.divide(mean, scratch, out=scratch)
        scratch *= np.float32(learning_rate / (1.0 - self._power1))
        weights -= scratch

    def slots(self) -> Mapping[str, Vector]:
        """The state vectors themselves, by name."""
        return self._slots

    def scalars(self) -> dict[str, str]:
        """The rest of the state, exactly."""
        return {"power1": self._power1.hex(), "power2": self._power2.hex()}

    def restore(self, slots: Mapping[str, Vector], scalars: Mapping[str, str]) -> None:
        """Take over saved state.

        Raises:
            KeyError, ValueError: it is that of another optimizer or size.
        """
        for name, slot in self._slots.items():
            slot[...] = slots[name]
        self._power1, self._power2 = float.fromhex(scalars["power1"]), float.fromhex(scalars["power2"])


class Outer:
    """What the mean of the members' ways does to the weights they set out from: SGD with Nesterov's momentum, on the
    way back to where they came from as the gradient (DiLoCo, arXiv 2311.08105, algorithm 1; momentum as PyTorch's).

    Momentum rises as in Nesterov's own method (0, 1/4, 2/5, 3/6, ...) up to what is asked for, and the learning rate
    goes from 1 to what is asked for along with it. So the first round takes the plain mean of the members' weights:
    early ways are long and turn soon, and a run of few rounds would spend them all on coming back from where momentum
    threw it.

    Args:
        learning_rate: 1 and no momentum give the plain mean in every round.
    """

    def __init__(self, learning_rate: float, momentum: float, size: int) -> None:
        self._rate, self._momentum = learning_rate, momentum
        self.velocity = np.zeros(size if momentum > 0 else 0, np.float32)

    def step(self, weights: Vector, back: Vector, number: int, run: slice) -> None:
        """One update of `weights[run]`, which all set out from. `back`, of that length, is overwritten.

        Args:
            number: of updates of these weights before.
        """
        rate = self._rate
        if self.velocity.size:
            momentum = min(self._momentum, number / (number + 3))
            rate = 1.0 + (rate - 1.0) * (momentum / self._momentum)
            velocity = self.velocity[run]
            velocity *= np.float32(momentum)
            velocity += back
            back += velocity * np.float32(momentum)
        back *= np.float32(rate)
        weights[run] -= back
