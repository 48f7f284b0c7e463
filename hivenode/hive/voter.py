"""What one node of an election knows, whom it votes for, and when it stands itself. Pure; `election` says why."""

from __future__ import annotations

import random

from hivenode.hive import ballots
from hivenode.hive.ballots import Campaign, Effect, ElectionSettings, Leader, Persist
from hivenode.hive.standing import ORDINARY, clearly
from hivenode.hive.succession import NEVER, Succession, order
from hivenode.spec.values import Epoch

MAX_STEP = 1 << 20
"""How far above everything seen a counter is still believed."""
HURRIED_TRIES = 5
"""Campaigns at short intervals once the leader is gone or silent; afterwards it is back to the timeout."""


class Voter:
    """The state of an election on one node, and the decisions that send nothing; see `Election`."""

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
        self._laid_down: Epoch | None = None
        self._heard_leader = -NEVER
        self._voted = -NEVER
        self._alive: tuple[str, ...] = ()
        self._known: tuple[str, ...] = ()
        self._voters: tuple[str, ...] = ()
        self._standings: dict[str, int] = {}
        self._ranked: tuple[dict[str, int], str, list[str]] | None = None
        """`_rivals` as last worked out, and what of."""
        self._told: Epoch | None = None
        self._by_word = False
        """Whether we follow a leader that the membership names and that sends us no heartbeats."""
        self._heir = ""
        """Whom the leader we follow, or we as the leader, hands over to."""
        self._heir_until = NEVER
        self._succession = Succession(me, settings.transfer)
        self._better_until: float | None = None
        """Until when pre-votes are refused to candidates that a better one outranks; None before the first refusal."""
        self._audience: tuple[str, ...] = ()
        self._eligible = False
        self._resigned = False
        self._campaign: Campaign | None = None
        self._stand_at = NEVER
        self._beat_at = NEVER
        self._bid_at = NEVER
        self._wait_until = -NEVER
        self._spared = False
        self._armed: tuple[float, float] | None = None
        """Since when we wait before we stand, and our draw; None if `_stand_at` was set otherwise."""
        self._hurried = 0
        self._acks: dict[str, float] = {}
        """When each member last confirmed that we lead."""
        self._answers: dict[str, float] = {}
        """When each last answered a heartbeat, whatever it said."""
        self._won = -NEVER
        """Since when we lead."""

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

    @property
    def votes(self) -> tuple[int, int]:
        """How many voters are there, and how many votes a coordinator needs."""
        return len(self._voters), self._needed

    # --- what follows from it -------------------------------------------------------------------------------------

    @property
    def _may_stand(self) -> bool:
        return self._eligible and not self._resigned and self._me in self._voters

    @property
    def _rivals(self) -> list[str]:
        """Voters, best first, without the leader that fell silent."""
        silent, ranked = self._accepted.node, self._ranked
        if ranked is None or ranked[0] is not self._standings or ranked[1] != silent:
            best = order((n for n in self._voters if n != silent or n == self._me), self._standings)
            ranked = self._ranked = (self._standings, silent, best)
        return ranked[2]

    @property
    def _needed(self) -> int:
        return max(len(self._voters) // 2 + 1, self._settings.quorum)

    @property
    def _next_counter(self) -> int:
        return max(self._accepted.counter, self._promised.counter, self._heard) + 1

    def _confirmed(self, now: float) -> list[str]:
        """Voters that confirmed us a moment ago."""
        since = now - 3 * self._settings.heartbeat
        return [peer for peer in self._voters if peer != self._me and self._acks.get(peer, -NEVER) > since]

    def _supporters(self, now: float) -> int:
        """Voters, ourselves included, that confirmed us within the longest timeout."""
        since = now - self._settings.timeout[1]
        return 1 + sum(at > since for peer, at in self._acks.items() if peer in self._known and peer != self._me)

    # --- voting ---------------------------------------------------------------------------------------------------

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
        if leader is None or epoch.node in (leader.node, self._heir):
            return True
        if leader.node == self._me:
            return False
        settings = self._settings
        patience = settings.timeout[0] if leader.node in self._alive else settings.window
        return now - self._heard_leader >= patience

    def _better_waits(self, now: float, candidate: str) -> bool:
        """Whether a clearly better member than this candidate could stand instead. It gets `window` to do so, once:
        one that does not stand by then shall not keep the hive without a leader."""
        if self._heir == candidate or (self._leader is not None and self._leader.node == candidate):
            return False
        worth = clearly(self._standings.get(candidate, ORDINARY))
        if all(clearly(self._standings[node]) <= worth for node in self._rivals):
            return False
        if self._better_until is None:
            self._better_until = now + self._settings.window
        return now < self._better_until

    # --- when to stand --------------------------------------------------------------------------------------------

    def _rearm(self, now: float) -> None:
        """Stand after a silence from now on."""
        self._spared = False
        self._armed = (now, self._rng.random())
        self._set_alarm()

    def _alarm_at(self, when: float) -> None:
        self._stand_at, self._armed = when, None

    def _set_alarm(self) -> None:
        """The silence after which we stand is the shorter the better we are; apart, so that few stand together."""
        if self._armed is None:
            return
        since, chance = self._armed
        low, high = self._settings.timeout
        if self._resigned:
            self._stand_at = NEVER
        elif self._may_stand:
            rivals = self._rivals
            slot = min((high - low) / len(rivals), self._settings.heartbeat)
            self._stand_at = since + low + (rivals.index(self._me) + chance) * slot
        else:
            self._stand_at = since + low + chance * (high - low)

    def _hasten(self, now: float) -> list[Effect]:
        """The leader is known to be gone: stand soon, the lower ranks first so that few stand together, and
        try again soon, for others may learn of it a little later."""
        if self._may_stand:
            settings = self._settings
            delay = min(self._rivals.index(self._me) * settings.rank_delay, settings.timeout[0])
            self._campaign = None
            self._hurried = HURRIED_TRIES
            self._alarm_at(min(self._stand_at, now + delay + self._rng.uniform(0, settings.rank_delay / 2)))
        return []

    # --- bookkeeping ----------------------------------------------------------------------------------------------

    def _lose_leader(self) -> list[Effect]:
        if self._leader is None:
            return []
        self._leader = None
        self._by_word = False
        self._set_heir("")
        return [Leader(None)]

    def _set_heir(self, heir: str) -> None:
        self._heir = heir
        self._heir_until = NEVER

    def _credible(self, epoch: Epoch) -> bool:
        return epoch.counter <= max(self.highest.counter, self._heard) + MAX_STEP

    def _hear(self, epoch: Epoch) -> None:
        if self._credible(epoch):
            self._heard = max(self._heard, epoch.counter)

    def _persist(self) -> Persist:
        return Persist(ballots.dump(self._accepted, self._promised))
