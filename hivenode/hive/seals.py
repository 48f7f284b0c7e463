"""What the feeds say about sealing, and what may follow from it. Pure.

A seal replaces all events up to a horizon by a snapshot. The coordinator proposes it; every member that holds exactly
the same events up to the horizon computes the snapshot for itself and confirms it; the proposer closes it.

Why two different snapshots are never closed under one number: only its proposer can close a proposal, everyone else's
needs that proposer's confirmation unless it was not heard for long, and who has confirmed another's does not close its
own any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hivenode.hive.feeds import Entry
from hivenode.hive.snapshots import MAX_MEMBERS, Certificate
from hivenode.spec.events import SealClosed, SealConfirmed, SealProposed


@dataclass(frozen=True, slots=True)
class Proposal:
    author: str
    seq: int
    body: SealProposed
    entry: Entry


@dataclass(slots=True)
class Round:
    """All that was said of one seal.

    Args:
        leads: whether a node may coordinate.
    """

    number: int
    leads: Callable[[str], bool]
    _proposals: dict[str, list[Proposal]] = field(default_factory=dict)
    _confirmations: dict[str, dict[str, Entry]] = field(default_factory=dict)
    _closings: list[tuple[Entry, SealClosed]] = field(default_factory=list)

    @classmethod
    def of(cls, number: int, entries: Iterable[Entry], leads: Callable[[str], bool]) -> Round:
        made = cls(number, leads)
        for entry in entries:
            match entry.body:
                case SealProposed(number=said) as body if said == number:
                    proposal = Proposal(entry.event.author, entry.event.seq, body, entry)
                    made._proposals.setdefault(proposal.author, []).append(proposal)
                case SealConfirmed(number=said) as body if said == number:
                    made._confirmations.setdefault(body.digest, {})[entry.event.author] = entry
                case SealClosed(number=said) as body if said == number:
                    made._closings.append((entry, body))
                case _:
                    pass
        return made

    @property
    def current(self) -> Proposal | None:
        """The one to confirm: of the highest epoch, its author's latest."""
        latest = [
            proposals[-1]
            for author, proposals in sorted(self._proposals.items())
            if proposals[-1].body.epoch.node == author and self.leads(author)
        ]
        return max(latest, key=lambda proposal: proposal.body.epoch, default=None)

    def confirmed(self, digest: str) -> Mapping[str, Entry]:
        """By author."""
        return self._confirmations.get(digest, {})

    def closable(self, author: str) -> Proposal | None:
        """The author's own latest proposal, unless it has confirmed another one since, or there is a higher one."""
        own = self._proposals.get(author)
        if not own or self.current is not own[-1]:
            return None
        given_up = any(
            author in held and held[author].event.seq > own[-1].seq and digest != own[-1].body.digest
            for digest, held in self._confirmations.items()
        )
        return None if given_up else own[-1]

    def certificates(self) -> Iterable[tuple[Proposal, Certificate]]:
        """Of every closing that has its proposal."""
        for entry, body in self._closings:
            before = [p for p in self._proposals.get(entry.event.author, ()) if p.seq < entry.event.seq]
            if before and before[-1].body.digest == body.digest:
                held = self.confirmed(body.digest)
                events = tuple(held[author].event for author in sorted(held))[:MAX_MEMBERS]
                yield before[-1], Certificate(before[-1].entry.event, events, entry.event)


def excusable(
    nodes: Iterable[str],
    *,
    present: Iterable[str],
    revoked: Callable[[str], bool],
    heard: Callable[[str], int],
    since: int,
) -> tuple[str, ...]:
    """Those that a seal does not wait for.

    Args:
        present: nodes that are there now.
        heard: hybrid clock of the last event of a node.
        since: a hybrid clock; who was heard since is waited for.
    """
    there = set(present)
    return tuple(node for node in sorted(nodes) if revoked(node) or (node not in there and heard(node) < since))
