"""Several lines of stages that share every batch: those who hold the same stage agree on its gradient.

Each line computes its part of a batch; the mean over the lines, weighted by samples, is the gradient of the whole
batch, as in data parallelism, and goes through the same exchange. A stage cannot go on without its line, so whoever is
lost ends the attempt for all, and the layers are cut again over those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from hivenode.errors import Unavailable
from hivenode.net.local import FromWorker, Peer, ViewChanged
from hivenode.spec.values import Share
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.collective import Collective
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.making import EVERY_STEP
from hivenode.training.strategies.wire import Wire


class Replicas:
    """The workers that hold one stage, one of each line. Alone, whatever is agreed on stays as it is.

    Args:
        me: this node.
        lines: the shares of each line, first stage first.
        stage: the one held here.
        collective: reaches the others.
        codec: what gradients are written in on the wire.
        size: length of the stage's gradient.
        report: takes messages for the daemon.
        cancelled: the reason to stop, or None.

    Attributes:
        number: of this line, 0 first.
        several: whether there is another one.
    """

    def __init__(
        self,
        me: str,
        lines: Sequence[Sequence[Share]],
        stage: int,
        collective: Collective,
        codec: str,
        size: int,
        report: Callable[[FromWorker], None],
        cancelled: Callable[[], str | None],
    ) -> None:
        # All stages of a line have to cut batches alike, so what counts is the line's part, not the stage's.
        shares = [
            msgspec.structs.replace(line[stage], rank=number, weight=sum(share.weight for share in line))
            for number, line in enumerate(lines)
        ]
        self._stage, self._collective = stage, collective
        self._group = Group(me, shares, collective, self._changed, cancelled)
        self._wire = Wire(self._group, codec, (size,), EVERY_STEP, report)
        self.number, self.several = self._group.planned.index(me), len(lines) > 1

    def part(self, total: int) -> range:
        """This line's part of `range(total)`; the lines' parts cover it exactly."""
        return self._group.part(total)

    def connect(self, peers: Sequence[Peer]) -> None:
        """Meet the others. Raises Unavailable when one is missing."""
        self._collective.connect(tuple(peers))
        self._group.look_around(0)

    def agree(self, vector: Vector, compute: Callable[[], float], step: int) -> None:
        """Have `compute` fill a gradient and, in the element after it, a loss, and replace both by the mean over the
        lines. Raises as `Group.agree` does, and Unavailable when one of the others is lost.

        Args:
            compute: returns the samples they are of.
            step: finished steps.
        """
        if self._wire.exact:
            self._wire.agree(vector, compute, step)
            return
        weight = 0.0

        def give() -> float:
            nonlocal weight
            weight = compute()
            return weight

        loss = vector[-1:]
        self._wire.agree(vector[:-1], give, step)
        self._group.agree(loss, lambda: weight, step)

    def mean(self, values: Sequence[float], weight: float, step: int) -> list[float]:
        """The weighted mean of some numbers over the lines. Raises as `agree` does."""
        told = np.array(values, np.float32)
        self._group.agree(told, lambda: weight, step)
        return [float(value) for value in told]

    def finish(self) -> None:
        """Wait until all lines have come to the end. Raises HiveError."""
        self._group.finish()

    def _changed(self, message: FromWorker) -> None:
        if isinstance(message, ViewChanged) and message.lost:
            raise Unavailable(
                f"Worker {message.lost[0]}, which holds stage {self._stage} of another line, is lost.",
                fix="The job goes on from its last checkpoint with the nodes left.",
            )
