"""Each fault under many seeds: a few that change with the date by default, many with `make test-slow`.

To tell a failed one again: `run(story, seed=...)` with the seed of the test's name.
"""

from __future__ import annotations

import datetime
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.faults import FAULTS, Story
from tests.simulation.loop import run

DAILY = 6
MANY = 200
"""Of each, others every day."""
LARGE = {"one_slow_node": 1, "join_storm": 3}
"""Stories of many nodes, and how many seeds they get a day."""
STORIES = [pytest.param(story, id=f"{number}-{story.__name__}") for number, story in FAULTS]
FIRST = int(os.environ.get("HIVENODE_SEED", datetime.datetime.now(tz=datetime.UTC).toordinal())) * DAILY
"""Of today's seeds; HIVENODE_SEED repeats another day's."""


def test_all_twenty_are_told() -> None:
    assert {number for number, _ in FAULTS} == set(range(1, 21))


@pytest.mark.parametrize(
    ("story", "seed"),
    [
        pytest.param(story, FIRST + turn, id=f"{number}-{story.__name__}-{FIRST + turn}")
        for number, story in FAULTS
        for turn in range(LARGE.get(story.__name__, DAILY))
    ],
)
def test_a_fault_is_survived(story: Story, seed: int) -> None:
    run(story, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", STORIES)
def test_a_fault_is_survived_under_many_seeds(story: Story) -> None:
    first = FIRST // DAILY * MANY
    with ProcessPoolExecutor() as pool:
        failures = [
            failure
            for failure in pool.map(_told, [story.__name__] * MANY, range(first, first + MANY), chunksize=5)
            if failure
        ]
    assert not failures, f"{len(failures)} of {MANY}: {failures[:5]}"


def _told(name: str, seed: int) -> str:
    story = next(story for _, story in FAULTS if story.__name__ == name)
    try:
        run(story, seed=seed)
    except Exception as error:  # noqa: BLE001
        return f"{name} with seed {seed}: {error!r}"
    return ""
