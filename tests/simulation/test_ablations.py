"""Each safety rule is needed, and its absence would be seen: with the rule taken out, a story that is otherwise
survived must end badly, for the reason given, within a few seeds.

The election's rules are taken out in `tests/hive/test_election_machine`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from hivenode.hive import feeds, replication, roster, statements, views
from hivenode.hive.feeds import Entry
from hivenode.jobs.fence import Fence
from tests.simulation import faults
from tests.simulation.loop import run
from tests.simulation.test_scenarios import restored_backup

Story = Callable[[random.Random], Awaitable[object]]
SEEDS = range(60)
"""Tried until one shows what is wrong."""


def without_fence(patch: pytest.MonkeyPatch) -> None:
    async def obey(self: Fence, epoch: object) -> None:
        return None

    patch.setattr(Fence, "obey", obey)


def without_signatures_of_statements(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(statements, "valid", lambda statement, verify: True)


def without_signatures_of_events(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(feeds, "verify", lambda key, signature, data: True)


def without_the_bound_on_incarnations(patch: pytest.MonkeyPatch) -> None:
    learn = roster.Roster.learn

    def credulous(self: roster.Roster, now: float, statement: Any, **how: Any) -> Any:
        record = self._records.get(statement.node)
        known = record is not None and isinstance(statement, roster.Dead) and statement.node != self.me
        if known and statement.incarnation > record.member.incarnation and statements.valid(statement, self._verify):
            return self._turn(now, record, roster.MemberState.dead, statement)
        return learn(self, now, statement, **how)

    patch.setattr(roster.Roster, "learn", credulous)


def without_refutation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(roster.Roster, "_reassert", lambda *how: None)


def without_the_order_of_events(patch: pytest.MonkeyPatch) -> None:
    def as_they_come(self: Any, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.body is not None and isinstance(entry.body, self.fold.kinds):
                self.fold.apply(entry.event.author, entry.event.hlc, entry.body)

    patch.setattr(views._Stream, "add", as_they_come)


def without_asking_what_was_said_before(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: replication.Replication) -> None:
        return None

    patch.setattr(replication.Replication, "_be_whole", at_once)


RULES: list[tuple[Callable[[pytest.MonkeyPatch], None], Story, str]] = [
    (without_fence, faults.coordinator_cut_off_mid_plan, "works for .* after"),
    (without_signatures_of_statements, faults.lying_member, "given up a node that is well"),
    (without_signatures_of_events, faults.lying_member, "sees forks"),
    (without_the_bound_on_incarnations, faults.lying_member, "given up a node that is well"),
    (without_refutation, faults.paused_node, "did not happen"),
    (without_the_order_of_events, faults.split_in_halves, "differ|did not happen"),
    (without_asking_what_was_said_before, restored_backup, "forks"),
]


@pytest.mark.parametrize(("remove", "story", "reason"), RULES, ids=[remove.__name__ for remove, _, _ in RULES])
def test_without_a_rule_its_breach_is_seen(
    remove: Callable[[pytest.MonkeyPatch], None], story: Story, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError), match=reason):
        _tell(story)


def _tell(story: Story) -> None:
    for seed in SEEDS:
        run(story, seed=seed)
