"""How long a suspected member has to defend itself (Lifeguard's dynamic suspicion, Dadgar et al., 2017,
section IV.B)."""

from __future__ import annotations

import math


class Suspicion:
    """One suspicion: starts long and shortens as independent accusers confirm it.

    A lone accuser may be the faulty one, so its word alone takes `longest`; with `wanted` further accusers
    the timeout falls, logarithmically, to `shortest`.

    Args:
        now: when it began, seconds.
        accuser: who raised it; does not count as confirmation.
        wanted: confirmations that bring the timeout down to `shortest`; 0 uses `shortest` at once.
        shortest, longest: seconds.
    """

    __slots__ = ("_accusers", "_longest", "_shortest", "_start", "_wanted", "deadline")

    def __init__(self, now: float, accuser: str, wanted: int, shortest: float, longest: float) -> None:
        self._start = now
        self._accusers: dict[str, None] = {accuser: None}
        self._wanted = wanted
        self._shortest = shortest
        self._longest = longest
        self.deadline = self._deadline()
        """When the member is declared dead."""

    @property
    def confirmations(self) -> int:
        return len(self._accusers) - 1

    def accepts(self, accuser: str) -> bool:
        """Whether this accuser's word would be news: not heard yet and not yet confirmed enough."""
        return self.confirmations < self._wanted and accuser not in self._accusers

    def confirm(self, accuser: str) -> bool:
        """Count a further accuser; returns whether it was news and so worth passing on."""
        if not self.accepts(accuser):
            return False
        self._accusers[accuser] = None
        self.deadline = self._deadline()
        return True

    def _deadline(self) -> float:
        if self._wanted < 1:
            return self._start + self._shortest
        fraction = math.log(self.confirmations + 1) / math.log(self._wanted + 1)
        timeout = self._longest - (self._longest - self._shortest) * fraction
        return self._start + max(self._shortest, timeout)

    def postpone(self, seconds: float) -> None:
        """We could not listen for so long: the accused gets that time back."""
        self._start += seconds
        self.deadline = self._deadline()
