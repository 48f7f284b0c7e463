"""The membership list: how signed statements about members are merged, refuted, repeated and forgotten. Pure.

What is known of a member is the highest `(incarnation, kind)` among the valid statements about it, with kinds
ranked alive < suspect < dead < left. That is a total order, so members who have heard the same statements
agree, whatever the order and however often they heard them. Two deviations from memberlist, for peers that
may lie:

- an accusation counts only at exactly the incarnation of the highest `Alive` its subject has signed: a lower
  one is stale, a higher one is about something the subject never said (so nobody can drive an incarnation to
  its maximum);
- a `Dead` heard in a push-pull about a member held alive is treated as a suspicion that we share, as
  memberlist does (and so is any about a linked member that had no time to answer us, see `swim`), but of a
  member unknown until now it is taken as it stands: nothing is lost, and a newcomer is spared the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from msgspec.structs import replace as replace_struct

from hivenode.hive import profiles, statements
from hivenode.hive.broadcasts import Broadcasts
from hivenode.hive.profiles import Profile
from hivenode.hive.standing import ORDINARY
from hivenode.hive.statements import Sign, Verify
from hivenode.hive.suspicion import Suspicion
from hivenode.net.messages import Alive, Dead, Left, Statement, Suspect

_SEQUENCE_BITS = 32
MAX_UNPROVEN = 1024
"""Nodes of which a statement is kept although it cannot be checked yet."""
_GRUDGE = 30
"""Probe intervals for which a second accusation by the same member does not count against our own health."""


class MemberState(StrEnum):
    alive = "alive"
    suspect = "suspect"
    dead = "dead"
    left = "left"


PRESENT = (MemberState.alive, MemberState.suspect)
"""States of members that are not known to be gone."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node in our eyes. `since` is when it took on this state, in the seconds of `now`; `standing` and `leads` are
    what it says of itself."""

    node: str
    state: MemberState
    incarnation: int
    name: str
    addresses: tuple[str, ...]
    version: str
    since: float
    standing: int = ORDINARY
    leads: int = 0

    @property
    def boot(self) -> int:
        """Which life of the process this is."""
        return self.incarnation >> _SEQUENCE_BITS


@dataclass(frozen=True, slots=True)
class Changed:
    """A member appeared, or its state, its boot or what it says of itself changed. `was` is its earlier state, None
    for a new one."""

    member: Member
    was: MemberState | None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A member long dead or departed was dropped from the list."""

    member: Member


@dataclass(frozen=True, slots=True)
class Conflict:
    """Someone else signs with our own key: a copy of our key runs elsewhere. Told only to the one that should
    give way: the lower incarnation, or, between equals, the one whose statement encodes lower."""

    incarnation: int
    addresses: tuple[str, ...]


RosterEffect = Changed | Forgotten | Conflict


@dataclass(slots=True)
class _Record:
    member: Member
    alive: Alive
    accusation: Suspect | Dead | Left | None = None
    suspicion: Suspicion | None = None


class Health:
    """Lifeguard's local health score: 0 is well, `worst` is very ill. A slow node distrusts itself first."""

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.score = 0

    def add(self, delta: int) -> None:
        self.score = min(self._worst, max(0, self.score + delta))

    def stretch(self, seconds: float) -> float:
        return seconds * (self.score + 1)


