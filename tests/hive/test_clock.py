"""Hybrid logical clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivenode.hive.clock import HybridClock, seconds

DAY_MS = 24 * 3600 * 1000


class Wall:
    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_readings_follow_the_wall_and_order_what_happens_within_a_millisecond() -> None:
    wall = Wall(1000.0)
    clock = HybridClock(wall)
    first, second = clock.now(), clock.now()
    assert first < second
    assert seconds(first) == seconds(second) == clock.seconds(first) == 1000.0
    wall.at = 1000.25
    assert seconds(clock.now()) == 1000.25


def test_a_wall_clock_set_back_does_not_turn_time_back() -> None:
    wall = Wall(1000.0)
    clock = HybridClock(wall)
    before = clock.now()
    wall.at = 10.0
    assert clock.now() > before


def test_what_is_observed_lies_in_the_past() -> None:
    clock = HybridClock(Wall(1000.0))
    remote = HybridClock(Wall(1000.0 + 3600.0)).now()
    assert clock.observe(remote)
    assert clock.now() > remote


def test_a_clock_a_day_ahead_is_reported_and_not_followed() -> None:
    clock = HybridClock(Wall(1000.0))
    assert clock.observe((1_000_000 + DAY_MS) << 16)
    assert not HybridClock(Wall(1000.0)).observe((1_000_000 + DAY_MS + 1) << 16)
    follower = HybridClock(Wall(1000.0))
    assert not follower.observe(2**63 - 1)
    assert seconds(follower.now()) == 1000.0


def test_a_restarted_clock_goes_on_above_its_own_last_reading_however_wrong_the_wall_is() -> None:
    last = HybridClock(Wall(1_000_000.0)).now()
    assert HybridClock(Wall(10.0), floor=last).now() > last


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wall"), st.floats(0, 10_000)), st.tuples(st.just("hear"), st.integers(0, 2**63 - 1))
        )
    )
)
def test_readings_only_ever_rise_and_stay_within_a_day_of_the_highest_wall(steps: list[tuple[str, float]]) -> None:
    wall = Wall(5.0)
    clock = HybridClock(wall)
    last, highest_wall = clock.now(), wall.at
    for kind, value in steps:
        if kind == "wall":
            wall.at = float(value)
            highest_wall = max(highest_wall, wall.at)
        else:
            clock.observe(int(value))
        reading = clock.now()
        assert reading > last
        assert seconds(reading) <= highest_wall + DAY_MS / 1000 + 0.01
        last = reading
