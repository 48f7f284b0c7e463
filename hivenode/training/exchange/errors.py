"""What an exchange may raise."""

from __future__ import annotations

from hivenode.errors import Corrupted, JobFailed, Unavailable
from hivenode.training.exchange.views import View


class ViewChanged(Exception):
    """The membership is not the one the caller's share was computed for, and nothing was reduced.

    The vector is as the caller passed it. Compute the share for `view` and call again.

    Attributes:
        view: the view now in force, the same on all its members.
        lost: node ids that were in the caller's last view and are not in this one, in rank order.
        joined: node ids that were not in the caller's last view and are in this one, in rank order.
    """

    def __init__(self, view: View, lost: tuple[str, ...], joined: tuple[str, ...] = ()) -> None:
        super().__init__(
            f"view {view.number} of {len(view.members)} workers, without {', '.join(lost) or 'nobody'}, "
            f"with {', '.join(joined) or 'nobody'} new"
        )
        self.view = view
        self.lost = lost
        self.joined = joined


class Excluded(Unavailable):
    """The other workers go on without this one."""

    def __init__(self, sentence: str, fix: str = "") -> None:
        fix = fix or "Start another attempt; check this machine's load and its link to the others."
        super().__init__(sentence, fix=fix)


class NonFinite(JobFailed):
    """A worker contributed values that are NaN or infinite; it is out, and the round is void.

    Attributes:
        node: who contributed them (may be this worker itself, which then is out of the group).
        round: the number of the round.
        view: the view now in force, without `node`; None on the worker that was put out.
    """

    def __init__(self, node: str, number: int, view: View | None) -> None:
        super().__init__(
            f"Worker {node} contributed values that are not finite to round {number}.",
            fix="Lower the learning rate, clip gradients, or check that worker's data.",
        )
        self.node = node
        self.round = number
        self.view = view


class Absurd(JobFailed):
    """A worker contributed values far larger than the others'; it is out, and the round is void. As `NonFinite`."""

    def __init__(self, node: str, number: int, view: View | None) -> None:
        super().__init__(
            f"Worker {node} contributed values far larger than the others' to round {number}.",
            fix="Check that worker's data and memory, or lower the learning rate.",
        )
        self.node = node
        self.round = number
        self.view = view


class Mismatch(Corrupted):
    """Two workers hold different bits as the result of one round.

    Attributes:
        node: the worker whose result differs from this one's.
        round: the number of the round.
    """

    def __init__(self, node: str, number: int) -> None:
        super().__init__(
            f"The result of round {number} differs between this worker and {node}.",
            fix="Test the memory of both machines, and resume from the last checkpoint.",
        )
        self.node = node
        self.round = number
