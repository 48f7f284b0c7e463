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
"""

from __future__ import annotations

import random

from hivenode.hive import ballots
from hivenode.hive.ballots import Campaign, Effect, ElectionSettings, Leader, Persist, Send
from hivenode.net.messages import Heartbeat, HeartbeatAck, Message, VoteReply, VoteRequest
from hivenode.spec.values import Epoch

__all__ = ["Effect", "Election", "ElectionSettings", "Leader", "Persist", "Send"]

MAX_STEP = 1 << 20
"""How far above everything seen a counter is still believed."""
NEVER = float("inf")
_HURRIED_TRIES = 5
"""Campaigns at short intervals once the leader is gone or silent; afterwards it is back to the timeout."""
_RAISES = 3
"""Times one campaign raises its counter because a voter knows of a higher one."""


class Election:
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

    def __init__(self, me: str, *, settings: ElectionSettings, rng: random.Random, state: bytes | None) -> None:
        self._me = me
        self._settings = settings
        self._rng = rng
        loaded = ballots.load(state)
        self._accepted = loaded.accepted
        self._promised = loaded.promised
        self._heard = 0
        """Highest counter that others have named; not ours to persist."""
        self._leader: Epoch | None = None
        self._heard_leader = -NEVER
        self._voted = -NEVER
        self._alive: tuple[str, ...] = ()
        self._known: tuple[str, ...] = ()
        self._audience: tuple[str, ...] = ()
        self._eligible = False
        self._resigned = False
        self._campaign: Campaign | None = None
        self._stand_at = NEVER
        self._beat_at = NEVER
        self._bid_at = NEVER
        self._wait_until = -NEVER
        self._spared = False
        self._hurried = 0
        self._acks: dict[str, float] = {}

    @property
    def leader(self) -> Epoch | None:
        """Whom we follow or, if it names us, that we lead; None while no leader is heard."""
        return self._leader

    @property
    def leading(self) -> bool:
        return self._leader is not None and self._leader.node == self._me

    @property
    def highest(self) -> Epoch:
        """The highest epoch obeyed or voted for."""
        return max(self._accepted, self._promised)

    # --- time -----------------------------------------------------------------------------------------------

    def start(self, now: float, *, alone: bool = False) -> list[Effect]:
        """A node that has just started first listens for a leader, and longer while others that could vote
        are not linked yet: a lone early starter would otherwise elect itself over the heads of a hive that
        has a leader. `alone`: nobody else has ever been of this hive, so there is nobody to listen for."""
        self._wait_until = now + 2 * self._settings.timeout[1]
        self._rearm(now)
        if alone:
            self._stand_at = self._wait_until = now
        return []

    def deadline(self) -> float:
        """When `tick` must be called next."""
        if not self.leading:
            return self._stand_at
        return min(self._beat_at, self._bid_at, self._campaign.ends if self._campaign else NEVER)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        if self.leading:
            return self._lead(now)
        if now < self._stand_at:
            return []
        if now - self._stand_at > self._settings.heartbeat and not self._spared:
            # We were late ourselves, so the leader's heartbeats may lie unread: read them first, once.
            self._spared = True
            self._stand_at = now + self._settings.heartbeat
            return []
        if self._may_stand and now < self._wait_until and len(self._known) > len(self._alive):
            self._stand_at = self._wait_until + self._rng.uniform(0, self._settings.heartbeat)
            return []
        if self._leader is not None:
            self._hurried = _HURRIED_TRIES
        effects = self._lose_leader()
        if self._may_stand:
            effects += self._stand(now)
        else:
            self._stand_at = NEVER
        return effects

    # --- who there is ---------------------------------------------------------------------------------------

    def electorate(
        self,
        now: float,
        alive: tuple[str, ...],
        known: tuple[str, ...],
        eligible: bool,
        followers: tuple[str, ...] = (),
    ) -> list[Effect]:
        """Tell who may vote; to be called after every change.

        Args:
            alive: members that may coordinate and are not known to be gone, sorted; with us, if we may.
            known: all members that may coordinate, sorted.
            eligible: whether we may coordinate. If not, we neither vote nor stand, but follow.
            followers: further members to send heartbeats to: those alive that may not coordinate.
        """
        lost = any(node not in alive for node in self._alive)
        fresh_from = self._audience
        self._alive, self._known, self._eligible = alive, known, eligible
        self._audience = tuple(sorted({*alive, *followers} - {self._me}))
        fresh = [peer for peer in self._audience if peer not in fresh_from]
        missing = len(known) > len(alive)
        if self._campaign is not None and not self._may_stand:
            self._campaign = None
        if self.leading:
            effects = [*self._greet(fresh), *self._count(now)] if eligible else self._step_down(now)
        elif self._leader is not None:
            effects = [] if self._leader.node in alive else [*self._lose_leader(), *self._hasten(now)]
        else:
            effects = [*self._disclaim(fresh), *self._count(now)]
            if lost and not self.leading:
                effects += self._hasten(now)
            idle = self._stand_at == NEVER or (not missing and self._stand_at > now + self._settings.timeout[1])
            if self._may_stand and idle and not self.leading:
                self._rearm(now)
        return effects

    def overtaken(self, now: float, epoch: Epoch) -> list[Effect]:
        """An epoch above ours is known from elsewhere than messages: lay ours down, and stand above that one."""
        self._hear(epoch)
        if self._leader is None or not self.leading or epoch < self._leader:
            return []
        return [*self._step_down(now), *self._hasten(now)]

    def resign(self, now: float) -> list[Effect]:
        """Hand over on stop: do not lead or stand any more, but go on voting. Followers start an election at
        once."""
        self._resigned = True
        self._campaign = None
        return self._step_down(now) if self.leading else []

    # --- messages -------------------------------------------------------------------------------------------

    def receive(self, now: float, peer: str, message: Message) -> list[Effect]:
        """`peer` is the authenticated sender. Messages that are not the election's are ignored."""
        match message:
            case Heartbeat(epoch=epoch):
                return self._on_heartbeat(now, peer, epoch)
            case HeartbeatAck(epoch=epoch):
                return self._on_ack(now, peer, epoch)
            case VoteRequest(epoch=epoch, trial=trial):
                return self._on_request(now, peer, epoch, trial)
            case VoteReply():
                return self._on_reply(now, peer, message)
            case _:
                return []

    def _on_heartbeat(self, now: float, peer: str, epoch: Epoch) -> list[Effect]:
        # A leader that we hold dead is not followed, whatever of it is still under way; should it live, it
        # refutes.
        if epoch.node != peer or peer not in self._alive or not self._credible(epoch):
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
            return effects + self._follow(now, epoch)
        if epoch.counter > self._accepted.counter and not bound:
            self._accepted = epoch
            return [*effects, self._persist(), *self._follow(now, epoch)]
        if epoch.counter == self._accepted.counter and epoch > self._accepted and not bound:
            # Our leader will give way to this one, which has to outbid it before we can follow.
            effects += self._lose_leader()
            self._rearm(now)
            return effects + self._refuse(peer, self._accepted)
        return effects + self._refuse(peer, self.highest)

    def _on_ack(self, now: float, peer: str, epoch: Epoch) -> list[Effect]:
        if self._leader is None:
            return []
        if not self.leading:
            # From the leader itself: it lays down this epoch.
            if epoch != self._leader or peer != epoch.node:
                return []
            return [*self._lose_leader(), *self._hasten(now)]
        if epoch == self._leader:
            if peer in self._known:
                self._acks[peer] = now
            return []
        if epoch.counter >= self._leader.counter and self._credible(epoch):
            self._hear(epoch)
            if self._bid_at == NEVER:
                self._bid_at = now + 2 * self._settings.heartbeat
        return []

    def _on_request(self, now: float, peer: str, epoch: Epoch, trial: bool) -> list[Effect]:
        if epoch.node != peer or not self._eligible or peer not in self._known:
            return []
        granted = self._would_vote(now, epoch)
        effects: list[Effect] = []
        if granted and not trial:
            self._promised = epoch
            self._voted = now
            effects.append(self._persist())
            if self._leader is None or self._leader.node != peer:
                effects += self._lose_leader()
            self._campaign = None
            self._rearm(now)
        return [*effects, Send(peer, VoteReply(epoch, trial, granted, self.highest))]

    def _would_vote(self, now: float, epoch: Epoch) -> bool:
        if epoch.counter <= self._accepted.counter or not self._credible(epoch):
            return False
        if epoch != self._promised:
            if epoch.counter <= self._promised.counter:
                return False
            if self._leader is None and self._promised.node != epoch.node:
                # Whoever has our vote gets a moment to win with it.
                return now - self._voted >= self._settings.heartbeat or self._promised.node not in self._alive
        leader = self._leader
        if leader is None or leader.node == epoch.node:
            return True
        if leader.node == self._me:
            return False
        return leader.node not in self._alive or now - self._heard_leader >= self._settings.timeout[0]

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

    @property
    def _may_stand(self) -> bool:
        return self._eligible and not self._resigned and self._me in self._alive

    @property
    def _needed(self) -> int:
        return max(len(self._alive) // 2 + 1, self._settings.quorum)

    @property
    def _next_counter(self) -> int:
        return max(self._accepted.counter, self._promised.counter, self._heard) + 1

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
            self._stand_at = ends
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
        self._stand_at = NEVER
        self._hurried = 0
        self._acks = dict.fromkeys(campaign.grants, now)
        self._beat_at = now + self._settings.heartbeat
        return [self._persist(), Leader(epoch), *self._greet(self._audience)]

    def _ask(self, request: VoteRequest) -> list[Effect]:
        return [Send(peer, request) for peer in self._alive if peer != self._me]

    # --- leading --------------------------------------------------------------------------------------------

    def _lead(self, now: float) -> list[Effect]:
        if self._campaign is not None and now >= self._campaign.ends:
            self._campaign = None
            if self._supporters(now) < self._needed:
                return self._step_down(now)
        effects = self._outbid(now) if now >= self._bid_at else []
        if now < self._beat_at:
            return effects
        if self._settings.quorum and self._supporters(now) < self._settings.quorum:
            return effects + self._step_down(now)
        self._beat_at = now + self._settings.heartbeat
        return effects + self._greet(self._audience)

    def _supporters(self, now: float) -> int:
        """Voters, ourselves included, that confirmed us within the longest timeout."""
        since = now - self._settings.timeout[1]
        return 1 + sum(at > since for peer, at in self._acks.items() if peer in self._known and peer != self._me)

    def _greet(self, peers: tuple[str, ...] | list[str]) -> list[Effect]:
        return [Send(peer, Heartbeat(self._leader)) for peer in peers] if self._leader else []

    def _outbid(self, now: float) -> list[Effect]:
        self._bid_at = NEVER
        return self._stand(now) if self._campaign is None and self._may_stand else []

    def _step_down(self, now: float) -> list[Effect]:
        """Stop leading, and tell those that follow that they need not wait for us."""
        laid_down = self._leader
        effects = self._lose_leader()
        self._campaign = None
        self._beat_at = self._bid_at = NEVER
        self._rearm(now)
        if laid_down is not None:
            effects += [Send(peer, HeartbeatAck(laid_down)) for peer in self._audience]
        return effects

    def _disclaim(self, peers: list[str]) -> list[Effect]:
        """We led before we restarted: whoever has not noticed need not wait for that leader."""
        if self._accepted.node != self._me:
            return []
        return [Send(peer, HeartbeatAck(self._accepted)) for peer in peers]

    # --- following ------------------------------------------------------------------------------------------

    def _follow(self, now: float, epoch: Epoch) -> list[Effect]:
        effects: list[Effect] = [] if self._leader == epoch else [Leader(epoch)]
        self._leader = epoch
        self._heard_leader = now
        self._wait_until = -NEVER
        self._campaign = None
        self._hurried = 0
        self._rearm(now)
        return [*effects, Send(epoch.node, HeartbeatAck(epoch))] if self._eligible else effects

    def _refuse(self, peer: str, epoch: Epoch) -> list[Effect]:
        return [Send(peer, HeartbeatAck(epoch))]

    def _lose_leader(self) -> list[Effect]:
        if self._leader is None:
            return []
        self._leader = None
        return [Leader(None)]

    def _hasten(self, now: float) -> list[Effect]:
        """The leader is known to be gone: stand soon, the lower ranks first so that few stand together, and
        try again soon, for others may learn of it a little later."""
        if self._may_stand:
            settings = self._settings
            delay = min(self._alive.index(self._me) * settings.rank_delay, settings.timeout[0])
            self._campaign = None
            self._hurried = _HURRIED_TRIES
            self._stand_at = min(self._stand_at, now + delay + self._rng.uniform(0, settings.rank_delay / 2))
        return []

    def _rearm(self, now: float) -> None:
        self._spared = False
        if self._resigned:
            self._stand_at = NEVER
        else:
            self._stand_at = now + self._rng.uniform(*self._settings.timeout)

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _credible(self, epoch: Epoch) -> bool:
        return epoch.counter <= max(self.highest.counter, self._heard) + MAX_STEP

    def _hear(self, epoch: Epoch) -> None:
        if self._credible(epoch):
            self._heard = max(self._heard, epoch.counter)

    def _persist(self) -> Persist:
        return Persist(ballots.dump(self._accepted, self._promised))
