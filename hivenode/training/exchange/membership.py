"""Views: who takes part, agreed on by those that are left. The rules, without sockets, threads or clocks.

When a member is accused (lost, silent, told by the daemon, not finite) whoever hears of it stops taking part
in the view, tells all the others what it knows (`Flush`) and passes on what it hears; accusations only ever grow,
and a member accused by anybody is out. (A leader that lets newcomers in begins in the same way, accusing nobody.) The
lowest-ranked member left forms the next view once all that are left
have told it of exactly the same membership: since they have stopped, nobody completes anything in the old view any
more, and the highest round any of them reported is done, for all, and everything after it void, for all
(virtual synchrony: Birman and Joseph 1987; the flush is Isis's).

Why two members cannot go different ways. A member adopts a view only if the view's parent is the view it is in, and
only if it does not believe the view's leader out (`Install` from the leader), or hears of it from a member it does
not believe out. Its proposals shrink, so once its report has made a view of leader A possible, another proposal of
its own can be decided only by A as well (A is the lowest in both, and forms one view a number), or lacks A; and one
that lacks A needs the report of the member that told it of A's view, which adopted it before it gave up A, and so
never sends such a report. Views are numbered `(counter, leader)`, grow along every path, and messages of any view
but the current one are ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from hivenode.training.exchange.effects import Effect, Entered, Phase, Send
from hivenode.training.exchange.messages import FIRST, Accusation, Candidate, Flush, Install, Reason, ViewId
from hivenode.training.exchange.views import RankView

BLAMED = (Reason.nonfinite, Reason.absurd)
"""Reasons that lie in what a member contributed."""


class Membership(ABC):
    """One member's side of agreeing on views.

    Args:
        rank: this member's.
        ranks: all members named, this one included.
        joining: the others are members of a view already, and this one wants to be let in.
    """

    def __init__(self, rank: int, ranks: Sequence[int], *, joining: bool = False) -> None:
        self.rank = rank
        self.view = RankView(FIRST, FIRST, tuple(sorted({*ranks, rank})))
        self.phase = Phase.joining if joining else Phase.forming
        self.completed = 0
        """Number of the last round this member holds the result of."""
        self.verdict: Accusation | None = None
        """Why this member is out."""
        self.doubt = False
        """Set by the shell when this process stood still for longer than others wait: if it then finds itself
        alone, it is the one that was left out."""
        self._unlinked = set(self.view.ranks) - {rank}
        self._accused: dict[int, Accusation] = {}
        self._reports: dict[int, tuple[tuple[int, ...], int]] = {}
        """Of each member: the membership it proposes, and the last round it completed."""
        self._leaving: dict[int, None] = {}
        self._installed: Install | None = None
        self.newcomers: set[int] = set()
        """Members that have come into a view and not completed a round since."""
        self._candidates: dict[int, set[int]] = {}
        """Workers that want to join, and the members known to have a link to them."""
        self._growing = False
        self._gone: set[int] = set()
        """Members lost while joining."""

    @abstractmethod
    def _resolve(self, install: Install) -> list[Effect]:
        """A view is in force: the round under way is done or void."""

    @abstractmethod
    def _abandon(self) -> None:
        """This member is out: so is the round under way, for it."""

    @property
    def proposal(self) -> tuple[int, ...]:
        """The members of the view that nobody is known to have accused."""
        return tuple(rank for rank in self.view.ranks if rank not in self._accused)

    @property
    def unlinked(self) -> tuple[int, ...]:
        """Members the first view still waits for."""
        waits = self.phase in (Phase.forming, Phase.joining)
        return tuple(sorted(self._unlinked - self._accused.keys())) if waits else ()

    def linked(self, rank: int) -> list[Effect]:
        """The link to that member or candidate is up."""
        if rank in self._candidates:
            self._candidates[rank].add(self.rank)
            return self._vouch(rank)
        self._unlinked.discard(rank)
        return self._form()

    def start(self) -> list[Effect]:
        """Call once after construction: a member named alone forms its view at once."""
        return self._form()

    def accuse(self, rank: int, reason: Reason, number: int = 0) -> list[Effect]:
        """This member has seen for itself that the other cannot go on."""
        if self.phase is Phase.joining:
            self._gone.add(rank)
            return self._give_up_joining()
        if rank in self._leaving and reason in (Reason.lost, Reason.silent, Reason.told):
            return []
        return self._accuse([Accusation(rank, self.rank, reason, number)])

    # --- newcomers ---------------------------------------------------------------------------------------------

    def admit(self, rank: int) -> None:
        """That worker wants to join. It is let in before a round that is open, once all members have a link to it."""
        if rank not in self.view.ranks:
            self._candidates.setdefault(rank, set())

    def is_candidate(self, rank: int) -> bool:
        return rank in self._candidates

    def dismiss(self, rank: int) -> None:
        """The link to a candidate has ended."""
        self._candidates.pop(rank, None)

    def on_candidate(self, sender: int, candidate: Candidate) -> None:
        if sender in self.view.ranks and candidate.rank not in self.view.ranks:
            self._candidates.setdefault(candidate.rank, set()).add(sender)

    @property
    def welcome(self) -> tuple[int, ...]:
        """Candidates that every member can reach."""
        return tuple(sorted(r for r, linked in self._candidates.items() if linked >= set(self.proposal)))

    def _vouch(self, rank: int) -> list[Effect]:
        leader = self.view.ranks[0]
        return [] if leader == self.rank else [Send(leader, Candidate(rank))]

    def _grow(self) -> list[Effect]:
        """End this view, and take who is welcome into the next."""
        self._growing = True
        return self._report()

    @abstractmethod
    def _unsettled(self) -> bool:
        """This member is new, and waits for the state."""

    @abstractmethod
    def _flushes_heard(self) -> Iterable[Flush]:
        """Of views this member has not been told that it is in."""

    def _give_up_joining(self) -> list[Effect]:
        """When nobody is left, or a view that this member is in was formed by one who can no longer tell it so: the
        others end it, and would wait for this one's report."""
        stranded = any(self.rank in f.members and f.view.leader in self._gone for f in self._flushes_heard())
        if not stranded and set(self.view.ranks) - self._gone != {self.rank}:
            return []
        return self._leave(Accusation(self.rank, self.rank, Reason.unreachable))

    def _come_in(self, install: Install) -> list[Effect]:
        """This member, who has been joining, is one of the view."""
        if self.rank not in install.joined:
            return []
        if (self._unlinked | self._gone) & set(install.members):
            return self._leave(Accusation(self.rank, self.rank, Reason.unreachable))
        dropped = [rank for rank in self.view.ranks if rank not in install.members]
        self.view = RankView(install.view, install.parent, install.members)
        self.phase, self.completed = Phase.stable, install.completed
        self._installed, self.newcomers = install, set(install.joined)
        self._accused, self._reports, self._leaving = {}, {}, {}
        effects: list[Effect] = [
            Entered(self.view, tuple(Accusation(rank, install.view.leader, Reason.told) for rank in dropped))
        ]
        return effects + self._resolve(install)

    # --- losses ------------------------------------------------------------------------------------------------

    def turn_away(self, rank: int) -> list[Send]:
        """A member that comes too late for the first view is told which one there is."""
        return [Send(rank, self._installed)] if self._installed is not None else []

    def expel_leavers(self) -> list[Effect]:
        """Before a new round: members that have finished take no part in it."""
        return self._accuse([Accusation(rank, self.rank, Reason.left) for rank in self._leaving])

    def _accuse(self, accusations: Sequence[Accusation]) -> list[Effect]:
        if self.phase is Phase.out:
            return []
        fresh = [a for a in accusations if a.rank in self.view.ranks and a.rank not in self._accused]
        for accusation in fresh:
            if accusation.rank == self.rank:
                return self._leave(accusation)
            self._accused[accusation.rank] = accusation
        if not fresh:
            return []
        return self._form() if self.phase is Phase.forming else self._report()

    def _leave(self, verdict: Accusation) -> list[Effect]:
        """This member is out. It tells the others, lest they wait for it."""
        told: list[Effect] = []
        if verdict.by == self.rank:
            flush = Flush(self.view.id, self.view.parent, self.view.ranks, (verdict,), self.completed)
            told = [Send(rank, flush) for rank in self.view.ranks if rank != self.rank]
        self.phase = Phase.out
        self.verdict = verdict
        self._abandon()
        return told

    def _form(self) -> list[Effect]:
        return self._report() if self.phase is Phase.forming and not self.unlinked else []

    def _report(self) -> list[Effect]:
        self.phase = Phase.flush
        for rank in self._leaving:
            if rank in self.view.ranks and rank not in self._accused:
                self._accused[rank] = Accusation(rank, self.rank, Reason.left)
        flush = Flush(self.view.id, self.view.parent, self.view.ranks, tuple(self._accused.values()), self.completed)
        effects: list[Effect] = [Send(rank, flush) for rank in self.view.ranks if rank != self.rank]
        return effects + self._decide()

    def _decide(self) -> list[Effect]:
        proposal = self.proposal
        if self.phase is not Phase.flush or proposal[0] != self.rank:
            return []
        others = [rank for rank in proposal if rank != self.rank]
        if any(self._reports.get(rank, ((), 0))[0] != proposal for rank in others):
            return []
        joined = tuple(rank for rank in self.welcome if self._growing and rank not in proposal)
        if not others and self.doubt and len(self.view.ranks) > 1:
            return self._leave(Accusation(self.rank, self.rank, Reason.paused))
        rounds = {rank: self._reports[rank][1] for rank in others} | {self.rank: self.completed}
        done = max(rounds.values())
        install = Install(
            view=ViewId(self.view.id.number + 1, self.rank),
            parent=self.view.id,
            members=tuple(sorted((*proposal, *joined))),
            accused=tuple(self._accused.values()),
            completed=done,
            source=min(rank for rank, completed in rounds.items() if completed == done),
            joined=joined,
        )
        return self._install(install)

    def _install(self, install: Install, *, ending: bool = False) -> list[Effect]:
        """Enter the next view; `ending` when a member is known to have stopped taking part in it already."""
        old = self.view
        # Who put out a member for its numbers closes its links too: its loss may be the first that others see.
        known = self._accused | {a.rank: a for a in install.accused if a.reason in BLAMED}
        dropped = tuple(
            known.get(rank, Accusation(rank, install.view.leader, Reason.told))
            for rank in old.ranks
            if rank not in install.members
        )
        told = (
            (*old.ranks, *install.joined)
            if install.view.leader == self.rank
            else [accusation.rank for accusation in dropped]
        )
        effects: list[Effect] = [Send(rank, install) for rank in told if rank != self.rank]
        self.view = RankView(install.view, install.parent, install.members)
        self.phase = Phase.stable
        self._installed = install
        self._reports = {}
        self._growing = False
        self.newcomers = (self.newcomers | set(install.joined)) & set(install.members)
        self._candidates = {r: linked for r, linked in self._candidates.items() if r not in install.members}
        # What this member knows and the new view does not is kept: nobody will say it a second time.
        self._accused = {rank: a for rank, a in self._accused.items() if rank in install.members}
        self._leaving = {rank: None for rank in self._leaving if rank in install.members}
        if len(install.members) > 1:
            self.doubt = False
        effects.append(Entered(self.view, dropped))
        for rank, linked in self._candidates.items():
            if self.rank in linked:
                effects += self._vouch(rank)
        if ending:
            # The attempt is neither done nor void yet: the flush of this view decides.
            return effects + self._report()
        effects += self._resolve(install)
        if self.phase is Phase.out or not self._accused:
            return effects
        return effects + self._report()

    def on_flush(self, sender: int, flush: Flush) -> list[Effect]:
        """A member has stopped taking part in its view."""
        effects: list[Effect] = []
        if flush.view != self.view.id and flush.parent == self.view.id and self.phase is Phase.flush:
            effects = self._adopt(sender, flush)
        if self.phase is Phase.out:
            return effects
        if flush.view != self.view.id:
            return effects + self._correct(sender, flush)
        if sender in self._accused:
            return effects
        accusations = list(flush.accused)
        if self.view.id == FIRST:
            # Lists that differ: who is not on everybody's cannot be agreed on.
            accusations += [Accusation(r, sender, Reason.unknown) for r in self.view.ranks if r not in flush.members]
        out = {accusation.rank for accusation in accusations}
        self._reports[sender] = (tuple(rank for rank in flush.members if rank not in out), flush.completed)
        for accusation in accusations:
            if accusation.reason in BLAMED and accusation.rank in self._accused:
                self._accused[accusation.rank] = accusation
        if any(a.rank in self.view.ranks and a.rank not in self._accused for a in accusations):
            return effects + self._accuse(accusations)
        if self.phase is Phase.stable:
            return effects + self._report()
        return effects + self._decide()

    def _adopt(self, sender: int, flush: Flush) -> list[Effect]:
        """A member is already ending a view that this one was not told of: join it there."""
        if self.rank not in flush.members:
            return self._leave(Accusation(self.rank, sender, Reason.told))
        proposal = self.proposal
        if sender not in proposal and flush.view.leader not in proposal:
            return []
        joined = tuple(rank for rank in flush.members if rank not in self.view.ranks)
        return self._install(
            Install(flush.view, flush.parent, flush.members, (), self.completed, self.rank, joined), ending=True
        )

    def _correct(self, sender: int, flush: Flush) -> list[Effect]:
        """The sender is in another view: an earlier one, or a branch."""
        if self._installed is None:
            return []
        if sender not in self.view.ranks or flush.view == self.view.parent:
            return [Send(sender, self._installed)]
        return []

    def on_install(self, sender: int, install: Install) -> list[Effect]:
        """A member tells of a view that has been decided."""
        if self.phase is Phase.joining:
            return self._come_in(install)
        if self.rank in install.joined and install.view > self.view.id:
            # Those who let it in first are gone, and others let it in who had not heard of that.
            return self._come_in(install) if self._unsettled() else self._leave(self._reason_for(self.rank, install))
        if install.view == self.view.id or install.parent != self.view.id:
            stale = install.view <= self.view.id or sender not in self.view.ranks
            if self.rank not in install.members and not stale:
                return self._leave(self._reason_for(self.rank, install))
            return []
        if self.rank not in install.members:
            return self._leave(self._reason_for(self.rank, install))
        proposal = self.proposal
        if self.phase is not Phase.flush or (sender not in proposal and install.view.leader not in proposal):
            return []
        return self._install(install)

    def _reason_for(self, rank: int, install: Install) -> Accusation:
        for accusation in install.accused:
            if accusation.rank == rank:
                return accusation
        return Accusation(rank, install.view.leader, Reason.told)
