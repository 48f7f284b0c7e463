"""From a random schedule that breaks something to the fewest and simplest faults that still do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from tests.simulation.loop import run
from tests.simulation.schedules import Kind, Schedule

RUNS = 80
"""Simulations that may be spent on one failure."""
MANY_RUNS = 600
"""The same where there is time."""
SEEDS = 3
"""With so many seeds a candidate is tried: what is left out moves everything else, and a failure that takes a certain
moment may need another seed to hit it."""


class Story(Protocol):
    """Told with the schedule it draws, or with a given one; `drawn` receives the one that was used."""

    def __call__(
        self, rng: random.Random, schedule: Schedule | None = None, drawn: Callable[[Schedule], object] = ...
    ) -> Awaitable[object]: ...


def run_shrinking(story: Story, seed: int, *, runs: int = RUNS) -> None:
    """Tell a story; when it ends badly, the error says with how few faults it does, and with which seed.

    Raises:
        Exception: of the story, with the shrunk schedule as a note.
    """
    used: list[Schedule] = []
    try:
        run(lambda rng: story(rng, drawn=used.append), seed=seed)
    except Exception as error:
        schedule, with_seed = least(story, seed, used[0], type(error), runs=runs)
        error.add_note(f"seed {seed}, shrunk, with seed {with_seed}: {as_code(schedule)}")
        raise


def least(
    story: Story, seed: int, schedule: Schedule, kind: type[Exception], *, runs: int = RUNS
) -> tuple[Schedule, int]:
    """The least schedule found with which the story still ends in an error of this kind, and a seed with which it
    does."""
    seeds = [seed, *range(seed + 1, seed + SEEDS)]
    left = runs

    def fails(candidate: Schedule) -> bool:
        nonlocal left
        for one in list(seeds):
            left -= 1
            if left < 0:
                return False
            try:
                run(lambda rng: story(rng, candidate), seed=one)
            except Exception as error:  # noqa: BLE001
                if isinstance(error, kind):
                    seeds.remove(one)
                    seeds.insert(0, one)  # the likeliest next time
                    return True
        return False

    return shrink(schedule, fails, runs=runs), seeds[0]


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], *, runs: int = 300) -> Schedule:
    """The smallest schedule found that still fails.

    First all that comes after the failure is cut off, and all faults of one kind are left out, kind after kind; then
    ever fewer of the others at a time (delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating
    Failure-Inducing Input", 2002); then what is left is made earlier, shorter and smaller.

    Args:
        fails: runs the world with a schedule; must always say the same of the same one.
        runs: how often `fails` is called at most.
    """
    left = [runs]

    def still(candidate: Schedule) -> bool:
        left[0] -= 1
        return left[0] >= 0 and fails(candidate)

    schedule = _fewer(_fewer_kinds(_shorter(schedule, still), still), still)
    for index in range(len(schedule)):
        while simpler := next((one for one in _simpler(schedule, index) if still(one)), None):
            schedule = simpler
    return _fewer(schedule, still)


def _shorter(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """The shortest beginning that fails, by halves."""
    enough, too_few = len(schedule), -1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if fails(schedule[:middle]):
            enough = middle
        else:
            too_few = middle
    return schedule[:enough]


def _fewer_kinds(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Without the kinds that it does not take, the most frequent first."""
    for kind, _ in Counter(fault.kind for fault in schedule).most_common():
        rest = tuple(fault for fault in schedule if fault.kind is not kind)
        if fails(rest):
            schedule = rest
    return schedule


def _fewer(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    parts = 2
    while schedule:
        size = max(1, len(schedule) // parts)
        for begin in range(0, len(schedule), size):
            rest = schedule[:begin] + schedule[begin + size :]
            if fails(rest):
                schedule, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(schedule), parts * 2)
    return schedule


def _simpler(schedule: Schedule, index: int) -> list[Schedule]:
    """Ways to make one fault simpler, the boldest first."""
    fault = schedule[index]
    before = schedule[index - 1].at if index else 0.0
    found: list[Schedule] = []
    for gap in (0.0, (fault.at - before) / 4, (fault.at - before) / 2):
        earlier = fault.at - before - gap
        if earlier > 0.01:
            moved = tuple(replace(later, at=round(later.at - earlier, 2)) for later in schedule[index:])
            found.append(schedule[:index] + moved)
    if fault.kind is Kind.partition and len(fault.who) > 1:
        found.append((*schedule[:index], replace(fault, who=fault.who[:1]), *schedule[index + 1 :]))
    if fault.amount > 1:
        found.append((*schedule[:index], replace(fault, amount=fault.amount // 2), *schedule[index + 1 :]))
    return found


def as_code(schedule: Schedule) -> str:
    """To be pasted into a test."""
    lines = [
        f"    Fault({fault.at!r}, Kind.{fault.kind.value}, {fault.who!r}, {fault.amount!r}),\n" for fault in schedule
    ]
    return "(\n" + "".join(lines) + ")"
