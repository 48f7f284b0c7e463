"""Membership: SWIM (Das et al., 2002) with Lifeguard (Dadgar et al., 2017) and memberlist's numbers. Pure.

Unlike memberlist this runs over links that break audibly, and uses it: a link that goes down, and above all a
dial that the peer's own kernel refuses, say more than a lost datagram. A killed process is dead within two
refusals; a frozen or cut-off one takes SWIM's ordinary suspicion time, for a link that only stalls proves
nothing.

The other parts are next door: `roster` merges statements, `prober` finds out who does not answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from hivenode.hive import profiles, statements, sums
from hivenode.hive.broadcasts import MAX_STATEMENTS
from hivenode.hive.effects import Redial, Send
from hivenode.hive.prober import NEVER, Prober
from hivenode.hive.profiles import PROFILES, Profile
from hivenode.hive.refusals import Refusals
from hivenode.hive.roster import PRESENT, Changed, Conflict, Forgotten, Member, MemberState, Roster
from hivenode.hive.statements import Sign, Verify
from hivenode.net.messages import (
    Ack,
    Alive,
    Dead,
    Gossip,
    Left,
    Message,
    Nack,
    Ping,
    PingRequest,
    PushPull,
    Statement,
    Statements,
    Sums,
    Suspect,
)
from hivenode.net.transport import LinkEnd

__all__ = [
    "PRESENT",
    "PROFILES",
    "Changed",
    "Conflict",
    "Effect",
    "Forgotten",
    "Member",
    "MemberState",
    "Profile",
    "Redial",
    "Send",
    "Swim",
]

Effect = Send | Redial | Changed | Forgotten | Conflict

_FORGET_EVERY = 60.0
_BROKEN = (LinkEnd.closed, LinkEnd.reset, LinkEnd.unreachable, LinkEnd.protocol)


class Swim:
    """The membership of one node.

    Args:
        me: own node id.
        name, addresses, version: what others are told of us.
        boot: raised and persisted before every start; the upper half of our incarnation.
        profile: see `PROFILES`.
        rng: source of all random choices.
        sign: our signature of some bytes.
        verify: verify(node, signature, data); False for nodes that are not of this hive.
        dials: whether a message to this member, with no link, dials it.
        beside: those who should keep a link to this member, where not everybody does.

    Every method that takes `now` (monotonic seconds) wants it never to go back. Effects are to be carried out
    in order.
    """

    def __init__(
        self, me: str, *, name: str, addresses: tuple[str, ...], version: str, boot: int, profile: Profile,
        rng: random.Random, sign: Sign, verify: Verify, dials: Callable[[str], bool] = lambda peer: False,
        beside: Callable[[str], Iterable[str]] = lambda peer: (),
    ) -> None:  # fmt: skip
        self._me = me
        self._profile = profile
        self._rng = rng
        self._dials = dials
        self._summed = -NEVER
        self._asked: dict[str, None] = {}
        """Whom we have told our sums, and who may answer with theirs."""
        self._roster = Roster(
            me,
            name=name,
            addresses=addresses,
            version=version,
            boot=boot,
            profile=profile,
            sign=sign,
            verify=verify,
        )
        self.members: Mapping[str, Member] = self._roster.members
        """Everyone known, this node included, by id."""
        self._summary = sums.Summary(self.members)
        self._roster.on_touch = self._summary.touch
        self._links: dict[str, None] = {}
        self._prober = Prober(
            me, profile=profile, rng=rng, members=self.members, links=self._links, gossip=self._attached,
            health=self._roster.health, dials=dials, patience=lambda: profiles.patience(profile, self._roster.present),
            beside=beside,
        )  # fmt: skip
        self._refusals = Refusals(profile, self.members)
        self._running = False
        self._gossip_at = NEVER
        self._gossiped = 0.0
        self._push_pull_at = NEVER
        self._forget_at = NEVER
        self._lag_counted = -NEVER

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 (well) to 7."""
        return self._roster.health.score

    @property
    def changes(self) -> int:
        """Rises whenever `members` changes."""
        return self._roster.changes

    @property
    def present(self) -> int:
        """Members not known to be gone, this node included."""
        return self._roster.present

    def latency(self, peer: str) -> float | None:
        """Smoothed round trip of direct probes, seconds; None before the first."""
        return self._prober.latency(peer)

    # --- time -----------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        self._running = True
        self._gossiped = now - self._profile.gossip_interval
        self._push_pull_at = now + self._rng.uniform(0, self._profile.push_pull_interval)
        self._forget_at = now + _FORGET_EVERY
        self._prober.begin(now)
        effects: list[Effect] = [*self._roster.begin(now)]
        self._plan_gossip(now)
        return effects

    def deadline(self) -> float:
        """When `tick` must be called next, in the seconds of `now`; infinity before start and after leave."""
        if not self._running:
            return NEVER
        return min(
            self._prober.deadline(), self._roster.deadline(), self._gossip_at, self._push_pull_at,
            self._forget_at, self._refusals.deadline(),
        )  # fmt: skip

    def tick(self, now: float) -> list[Effect]:
        """Do what is due. Called late, we were deaf in the meantime: others get that time back before they
        are judged, and our health score rises instead."""
        if not self._running:
            return []
        late = now - self.deadline()
        if late > self._profile.lag_threshold:
            self.lag(now, late)
            self._prober.postpone(late)
            self._roster.postpone(late)
        probing, failed = self._prober.tick(now)
        effects: list[Effect] = [*probing]
        for node, since in failed:
            effects += self._accuse(now, node, since)
        effects += self._roster.expire(now)
        effects += [Redial(peer) for peer in self._refusals.due(now)]
        if now >= self._push_pull_at:
            effects += self._exchange(now)
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_EVERY
            for gone in self._roster.forget(now):
                effects.append(gone)
                if isinstance(gone, Forgotten):
                    self._prober.forget(gone.member.node)
                    self._refusals.moved(gone.member.node)
        self._plan_gossip(now)
        if now >= self._gossip_at:
            effects += self._gossip(now)
        return effects

    def lag(self, now: float, seconds: float) -> None:
        """Our own event loop was late by so many seconds: distrust ourselves before others. Counts at most
        once per probe interval."""
        if seconds > self._profile.lag_threshold and now - self._lag_counted >= self._profile.probe_interval:
            self._lag_counted = now
            self._roster.health.add(1)

    def declare(self, now: float, standing: int, leads: int) -> bool:
        """Say how fit we are to coordinate, and the counter of the epoch in which we do (else 0); whether that is
        anything new."""
        news = self._roster.declare(standing, leads)
        if news:
            self._plan_gossip(now)
        return news

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye to everyone linked. Afterwards only questions are answered, nothing is started."""
        statement = self._roster.leave(now)
        self._running = False
        self._prober.stop()
        self._refusals.clear()
        farewell = Gossip((statement,))
        goodbyes = [Send(peer, farewell) for peer in self._links]
        return [*goodbyes, Changed(self.members[self._me], MemberState.alive)]

    # --- messages -------------------------------------------------------------------------------------------

    def receive(self, now: float, peer: str, message: Message) -> list[Effect]:
        """`peer` is the authenticated sender. Messages that are not membership's are ignored."""
        effects: list[Effect] = []
        match message:
            case Ping(sequence=sequence, gossip=gossip):
                effects += self._learn(now, gossip)
                corrections = self._corrections(gossip)
                effects.append(Send(peer, Ack(sequence, self._with(corrections, self._attached(peer)))))
            case Ack(sequence=sequence, gossip=gossip):
                effects += self._learn(now, gossip)
                effects += self._prober.acked(now, peer, sequence)
                effects += self._correct(peer, gossip)
            case PingRequest(gossip=gossip):
                effects += self._learn(now, gossip)
                effects += self._prober.requested(now, peer, message)
                effects += self._correct(peer, gossip)
            case Nack(sequence=sequence):
                self._prober.nacked(peer, sequence)
            case Gossip(gossip=gossip):
                effects += self._learn(now, gossip)
                effects += self._correct(peer, gossip)
            case PushPull(members=members, reply=reply):
                effects += self._learn(now, members, pushed=True)
                effects += self._correct(peer, members)
                if reply:
                    effects += self._introduce(peer, reply=False)
            case Sums(sums=sums, reply=reply):
                effects += self._compare(now, peer, sums, reply=reply)
            case _:
                return []
        self._plan_gossip(now)
        return effects

    def admitted(self, now: float, node: str) -> list[Effect]:
        """This node has become one of the hive in our eyes: statements of it that were heard before count now."""
        effects: list[Effect] = [*self._roster.admitted(now, node)]
        for effect in effects:
            if isinstance(effect, Changed):
                self._noted(effect)
        self._plan_gossip(now)
        return effects

    def _learn(self, now: float, heard: Statements, *, pushed: bool = False) -> list[Effect]:
        verdicts = {s.node: s for s in heard if isinstance(s, Dead | Left)} if pushed else {}
        latest: dict[str, int] = {}
        for statement in heard:
            if isinstance(statement, Alive) and statement.incarnation > latest.get(statement.node, -1):
                latest[statement.node] = statement.incarnation
        effects: list[Effect] = []
        for statement in heard:
            if isinstance(statement, Alive) and statement.incarnation < latest[statement.node]:
                continue  # an honest node says one thing of each; many would cost a signature check and a change each
            doubted = pushed or self._premature(now, statement)
            learnt = self._roster.learn(now, statement, pushed=doubted, verdict=verdicts.get(statement.node))
            effects += learnt
            for effect in learnt:
                if isinstance(effect, Changed):
                    self._noted(effect)
        return effects

    def _premature(self, now: float, statement: Statement) -> bool:
        """Whether this is the death of a member that we are linked with and that had no time to answer us. When a
        network heals, links deliver all at once what the other side wrote of ours while it could not see it: the
        suspicion and, in the same moment, the verdict. We take that as a suspicion, and ask."""
        if not isinstance(statement, Dead) or statement.node not in self._links:
            return False
        member = self.members.get(statement.node)
        if member is None:
            return False
        return member.state is MemberState.alive or now - member.since < self._profile.probe_interval

    def _noted(self, change: Changed) -> None:
        """A member that comes, or comes back, joins the probing round. One that is well where we cannot see
        it has moved or restarted: what a dial to where it was would say no longer counts."""
        node = change.member.node
        if change.member.state is MemberState.alive and change.was not in PRESENT:
            self._prober.add(node)
        if change.member.state is MemberState.alive and node not in self._links:
            self._refusals.moved(node)

    def _corrections(self, heard: Statements) -> Statements:
        """What the sender of these should know better, ourselves included."""
        found: list[Statement] = []
        room = self._profile.gossip_bytes
        for statement in heard:
            correction = self._roster.correction(statement)
            if correction is None or correction in found or len(found) == MAX_STATEMENTS:
                continue
            room -= statements.size(correction)
            if room < 0:
                break
            found.append(correction)
        return tuple(found)

    def _correct(self, peer: str, heard: Statements) -> list[Effect]:
        corrections = self._corrections(heard)
        return [Send(peer, Gossip(corrections))] if corrections else []

    # --- links ----------------------------------------------------------------------------------------------

    def link_up(self, now: float, peer: str) -> list[Effect]:
        """Exchange memberships with a new link at once. Both ends do, so neither asks for a reply; called
        again for a link already known it does ask, for the case that what the peer said could not be verified
        the first time."""
        again = peer in self._links
        self._links[peer] = None
        self._refusals.linked(peer)
        effects: list[Effect] = [*self._introduce(peer, reply=again)]
        if self._running:
            effects += self._prober.linked(now, peer)
            self._plan_gossip(now)
        return effects

    def link_down(self, now: float, peer: str, why: LinkEnd) -> list[Effect]:
        """A link does not break without cause: dial again and probe next. Not if we closed it ourselves, and
        not if the peer is no longer who it should be."""
        self._links.pop(peer, None)
        member = self.members.get(peer)
        if not self._running or member is None or member.state not in PRESENT or why not in _BROKEN:
            return []
        self._prober.hurry(now, peer)
        return [Redial(peer)]

    def dial_failed(self, now: float, peer: str, why: LinkEnd) -> list[Effect]:
        """What a refusal makes of the member is `refusals`'s."""
        member = self.members.get(peer)
        if self._running:
            self._prober.undelivered(now, peer)
        if (
            why is not LinkEnd.refused or not self._running or peer in self._links
            or member is None or member.state not in PRESENT
        ):  # fmt: skip
            return []
        effects: list[Effect]
        match self._refusals.refused(now, member):
            case MemberState.suspect:
                effects = self._accuse(now, peer, now)
            case MemberState.dead:
                effects = [*self._roster.condemn(now, peer)]
            case _:
                return []
        self._plan_gossip(now)
        return effects

    def expel(self, now: float, node: str) -> list[Effect]:
        """It is no member any more, by an authority above ours: hold it dead, whatever it says."""
        self._refusals.forget(node)
        effects: list[Effect] = [*self._roster.condemn(now, node)]
        self._plan_gossip(now)
        return effects

    # --- telling others -------------------------------------------------------------------------------------

    def _accuse(self, now: float, node: str, since: float) -> list[Effect]:
        """Raise or confirm a suspicion, and give the accused itself the chance to answer first, over a fresh connection
        if its link is stalled."""
        effects: list[Effect] = [*self._roster.accuse(now, node, since)]
        accusation = self._roster.accusation(node)
        if accusation is not None and node in self._links:
            effects += [Send(node, Gossip((accusation,))), Redial(node)]
        return effects

    def _attached(self, peer: str) -> Statements:
        """Gossip to go along with a message; the accused hears first what it is accused of."""
        accusation = self._roster.accusation(peer)
        limit = profiles.retransmit_limit(self._profile, self._roster.present)
        taken = self._roster.broadcasts.take(self._profile.gossip_bytes, limit)
        return self._with((accusation,), taken) if isinstance(accusation, Suspect | Dead) else taken

    @staticmethod
    def _with(first: Sequence[Statement], rest: Statements) -> Statements:
        return (*first, *(statement for statement in rest if statement not in first))

    def _plan_gossip(self, now: float) -> None:
        if not self._running or not len(self._roster.broadcasts):
            self._gossip_at = NEVER
        elif self._gossip_at == NEVER:
            self._gossip_at = max(now, self._gossiped + self._profile.gossip_interval)

    def _gossip(self, now: float) -> list[Effect]:
        self._gossiped = now
        self._gossip_at = NEVER
        horizon = now - self._profile.gossip_to_dead
        hearers = [peer for peer in self._links if self._hears_gossip(peer, horizon)]
        effects: list[Effect] = []
        for peer in self._rng.sample(hearers, min(len(hearers), self._profile.gossip_fanout)):
            attached = self._attached(peer)
            if attached:
                effects.append(Send(peer, Gossip(attached)))
        self._plan_gossip(now)
        return effects

    def _hears_gossip(self, peer: str, horizon: float) -> bool:
        member = self.members.get(peer)
        if member is None or member.state is MemberState.left:
            return False
        return member.state in PRESENT or member.since > horizon

    def _exchange(self, now: float) -> list[Effect]:
        """The regular push-pull with one random member, which repairs what gossip missed."""
        interval = profiles.push_pull_interval(self._profile, self._roster.present)
        self._push_pull_at = now + interval
        able = [
            member.node for member in self.members.values()
            if member.state is MemberState.alive and (member.node in self._links or self._dials(member.node))
        ]  # fmt: skip
        return [*self._introduce(self._rng.choice(able), reply=True)] if able else []

    def _introduce(self, peer: str, *, reply: bool) -> list[Send]:
        """Tell our whole membership, or, where that is long, what it comes to."""
        if self._roster.present <= self._profile.whole_push_pull:
            return self._push(peer, reply=reply)
        self._asked[peer] = None
        if len(self._asked) > MAX_STATEMENTS:
            del self._asked[next(iter(self._asked))]
        return [Send(peer, Sums(self._summary.of(sums.groups_for(len(self.members))), reply=True))]

    def _compare(self, now: float, peer: str, theirs: bytes, *, reply: bool) -> list[Effect]:
        if not sums.valid(theirs):
            return []
        if reply:
            if now - self._summed < self._profile.sums_interval:
                return []  # of many who ask at once, as when a network heals, one brings the news and gossip the rest
            self._summed = now
        elif self._asked.pop(peer, self) is not None:
            return []
        groups = len(theirs) // sums.BYTES
        ours = self._summary.of(groups)
        different = sums.differing(ours, theirs)
        if not different:
            return []
        wanted = [self._roster.statements_of(node) for node in self._summary.members(groups, different)]
        effects: list[Effect] = [*self._send_pieces(peer, wanted, reply=False)] if wanted else []
        if reply:
            effects.append(Send(peer, Sums(ours, reply=False)))
        return effects

    def _push(self, peer: str, *, reply: bool) -> list[Send]:
        return self._send_pieces(peer, self._roster.everything(), reply=reply)

    def _send_pieces(self, peer: str, groups: Iterable[Sequence[Statement]], *, reply: bool) -> list[Send]:
        pieces = list(_pieces(groups, self._profile.push_pull_bytes))
        last = len(pieces) - 1
        return [Send(peer, PushPull(piece, reply and index == last)) for index, piece in enumerate(pieces)]


def _pieces(groups: Iterable[Sequence[Statement]], max_bytes: int) -> Iterable[Statements]:
    """Cut into messages that fit a frame, never between the statements about one member."""
    piece: list[Statement] = []
    room = max_bytes
    for group in groups:
        needed = sum(statements.size(statement) for statement in group)
        if piece and (needed > room or len(piece) + len(group) > MAX_STATEMENTS):
            yield tuple(piece)
            piece, room = [], max_bytes
        piece += group
        room -= needed
    yield tuple(piece)
