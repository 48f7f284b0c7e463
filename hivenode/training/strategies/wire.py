"""In what the large vectors of a run travel, and what is still owed of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hivenode.net.local import FromWorker, Log
from hivenode.training.exchange.codecs import CODECS, Codec, Feedback, Speed, choose, measure
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.collective import Mean
from hivenode.training.strategies.group import Group

MEASURED = 2
"""Exchanges as float32 by which `auto` knows the link; the quickest counts. As many of a single number, and of `PROBE`
at most, follow one upon the other: in those of a run members also wait for each other's samples."""

PROBE = 1 << 18
"""Numbers."""

LEAST = 0.05
"""Of an exchange's time, that its numbers are taken to need at least."""


class Wire:
    """Averages the parts of a vector among the members, with error feedback where the codec loses anything.

    Args:
        codec: name, or `auto`.
        sizes: length of each part.
        automatic: names that `auto` may choose from, the most exact first.
        report: takes messages for the daemon.
    """

    def __init__(
        self,
        group: Group,
        codec: str,
        sizes: Sequence[int],
        automatic: Sequence[str],
        report: Callable[[FromWorker], None],
    ) -> None:
        self._group = group
        self._report = report
        self._sizes = tuple(sizes)
        self._automatic = tuple(automatic) if codec == "auto" and len(group.planned) > 1 else ()
        self._measured: list[tuple[float, int]] = []
        """Seconds that exchanges took, and their numbers."""
        self._codec: Codec | None = None
        self._feedback: tuple[Feedback, ...] = ()
        self._debts: dict[int, Vector] = {}
        if codec not in ("auto", "fp32") and len(group.planned) > 1:
            self._use(CODECS[codec])

    @property
    def exact(self) -> bool:
        """Whether numbers arrive as they are."""
        return self._codec is None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be chosen."""
        return not self._automatic

    @property
    def codec(self) -> str:
        return "fp32" if self._codec is None else self._codec.name

    def inherit(self, codec: str) -> None:
        """Of a newcomer: use what the others have settled on."""
        self._automatic, self._codec, self._feedback = (), None, ()
        if codec != "fp32":
            self._use(CODECS[codec])

    def agree(self, vector: Vector, compute: Callable[[], float], step: int, part: int = 0) -> Mean:
        """See `Group.agree`. What has not been said before of that part is said along with it."""
        codec, size = self._codec, self._sizes[part]
        feedback = self._feedback[part] if self._feedback else None
        began = given = 0.0

        def give() -> float:
            nonlocal began, given
            given = compute()
            if given > 0:
                if feedback is not None and codec is not None:
                    feedback.add(codec, vector)
                elif part in self._debts:
                    vector[:size] += self._debts[part]
            began = time.monotonic()
            return given

        void = feedback.revoke if feedback is not None else lambda: None
        mean = self._group.agree(vector, give, step, codec, void, judged=True)
        if feedback is None:
            if given > 0:
                self._debts.pop(part, None)
                if mean.late is not None:
                    self._debts[part] = mean.late[:size]
        elif mean.late is not None:
            if given > 0:
                feedback.carry(mean.late)
        else:
            feedback.commit()
            if mean.owed is not None:
                start, owed = mean.owed
                feedback.owe(start, owed, mean.total_weight / (given or mean.total_weight))
        if self._automatic:
            self._learn(time.monotonic() - began, max(size, 1), step)
        return mean

    def debts(self) -> dict[str, Vector]:
        """What this member has still to say, by part: the vectors themselves, as of the last exchange."""
        if self._feedback:
            return {str(part): feedback.residual for part, feedback in enumerate(self._feedback)}
        return {str(part): debt for part, debt in self._debts.items()}

    def restore(self, debts: Mapping[str, Vector]) -> None:
        """Take over what was to be said. Raises ValueError: it is that of other vectors."""
        for name, debt in debts.items():
            if not (name.isdecimal() and int(name) < len(self._sizes) and debt.shape == (self._sizes[int(name)],)):
                raise ValueError(f"part {name} of {debt.size} elements")
        for name, debt in debts.items():
            if self._feedback:
                self._feedback[int(name)].residual[:] = debt
            else:
                self._debts[int(name)] = debt

    def _probe(self, count: int, step: int) -> float:
        """Seconds that an exchange of so many numbers takes."""
        numbers, began = np.zeros(count, np.float32), 0.0

        def begin() -> float:
            nonlocal began
            began = time.monotonic()
            return 1.0

        self._group.agree(numbers, begin, step)
        return time.monotonic() - began

    def _use(self, codec: Codec) -> None:
        self._codec, self._feedback = codec, tuple(map(Feedback, self._sizes))

    def _learn(self, seconds: float, size: int, step: int) -> None:
        """After some exchanges, choose; by the mean of what all have measured, so that all choose alike.

        Args:
            seconds: that an exchange of `size` numbers took.
        """
        self._measured.append((seconds, size))
        if len(self._measured) < MEASURED or len(self._group.members) < 2:
            return
        fixed = min(self._probe(1, step) for _ in range(MEASURED))
        probe = min(max(self._sizes), PROBE)
        self._measured += [(self._probe(probe, step), probe) for _ in range(MEASURED)]
        each = min(max(took - fixed, LEAST * took) / numbers for took, numbers in self._measured)
        names = [name for name in self._automatic if name != "fp32"]
        speeds = [measure(CODECS[name]) for name in names]
        coding = [1 / fast for speed in speeds for fast in (speed.encode, speed.decode)]
        taken = [fixed, each, *coding]
        told = np.zeros(len(taken), np.float32)

        def tell() -> float:
            told[:] = taken
            return 1.0

        self._group.agree(told, tell, step)
        fixed, each, *coding = (max(float(value), 1e-15) for value in told)
        moved = 2 * CODECS["fp32"].encoded_size(1)  # as `choose` counts it
        known = {
            name: Speed(1 / encode, 1 / decode)
            for name, encode, decode in zip(names, coding[::2], coding[1::2], strict=True)
        }
        choice = choose(max(self._sizes), moved / each, known, self._automatic, fixed)
        self._automatic = ()
        if choice.codec != "fp32":
            self._use(CODECS[choice.codec])
        if self._group.leads:
            self._report(Log(level="info", event=f"Numbers travel as {choice.codec}: {choice.reason}."))
