"""Each rule of the election is needed: without it, a storm that the whole election weathers breaks it, and soon."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hivenode.hive import ballots
from hivenode.hive.ballots import Campaign, Effect, Persist
from hivenode.hive.election import Election
from hivenode.net.messages import VoteRequest
from hivenode.spec.values import ZERO_EPOCH, Epoch
from tests.hive.storms import crashes, deafness

SEEDS = 60
"""Within so many the breach must be found; the whole election shows none in any of them."""


class ForgetsVotes(Election):
    """Persists whom it obeyed but not whom it voted for."""

    def _persist(self) -> Persist:
        return Persist(ballots.dump(self._accepted, ZERO_EPOCH))


class ForgetsWhomItObeyed(Election):
    """Persists whom it voted for but not whom it obeyed."""

    def _persist(self) -> Persist:
        return Persist(ballots.dump(ZERO_EPOCH, self._promised))


class AnswersFirst(Election):
    """Gives its vote before it is on disk."""

    def _on_request(self, now: float, peer: str, epoch: Epoch, trial: bool) -> list[Effect]:
        return sorted(super()._on_request(now, peer, epoch, trial), key=lambda effect: isinstance(effect, Persist))


class AsksNoPreVote(Election):
    """Raises the counter as soon as it stands."""

    def _try(self, now: float, ends: float, raises: int) -> list[Effect]:
        super()._try(now, ends, raises)
        epoch = Epoch(self._next_counter, self._me)
        self._campaign = Campaign(epoch, False, ends, {self._me: None}, raises)
        self._promised = epoch
        return [self._persist(), *self._ask(VoteRequest(epoch, False)), *self._count(now)]


class VotesAlthoughALeaderLives(Election):
    """Not sticky: it grants its vote, and its pre-vote, to whoever asks for a higher counter."""

    def _would_vote(self, now: float, epoch: Epoch) -> bool:
        return epoch.counter > max(self._accepted.counter, self._promised.counter)


@pytest.mark.claim("E3")
def test_the_whole_election_weathers_the_crashes() -> None:
    assert [breach for seed in range(SEEDS) for breach in crashes(seed)] == []


@pytest.mark.claim("E2")
@pytest.mark.parametrize("broken", [ForgetsVotes, ForgetsWhomItObeyed, AnswersFirst])
def test_without_it_crashes_give_one_counter_two_leaders(broken: type[Election]) -> None:
    assert any(crashes(seed, broken) for seed in range(SEEDS))


def raised(kind: type[Election], storm: Callable[[int, type[Election]], int] = deafness) -> int:
    return max(storm(seed, kind) for seed in range(4))


def test_the_whole_election_weathers_deafness() -> None:
    assert raised(Election) <= 2


@pytest.mark.claim("E7")
@pytest.mark.parametrize("broken", [AsksNoPreVote, VotesAlthoughALeaderLives])
def test_without_it_one_deaf_node_raises_the_counter_without_end(broken: type[Election]) -> None:
    assert raised(broken) > 8