class Roster:
    """All members known to `me`.

    Args:
        boot: which life of this node this is; persisted and raised before every start.
    """

    def __init__(
        self, me: str, *, name: str, addresses: tuple[str, ...], version: str, boot: int, profile: Profile,
        sign: Sign, verify: Verify,
    ) -> None:  # fmt: skip
        self.me = me
        self._profile = profile
        self._sign = sign
        self._verify = verify
        own = statements.alive(sign, me, boot << _SEQUENCE_BITS, name, addresses, version)
        self._records = {me: _Record(_member(own, MemberState.alive, 0.0), own)}
        self._members = {me: self._records[me].member}
        self.members: Mapping[str, Member] = MappingProxyType(self._members)
        self._suspicions: dict[str, Suspicion] = {}
        self._tombstones: dict[str, int] = {}
        self._unproven: dict[str, Alive] = {}
        """The latest word of nodes whose signature we could not check."""
        self._present = 1
        self.changes = 0
        """Rises whenever `members` changes."""
        self.on_touch: Callable[[str], None] = lambda node: None
        """Called with each member that came, changed or went."""
        self._leaving = False
        self._conflict = -1
        self._accused_at: dict[str, float] = {}
        """When each member last accused us, as far as it counted against our health."""
        self.health = Health(profile.max_health)
        self.broadcasts = Broadcasts()

    @property
    def present(self) -> int:
        """Members not known to be gone, this node included."""
        return self._present

    @property
    def own(self) -> Alive:
        """Our own latest word."""
        return self._records[self.me].alive

    def accusation(self, node: str) -> Suspect | Dead | Left | None:
        """What the accused should be told when met."""
        record = self._records.get(node)
        return record.accusation if record else None

    def correction(self, statement: Statement) -> Statement | None:
        """What answers an accusation that is out of date: a later sign of life, or the end we know of. Gossip about
        either may have ended, so that whoever missed it would wait for the next push-pull."""
        record = self._records.get(statement.node)
        if record is None or not isinstance(statement, Suspect | Dead):
            return None
        member = record.member
        if member.state not in PRESENT and isinstance(statement, Suspect):
            return record.accusation if statement.incarnation <= member.incarnation else None
        return record.alive if statement.incarnation < member.incarnation else None

    def everything(self) -> list[tuple[Statement, ...]]:
        """Each member's statements, for a push-pull."""
        return [self.statements_of(node) for node in self._records]

    def statements_of(self, node: str) -> tuple[Statement, ...]:
        """What makes another believe of this member what we do."""
        record = self._records[node]
        return (record.alive,) if record.accusation is None else (record.alive, record.accusation)

    def begin(self, now: float) -> list[RosterEffect]:
        record = self._records[self.me]
        self._set(record, replace(record.member, since=now))
        self.broadcasts.put(record.alive)
        return [Changed(record.member, None)]

    # --- merging --------------------------------------------------------------------------------------------

    def learn(
        self, now: float, statement: Statement, *, pushed: bool = False, verdict: Dead | Left | None = None
    ) -> list[RosterEffect]:
        """Merge one statement.

        Args:
            pushed: it came in a push-pull, or its subject had no time to answer: a death is but a suspicion.
            verdict: what the same push-pull says further down about the subject.
        """
        if statement.node == self.me:
            return self._about_me(now, statement)
        record = self._records.get(statement.node)
        if isinstance(statement, Alive):
            return self._learn_alive(now, record, statement, verdict)
        if record is None:
            return []
        if isinstance(statement, Left):
            return self._learn_left(now, record, statement)
        return self._learn_accusation(now, record, statement, pushed)

    def _learn_alive(
        self, now: float, record: _Record | None, statement: Alive, verdict: Dead | Left | None
    ) -> list[RosterEffect]:
        known = record.member.incarnation if record else self._tombstones.get(statement.node, -1)
        if statement.incarnation <= known:
            return []
        if not statements.valid(statement, self._verify):
            if record is None:
                self._keep_for_later(statement)
            return []
        if record is None:
            if len(self._records) >= self._profile.max_members:
                return []
            return self._add(now, statement, verdict)
        before = record.member
        record.alive = statement
        self._acquit(record)
        member = _member(statement, MemberState.alive, before.since)
        told = replace(before, incarnation=member.incarnation) != member or member.boot != before.boot
        if before.state is not MemberState.alive or member.boot != before.boot:
            member = replace(member, since=now)
        self._present += before.state not in PRESENT
        self._set(record, member)
        self.broadcasts.put(statement)
        return [Changed(member, before.state)] if told else []

    def _keep_for_later(self, statement: Alive) -> None:
        """Perhaps we have only not heard yet that its subject is of this hive."""
        self._unproven.pop(statement.node, None)
        self._unproven[statement.node] = statement
        if len(self._unproven) > MAX_UNPROVEN:
            del self._unproven[next(iter(self._unproven))]

    def admitted(self, now: float, node: str) -> list[RosterEffect]:
        """This node's signature can be checked from now on: take up what was heard of it before."""
        statement = self._unproven.pop(node, None)
        return self.learn(now, statement) if statement is not None else []

    def _add(self, now: float, statement: Alive, verdict: Dead | Left | None) -> list[RosterEffect]:
        state = MemberState.alive
        incarnation = statement.incarnation
        if isinstance(verdict, Left):
            applies = verdict.incarnation >= incarnation
        else:
            applies = verdict is not None and verdict.incarnation == incarnation
        if verdict is not None and applies and statements.valid(verdict, self._verify):
            state = MemberState.left if isinstance(verdict, Left) else MemberState.dead
            incarnation = verdict.incarnation
        else:
            verdict = None
        member = replace(_member(statement, state, now), incarnation=incarnation)
        record = _Record(member, statement, verdict)
        self._records[statement.node] = record
        self._tombstones.pop(statement.node, None)
        self._set(record, record.member)
        self._present += state in PRESENT
        if verdict is None:
            self.broadcasts.put(statement)
        return [Changed(record.member, None)]

    def _learn_left(self, now: float, record: _Record, statement: Left) -> list[RosterEffect]:
        member = record.member
        if statement.incarnation < member.incarnation or (
            statement.incarnation == member.incarnation and member.state is MemberState.left
        ):
            return []
        if not statements.valid(statement, self._verify):
            return []
        self._set(record, replace(member, incarnation=statement.incarnation))
        return self._turn(now, record, MemberState.left, statement)

    def _learn_accusation(
        self, now: float, record: _Record, statement: Suspect | Dead, pushed: bool
    ) -> list[RosterEffect]:
        member = record.member
        if statement.incarnation != member.incarnation or member.state not in PRESENT:
            return []
        if isinstance(statement, Dead) and not pushed:
            if not statements.valid(statement, self._verify):
                return []
            return self._turn(now, record, MemberState.dead, statement)
        if isinstance(statement, Dead):
            if member.state is MemberState.suspect or not statements.valid(statement, self._verify):
                return []
            return self.accuse(now, member.node, now)
        if record.suspicion is None:
            if not statements.valid(statement, self._verify):
                return []
            return self._suspect(now, record, statement, now)
        if record.suspicion.accepts(statement.by) and statements.valid(statement, self._verify):
            record.suspicion.confirm(statement.by)
            self.broadcasts.put(statement)
        return []

    def _about_me(self, now: float, statement: Statement) -> list[RosterEffect]:
        own = self.own
        if isinstance(statement, Alive | Left):
            return self._own_key(own, statement)
        if statement.incarnation != own.incarnation or self._leaving:
            return []
        if not statements.valid(statement, self._verify):
            return []
        self._take_to_heart(now, statement.by)
        self._reassert(statement.incarnation)
        return []

    def _take_to_heart(self, now: float, accuser: str) -> None:
        """An accusation says that we may be slow. One member's say counts once in a while: it might lie."""
        since = now - _GRUDGE * self._profile.probe_interval
        self._accused_at = {node: at for node, at in self._accused_at.items() if at > since}
        if accuser not in self._accused_at:
            self._accused_at[accuser] = now
            self.health.add(1)

    def _own_key(self, own: Alive, statement: Alive | Left) -> list[RosterEffect]:
        """A statement that bears our name. One above our own incarnation, or one that differs from ours at
        the same, is not from this process; if it is well signed our key runs twice."""
        if self._leaving or statement.incarnation < own.incarnation or statement.incarnation <= self._conflict:
            return []
        if statement.incarnation == own.incarnation:
            ours, theirs = statements.signed_part(own), statements.signed_part(statement)
            if theirs == ours:
                return []
            if theirs < ours:
                # The others keep to what they heard first: say it again above it, so that the copy hears of us too.
                if statements.valid(statement, self._verify):
                    self._reassert(statement.incarnation)
                return []
        if not statements.valid(statement, self._verify):
            return []
        self._conflict = statement.incarnation
        return [Conflict(statement.incarnation, statement.addresses if isinstance(statement, Alive) else ())]

    def declare(self, standing: int, leads: int) -> bool:
        """Say of ourselves how fit we are to coordinate and in which epoch we do; whether that is anything new."""
        own = self.own
        if self._leaving or (own.standing, own.leads) == (standing, leads):
            return False
        self._records[self.me].alive = replace_struct(own, standing=standing, leads=leads)
        self._reassert(own.incarnation)
        return True

    def _reassert(self, accused: int) -> None:
        record = self._records[self.me]
        own = record.alive
        incarnation = max(own.incarnation, accused) + 1
        record.alive = statements.alive(
            self._sign, self.me, incarnation, own.name, own.addresses, own.version, own.standing, own.leads
        )
        self._set(record, _member(record.alive, record.member.state, record.member.since))
        self.broadcasts.put(record.alive)

    # --- our own judgement ----------------------------------------------------------------------------------

    def accuse(self, now: float, node: str, since: float) -> list[RosterEffect]:
        """We have had reason to doubt this member since then: raise a suspicion, or confirm the one there is."""
        record = self._records.get(node)
        if record is None or node == self.me or record.member.state not in PRESENT:
            return []
        statement = statements.suspect(self._sign, node, record.member.incarnation, self.me)
        if record.suspicion is None:
            return self._suspect(now, record, statement, since)
        if record.suspicion.confirm(self.me):
            self.broadcasts.put(statement)
        return []

    def condemn(self, now: float, node: str) -> list[RosterEffect]:
        """Declare a member dead on our own word."""
        record = self._records.get(node)
        if record is None or node == self.me or record.member.state not in PRESENT:
            return []
        verdict = statements.dead(self._sign, node, record.member.incarnation, self.me)
        return self._turn(now, record, MemberState.dead, verdict)

    def leave(self, now: float) -> Left:
        """Our last word; nothing is refuted after it."""
        self._leaving = True
        record = self._records[self.me]
        statement = statements.left(self._sign, self.me, record.member.incarnation)
        self._turn(now, record, MemberState.left, statement)
        return statement

    # --- time -----------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When the next suspicion runs out."""
        return min([s.deadline for s in self._suspicions.values()]) if self._suspicions else float("inf")

    def expire(self, now: float) -> list[RosterEffect]:
        """Declare dead whoever has not refuted in time."""
        if not self._suspicions:
            return []
        late = [node for node, suspicion in self._suspicions.items() if suspicion.deadline <= now]
        return [effect for node in late for effect in self.condemn(now, node)]

    def postpone(self, seconds: float) -> None:
        """We were deaf for so long; nobody shall die of that."""
        for suspicion in self._suspicions.values():
            suspicion.postpone(seconds)

    def forget(self, now: float) -> list[RosterEffect]:
        """Drop those long gone. A tombstone keeps old statements from bringing them back."""
        horizon = now - self._profile.forget_after
        gone = [m for m in self._members.values() if m.state not in PRESENT and m.since <= horizon]
        effects: list[RosterEffect] = []
        for member in gone:
            if member.node == self.me:
                continue
            del self._records[member.node], self._members[member.node]
            self.changes += 1
            self.on_touch(member.node)
            self.broadcasts.discard(member.node)
            self._tombstones[member.node] = member.incarnation
            while len(self._tombstones) > self._profile.max_members:
                del self._tombstones[next(iter(self._tombstones))]
            effects.append(Forgotten(member))
        return effects

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _suspect(self, now: float, record: _Record, statement: Suspect, since: float) -> list[RosterEffect]:
        shortest = profiles.suspicion_min(self._profile, self._present)
        record.suspicion = Suspicion(
            since, statement.by, profiles.confirmations_wanted(self._profile, self._present),
            shortest, shortest * self._profile.suspicion_max_mult,
        )  # fmt: skip
        self._suspicions[statement.node] = record.suspicion
        return self._turn(now, record, MemberState.suspect, statement)

    def _turn(
        self, now: float, record: _Record, state: MemberState, statement: Suspect | Dead | Left
    ) -> list[RosterEffect]:
        was = record.member.state
        if state is not MemberState.suspect:
            self._acquit(record)
        record.accusation = statement
        self._present += (state in PRESENT) - (was in PRESENT)
        self._set(
            record,
            replace(record.member, state=state, since=now if was is not state else record.member.since),
        )
        self.broadcasts.put(statement)
        return [Changed(record.member, was)]

    def _acquit(self, record: _Record) -> None:
        record.accusation = None
        record.suspicion = None
        self._suspicions.pop(record.member.node, None)

    def _set(self, record: _Record, member: Member) -> None:
        record.member = member
        self._members[member.node] = member
        self.changes += 1
        self.on_touch(member.node)


def _member(statement: Alive, state: MemberState, since: float) -> Member:
    return Member(
        statement.node, state, statement.incarnation, statement.name, statement.addresses, statement.version, since,
        statement.standing, statement.leads,
    )  # fmt: skip
