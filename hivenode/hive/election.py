"""Election of the coordinator: Raft's leader election (Ongaro, 2014, sections 3.4, 4.2.3 and 9.6) without its
log. Pure.

An epoch is `(counter, node)`. A node votes at most once per counter and persists the vote before it answers,
and it accepts at most one leader per counter and persists that before it acts on it. Both hold across
crashes. It follows:

- Where any two electorates that elect share a voter (`quorum` above half of all that may coordinate, or
  everybody in one network), a counter has at most one leader, as in Raft.
- With `quorum = 0` a majority of those *alive* suffices, so that two machines survive the loss of one and
  both sides of a partition go on. Then each side may elect under the same counter. No node follows both:
  epochs with the same counter never follow each other on one node, so whoever obeyed one of them needs a
  higher counter to change sides.

What a leader does when it learns of a counter or epoch above its own:

- From a *heartbeat*, which only a live leader sends: the higher epoch stands, so it steps down; if the
  counter is higher it follows, and if only the node id is, it waits for the other to outbid both. The other,
  meeting a rival under its own counter, does: the rival's followers are free once the rival has stepped down,
  but bound to the counter.
- From a *refused heartbeat* (an ack that names a higher epoch): that is no proof of a leader. It may be a stray that
  promised its vote to a candidate which never won, or obeyed a leader long gone. Stepping down would let one stray
  stop a healthy hive, and ignoring it would leave the stray without a leader for ever. So the leader waits for two
  heartbeats, in which a live leader would make itself heard, and then *outbids*: it stands for the next counter
  above, pre-vote first, and goes on leading meanwhile. Its own followers grant that, for a vote for the leader they
  hear disturbs nobody. If instead another leader lives whom we cannot hear, its followers refuse; we then lack the
  support of a majority and step down.
- From a *vote request*: nothing but a refusal. Pre-vote and sticky voters keep a node that merely cannot hear
  us from raising the counter; if it has raised it all the same, it refuses our next heartbeat and the case
  above applies.

Counters more than `MAX_STEP` above anything seen are not believed, so that one message cannot use them up.

Who should lead: members tell how fit they are (`standing`). Better ones stand earlier; a voter refuses its pre-vote to
a candidate while a clearly better one is alive, but not for longer than a moment, lest one that never stands keep the
hive waiting; and a leader hands over to a clearly better member, or to the best one when it stops (Ongaro, 3.10): it
names its heir in its heartbeats, the heir stands at once, and voters grant it their votes although they hear their
leader, who gives it his own. If nothing comes of it the leader leads on. Standings only ever decide between candidates
any of which may lead, so a false one does no harm to safety.

In a large hive only a `council` votes. Who is neither of it nor sent heartbeats believes what the membership says:
which member signs that it leads (`told`).
"""

from __future__ import annotations

from collections.abc import Mapping

from hivenode.hive.ballots import Campaign, Effect, ElectionSettings, Leader, Persist
from hivenode.hive.effects import Redial, Send
from hivenode.hive.standing import ORDINARY
from hivenode.hive.succession import NEVER
from hivenode.hive.voter import HURRIED_TRIES, MAX_STEP, Voter
from hivenode.net.messages import Heartbeat, HeartbeatAck, Message, VoteReply, VoteRequest
from hivenode.spec.values import Epoch

__all__ = ["MAX_STEP", "Effect", "Election", "ElectionSettings", "Leader", "Persist", "Redial", "Send"]

STRAY_STEP = 64
"""How far above the leader's own epoch it believes one that a member names which may not coordinate."""
_RAISES = 3
"""Times one campaign raises its counter because a voter knows of a higher one."""
_REDIALS = 3
"""Voters that a leader dials afresh after one heartbeat at most."""


class Election(Voter):
    """One node's part.

    Args:
        me: own node id.
        rng: source of the random timeouts.
        state: as last persisted; None on the first start.

    Raises:
        Corrupted: `state` is not what an election persists.

    Methods that take `now` (monotonic seconds) want it never to go back. Their effects are to be carried out
    in order, those of one call before those of the next.
    """

    # --- time -----------------------------------------------------------------------------------------------

    def start(self, now: float, *, alone: bool = False) -> list[Effect]:
        """A node that has just started first listens for a leader, and longer while others that could vote
        are not linked yet: a lone early starter would otherwise elect itself over the heads of a hive that
        has a leader. `alone`: nobody else has ever been of this hive, so there is nobody to listen for."""
        self._wait_until = now + 2 * self._settings.timeout[1]
        self._rearm(now)
        if alone:
            self._wait_until = now
            self._alarm_at(now)
        return []

    def deadline(self) -> float:
        """When `tick` must be called next."""
        if not self.leading:
            return self._stand_at
        ends = self._campaign.ends if self._campaign else NEVER
        return min(self._beat_at, self._bid_at, self._heir_until, ends)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        if self.leading:
            return self._lead(now)
        if now < self._stand_at:
            return []
        if self._leader is not None and self._leader.node not in self._alive:
            return self._doubt(now)
        if self._leader is not None and now - self._heard_leader < self._settings.timeout[0]:
            # We stood as its heir and did not win in time: it leads on.
            self._campaign = None
            self._rearm(now)
            return []
        if self._leader is not None and self._leader == self._told and not self._may_stand:
            self._by_word = True
            self._alarm_at(NEVER)
            return []
        if now - self._stand_at > self._settings.heartbeat and not self._spared:
            # We were late ourselves, so the leader's heartbeats may lie unread: read them first, once.
            self._spared = True
            self._alarm_at(now + self._settings.heartbeat)
            return []
        if self._may_stand and now < self._wait_until and len(self._known) > len(self._alive):
            self._rearm(self._wait_until - self._settings.timeout[0])
            return []
        if self._leader is not None:
            self._hurried = HURRIED_TRIES
        effects = self._lose_leader()
        if self._may_stand:
            effects += self._stand(now)
        else:
            self._alarm_at(NEVER)
        return effects

    # --- who there is ---------------------------------------------------------------------------------------

    def electorate(
        self,
        now: float,
        alive: tuple[str, ...],
        known: tuple[str, ...],
        eligible: bool,
        followers: tuple[str, ...] = (),
        *,
        voters: tuple[str, ...] | None = None,
        standings: Mapping[str, int] | None = None,
        told: Epoch | None = None,
    ) -> list[Effect]:
        """Tell who may vote; to be called after every change.

        Args:
            alive: members that may coordinate, are not known to be gone and can vote, sorted; with us, if we may.
            known: all members that may coordinate, sorted.
            eligible: whether we may coordinate. If not, we neither vote nor stand, but follow.
            followers: further members to send heartbeats to: those alive that do not vote.
            voters: those of `alive` that vote and stand, sorted; all if not given.
            standings: how fit they are; `ORDINARY` where nothing is said.
            told: the highest epoch in which a member that is alive and may coordinate says that it leads.
        """
        present, heard = frozenset(alive), frozenset(self._audience)
        lost = not present.issuperset(self._alive)
        self._alive, self._known, self._eligible = alive, known, eligible
        self._voters = alive if voters is None else voters
        self._standings = {node: (standings or {}).get(node, ORDINARY) for node in self._voters}
        self._told = told
        self._audience = tuple(sorted({*self._voters, *followers} - {self._me}))
        self._set_alarm()
        if self.leading:
            self._succession.look(now, self._standings)
        fresh = [peer for peer in self._audience if peer not in heard]
        missing = len(known) > len(alive)
        if self._campaign is not None and not self._may_stand:
            self._campaign = None
        if self.leading:
            effects = [*self._greet(fresh), *self._count(now)] if eligible else self._step_down(now)
        elif self._leader is not None:
            effects = [*self._doubt(now), *self._hear_tell(now)]
        else:
            effects = [*self._disclaim(fresh), *self._count(now)]
            if lost and not self.leading:
                effects += self._hasten(now)
            idle = self._stand_at == NEVER or (not missing and self._stand_at > now + self._settings.timeout[1])
            if self._may_stand and idle and not self.leading:
                self._rearm(now)
            effects += self._hear_tell(now)
        return effects

    def _doubt(self, now: float) -> list[Effect]:
        """The leader may be held dead while we hear it: on a bad network a refutation can be late. It is given up once
        it is silent too, for `window`, or if it is known to have left."""
        assert self._leader is not None
        if self._leader.node in self._alive:
            return []
        silent_at = self._heard_leader + self._settings.window
        if self._leader.node in self._known and now < silent_at:
            self._alarm_at(silent_at)
            return []
        effects = self._lose_leader()
        self._rearm(now)
        return effects + self._hasten(now)

    def _hear_tell(self, now: float) -> list[Effect]:
        """Follow whom the membership says to lead, if no heartbeats are meant for us."""
        told, effects = self._told, []
        if self._by_word and told != self._leader:
            effects = self._lose_leader()
            self._rearm(now)
        if told is None or self._may_stand or told.node not in self._alive or not self._credible(told):
            return effects
        bound = self._promised.counter > told.counter and self._promised.node != told.node
        if told == self._leader or bound or (told != self._accepted and told.counter <= self._accepted.counter):
            return effects
        if told != self._accepted:
            self._accepted = told
            effects.append(self._persist())
        effects += self._follow(now, told, by_word=True)
        return effects

    def overtaken(self, now: float, epoch: Epoch) -> list[Effect]:
        """An epoch above ours is known from elsewhere than messages: lay ours down, and stand above that one."""
        self._hear(epoch)
        if self._leader is None or not self.leading or epoch < self._leader:
            return []
        return [*self._step_down(now), *self._hasten(now)]

    def resign(self, now: float) -> list[Effect]:
        """Hand over on stop: stand no more, but go on voting, and lead until the best of those that follow has won or
        `window` is over. If there is nobody, or nothing comes of it, followers start an election at once."""
        self._resigned = True
        self._campaign = None
        if not self.leading:
            return []
        heir = self._succession.last_resort(self._confirmed(now), self._standings)
        return self._hand_over(now, heir) if heir else self._step_down(now)

    # --- messages -------------------------------------------------------------------------------------------

    def receive(self, now: float, peer: str, message: Message) -> list[Effect]:
        """`peer` is the authenticated sender. Messages that are not the election's are ignored."""
        match message:
            case Heartbeat(epoch=epoch, heir=heir):
                return self._on_heartbeat(now, peer, epoch, heir)
            case HeartbeatAck(epoch=epoch, over=over):
                return self._on_laid_down(now, peer, epoch) if over else self._on_ack(now, peer, epoch)
            case VoteRequest(epoch=epoch, trial=trial):
                return self._on_request(now, peer, epoch, trial)
            case VoteReply():
                return self._on_reply(now, peer, message)
            case _:
                return []

    def _on_heartbeat(self, now: float, peer: str, epoch: Epoch, heir: str) -> list[Effect]:
        # A leader that we hold dead is not followed anew, whatever of it is still under way; should it live, it
        # refutes.
        if epoch.node != peer or (peer not in self._alive and epoch != self._leader):
            return []
        if epoch == self._laid_down or not self._credible(epoch):
            return []
        effects: list[Effect] = []
        if self._leader is not None and self.leading:
            ours = self._leader
            if epoch < ours:
                # Tell it, and win its followers over if they are bound to our own counter.
                refusal = self._refuse(peer, ours)
                return refusal + (self._outbid(now) if epoch.counter == ours.counter else [])
            effects = self._step_down(now)
        promise = self._promised
        bound = promise.counter > epoch.counter and promise.node != peer
        if epoch == self._accepted and not bound:
            return effects + self._follow(now, epoch, heir)
        if epoch.counter > self._accepted.counter and not bound:
            self._accepted = epoch
            return [*effects, self._persist(), *self._follow(now, epoch, heir)]
        if epoch.counter == self._accepted.counter and epoch > self._accepted and not bound:
            # Our leader will give way to this one, which has to outbid it before we can follow. It gets the time for
            # that once: one that cannot, and goes on, must not keep us from an election.
            if self._leader is not None:
                effects += self._lose_leader()
                self._rearm(now)
            return effects + self._refuse(peer, self._accepted)
        return effects + self._refuse(peer, self.highest)

    def _on_ack(self, now: float, peer: str, epoch: Epoch) -> list[Effect]:
        if self._leader is None or not self.leading:
            return []
        self._answers[peer] = now
        if epoch == self._leader:
            if peer in self._known:
                self._acks[peer] = now
            return []
        within = STRAY_STEP if peer not in self._known else MAX_STEP
        if self._leader.counter <= epoch.counter <= self._leader.counter + within and self._credible(epoch):
            self._hear(epoch)
            if self._bid_at == NEVER:
                self._bid_at = now + 2 * self._settings.heartbeat
        return []

    def _on_laid_down(self, now: float, peer: str, epoch: Epoch) -> list[Effect]:
        if peer != epoch.node or epoch != self._accepted:
            return []
        self._laid_down = epoch  # a heartbeat that it sent before may still arrive
        return [*self._lose_leader(), *self._hasten(now)] if self._leader == epoch else []

    def _on_request(self, now: float, peer: str, epoch: Epoch, trial: bool) -> list[Effect]:
        if epoch.node != peer or not self._eligible or peer not in self._known:
            return []
        granted = self._would_vote(now, epoch) and not (trial and self._better_waits(now, peer))
        effects: list[Effect] = []
        if granted and not trial:
            self._promised = epoch
            self._voted = now
            effects.append(self._persist())
            if self._leader is None or self._leader.node != peer:
                effects += self._lose_leader()
            self._campaign = None
            self._beat_at = self._bid_at = self._heir_until = NEVER
            self._rearm(now)
        return [*effects, Send(peer, VoteReply(epoch, trial, granted, self.highest))]

    def _on_reply(self, now: float, peer: str, reply: VoteReply) -> list[Effect]:
        campaign = self._campaign
        if campaign is None or (reply.epoch, reply.trial) != (campaign.epoch, campaign.trial):
            return []
        if reply.granted:
            if peer in self._known:
                campaign.grants[peer] = None
            return self._count(now)
        if not self._credible(reply.highest):
            return []
        self._hear(reply.highest)
        outdated = reply.highest.counter >= campaign.epoch.counter and reply.highest.node != self._me
        if not outdated or campaign.raises >= _RAISES:
            return []
        return self._try(now, campaign.ends, campaign.raises + 1)

    # --- standing -------------------------------------------------------------------------------------------

    def _stand(self, now: float) -> list[Effect]:
        heartbeat = self._settings.heartbeat
        if self._hurried > 0 or self.leading:
            self._hurried -= 1
            ends = now + self._rng.uniform(heartbeat, 2 * heartbeat)
        else:
            ends = now + self._rng.uniform(*self._settings.timeout)
        return self._try(now, ends, 0)

    def _try(self, now: float, ends: float, raises: int) -> list[Effect]:
        epoch = Epoch(self._next_counter, self._me)
        self._campaign = Campaign(epoch, True, ends, {self._me: None}, raises)
        if not self.leading:
            self._alarm_at(ends)
        return [*self._ask(VoteRequest(epoch, True)), *self._count(now)]

    def _count(self, now: float) -> list[Effect]:
        """From pre-vote to vote, and from vote to leadership, once there is enough support."""
        campaign = self._campaign
        if campaign is None or sum(node in self._known for node in campaign.grants) < self._needed:
            return []
        if not campaign.trial:
            return self._win(now, campaign)
        # A vote given since may have raised the counter. The pre-vote said only that nobody hears a leader.
        epoch = Epoch(max(campaign.epoch.counter, self._next_counter), self._me)
        self._campaign = Campaign(epoch, False, campaign.ends, {self._me: None}, campaign.raises)
        self._promised = epoch
        self._voted = now
        return [self._persist(), *self._ask(VoteRequest(epoch, False)), *self._count(now)]

    def _win(self, now: float, campaign: Campaign) -> list[Effect]:
        epoch = campaign.epoch
        self._campaign = None
        self._accepted = epoch
        self._leader = epoch
        self._alarm_at(NEVER)
        self._hurried = 0
        self._better_until = None
        self._set_heir("")
        self._succession.begin(now, self._standings)
        self._acks = dict.fromkeys(campaign.grants, now)
        self._answers = {}
        self._won = now
        self._beat_at = now + self._settings.heartbeat
        return [self._persist(), Leader(epoch), *self._greet(self._audience)]

    def _ask(self, request: VoteRequest) -> list[Send]:
        return [Send(peer, request) for peer in self._voters if peer != self._me]

    # --- leading --------------------------------------------------------------------------------------------

    def _lead(self, now: float) -> list[Effect]:
        if self._campaign is not None and now >= self._campaign.ends:
            self._campaign = None
            if self._supporters(now) < self._needed:
                return self._step_down(now)
        if now >= self._heir_until:
            if self._resigned:
                return self._step_down(now)
            self._set_heir("")  # it did not win: we lead on
            self._beat_at = now
        effects = self._outbid(now) if now >= self._bid_at else []
        if now < self._beat_at:
            return effects
        if self._settings.quorum and self._supporters(now) < self._settings.quorum:
            return effects + self._step_down(now)
        heir = "" if self._heir or self._campaign else self._succession.due(now, self._confirmed(now), self._standings)
        if heir:
            return effects + self._hand_over(now, heir)
        self._beat_at = now + (self._settings.rank_delay if self._heir else self._settings.heartbeat)
        return effects + self._greet(self._audience) + self._redial(now)

    def _redial(self, now: float) -> list[Effect]:
        """Of the voters that did not answer the last heartbeats, those silent for longest: their links may be stalled,
        and theirs is the support that we lead by."""
        heartbeat = self._settings.heartbeat
        silence = {peer: now - self._answers.get(peer, self._won) for peer in self._voters if peer != self._me}
        silent = sorted((peer for peer in silence if silence[peer] > 2.5 * heartbeat), key=lambda peer: -silence[peer])
        return [Redial(peer) for peer in silent[:_REDIALS]]

    def _hand_over(self, now: float, heir: str) -> list[Effect]:
        self._succession.tried(now)
        self._set_heir(heir)
        self._heir_until = now + self._settings.window
        self._beat_at = now + self._settings.rank_delay
        others = [peer for peer in self._audience if peer != heir]
        return self._greet([*others, heir])  # the voters should know before the heir asks them

    def _greet(self, peers: tuple[str, ...] | list[str]) -> list[Effect]:
        return [Send(peer, Heartbeat(self._leader, self._heir)) for peer in peers] if self._leader else []

    def _outbid(self, now: float) -> list[Effect]:
        self._bid_at = NEVER
        if self._campaign is not None or self._resigned or self._heir:
            return []
        if self._may_stand:
            return self._stand(now)
        heir = self._succession.last_resort(self._confirmed(now), self._standings)  # we have no vote ourselves
        if heir:
            return self._hand_over(now, heir)
        return self._step_down(now) if self._supporters(now) < self._needed else []

    def _step_down(self, now: float) -> list[Effect]:
        """Stop leading, and tell those that follow that they need not wait for us."""
        laid_down = self._leader
        effects = self._lose_leader()
        self._campaign = None
        self._beat_at = self._bid_at = self._heir_until = NEVER
        self._rearm(now)
        if laid_down is not None:
            effects += [Send(peer, HeartbeatAck(laid_down, over=True)) for peer in self._audience]
        return effects

    def _disclaim(self, peers: list[str]) -> list[Effect]:
        """We led before we restarted: whoever has not noticed need not wait for that leader."""
        if self._accepted.node != self._me:
            return []
        return [Send(peer, HeartbeatAck(self._accepted, over=True)) for peer in peers]

    # --- following ------------------------------------------------------------------------------------------

    def _follow(self, now: float, epoch: Epoch, heir: str = "", *, by_word: bool = False) -> list[Effect]:
        effects: list[Effect] = [] if self._leader == epoch else [Leader(epoch)]
        self._leader = epoch
        self._by_word = by_word
        self._heard_leader = now
        self._wait_until = -NEVER
        self._hurried = 0
        self._better_until = None
        self._set_heir(heir)
        if self._eligible and not by_word:
            effects.append(Send(epoch.node, HeartbeatAck(epoch)))
        if by_word:
            self._campaign = None
            self._alarm_at(NEVER)
        elif heir != self._me or not self._may_stand:
            self._campaign = None
            self._rearm(now)
            if epoch.node not in self._alive:
                self._alarm_at(now + self._settings.window)
        elif self._campaign is None:
            self._hurried = 1
            effects += self._stand(now)
        else:  # it takes long: voters may have been asked before they heard that we are the heir
            request = VoteRequest(self._campaign.epoch, self._campaign.trial)
            effects += [s for s in self._ask(request) if s.peer not in self._campaign.grants]
        return effects

    def _refuse(self, peer: str, epoch: Epoch) -> list[Effect]:
        return [Send(peer, HeartbeatAck(epoch))]
