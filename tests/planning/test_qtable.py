"""The shared table: the same for the same runs, learns what the cost model gets wrong, nothing twice."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.planning.qtable import Experience, Learning, Table
from hivenode.spec.events import AttemptEnded, ExperienceRecorded
from hivenode.spec.values import ZERO_EPOCH, Strategy

STATE = (0, 0, 1, 0)
Told = tuple[str, int, ExperienceRecorded]


def run(
    number: int,
    factor: float,
    *,
    action: Strategy = Strategy.data_parallel,
    state: tuple[int, int, int, int] = STATE,
    predicted: float = 10.0,
) -> ExperienceRecorded:
    return ExperienceRecorded(
        job=f"job-{number}",
        attempt=1,
        state=state,
        action=list(Strategy).index(action),
        predicted_seconds=predicted,
        measured_seconds=predicted * factor,
        reference_seconds=1.0,
    )


def folded(told: list[Told], learning: Learning | None = None) -> Table:
    experience = Experience(learning)
    for author, clock, body in told:
        experience.apply(author, clock, body)
    return experience.table()


told_runs = st.lists(
    st.builds(
        lambda author, clock, number, factor, action, state: (
            author,
            clock,
            run(number, factor, action=action, state=state),
        ),
        st.sampled_from("abc"),
        st.integers(0, 20),
        st.integers(0, 15),
        st.floats(0.01, 100),
        st.sampled_from(list(Strategy)),
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(told_runs, st.randoms(use_true_random=False))
def test_order_repeats_and_paths_do_not_matter(told: list[Told], shuffler: random.Random) -> None:
    once = folded(told).to_json()
    mixed = [*told, *told[: len(told) // 2]]
    shuffler.shuffle(mixed)
    assert folded(mixed).to_json() == once

    left, right = Experience(), Experience()
    for halves in ((left, right), (right, left)):  # each hears one half first, and then the other
        for place, (author, clock, body) in enumerate(mixed):
            halves[place % 2].apply(author, clock, body)
            if place % 5 == 0:
                left.table()  # looking must not change what is learned
    assert left.table().to_json() == right.table().to_json() == once


def test_a_run_counts_once_per_author_as_first_told() -> None:
    table = folded([("a", 2, run(1, 8.0)), ("a", 1, run(1, 2.0)), ("a", 3, run(1, 4.0))])
    assert table.correction(STATE, Strategy.data_parallel).visits == 1
    assert table.to_json() == folded([("a", 1, run(1, 2.0))]).to_json()
    assert folded([("a", 1, run(1, 2.0)), ("b", 1, run(1, 2.0))]).runs == 2


def test_a_correction_grows_with_runs_towards_what_is_true() -> None:
    seen = [
        folded([("a", i, run(i, 3.0)) for i in range(count)]).correction(STATE, Strategy.data_parallel).residual
        for count in (0, 1, 3, 10, 40)
    ]
    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(math.log(3.0), abs=0.02)


def test_what_one_strategy_shows_is_put_down_to_others_in_part() -> None:
    table = folded([("a", i, run(i, 5.0, action=Strategy.single_node)) for i in range(20)])
    tried = table.correction(STATE, Strategy.single_node).residual
    untried = table.correction(STATE, Strategy.federated)
    elsewhere = table.correction((3, 2, 3, 2), Strategy.federated).residual
    assert untried.visits == 0
    assert 0.02 * tried < elsewhere < untried.residual < 0.5 * tried


def test_what_two_strategies_of_a_row_share_is_expected_of_a_third() -> None:
    told: list[Told] = []
    for i in range(20):
        told.append(("a", 2 * i, run(2 * i, 5.0, action=Strategy.single_node)))
        told.append(("a", 2 * i + 1, run(2 * i + 1, 5.0, action=Strategy.data_parallel)))
    one = folded(told[::2]).correction(STATE, Strategy.federated).residual
    two = folded(told).correction(STATE, Strategy.federated).residual
    assert two > 1.3 * one


def test_strategies_of_a_row_are_told_apart() -> None:
    told: list[Told] = []
    for i in range(30):
        told.append(("a", 2 * i, run(2 * i, 1.0, action=Strategy.single_node)))
        told.append(("a", 2 * i + 1, run(2 * i + 1, 4.0, action=Strategy.data_parallel)))
    table = folded(told)
    apart = (
        table.correction(STATE, Strategy.data_parallel).residual
        - table.correction(STATE, Strategy.single_node).residual
    )
    assert apart == pytest.approx(math.log(4.0), abs=0.15)


def test_newer_runs_count_more() -> None:
    told = [("a", i, run(i, 1.0)) for i in range(50)] + [("a", 50 + i, run(50 + i, 4.0)) for i in range(40)]
    correction = folded(told).correction(STATE, Strategy.data_parallel)
    assert correction.residual == pytest.approx(math.log(4.0), rel=0.05)


def test_one_author_cannot_outweigh_the_others() -> None:
    honest = [(name, i, run(i, 1.0)) for i, name in enumerate("abcdefgh")]
    liar = [("z", 100 + i, run(100 + i, 400.0)) for i in range(300)]
    loose = folded([*honest, *liar], Learning(discount=1.0, author_floor=1e9))
    strict = folded([*honest, *liar], Learning(discount=1.0, author_floor=2.0))
    assert loose.correction(STATE, Strategy.data_parallel).residual > 5.0
    assert strict.correction(STATE, Strategy.data_parallel).residual < 3.1


def test_nonsense_is_passed_over() -> None:
    good = run(1, 2.0)
    bad = [
        run(2, 2.0, state=(4, 0, 0, 0)),
        run(3, 2.0, state=(0, -1, 0, 0)),
        run(4, 0.0),
        run(5, float("nan")),
        run(6, 1.0, predicted=float("inf")),
        run(7, 1.0, predicted=-1.0),
    ]
    experience = Experience()
    for body in [good, *bad]:
        experience.apply("a", 1, body)
    experience.apply("a", 1, AttemptEnded("job-9", 1, ZERO_EPOCH, ZERO_EPOCH, "finished", 1, 1.0, {}))
    assert experience.table().to_json() == folded([("a", 1, good)]).to_json()
    experience.reset()
    assert experience.table() == Table()


def test_q_is_minus_the_log_of_expected_over_reference() -> None:
    table = folded([("a", i, run(i, 2.0)) for i in range(100)])
    assert Table().q(STATE, Strategy.federated, 20.0, 5.0) == pytest.approx(-math.log(4.0))
    assert table.q(STATE, Strategy.data_parallel, 20.0, 5.0) == pytest.approx(-math.log(8.0), abs=0.05)


def test_the_table_can_be_read_as_json() -> None:
    shown = json.loads(folded([("a", 1, run(1, 2.0))]).to_json())
    assert shown["shape"] == [4, 3, 4, 3, 5]
    assert shown["runs"] == 1
    assert shown["cells"][0]["action"] == "data_parallel"
    assert shown["cells"][0]["visits"] == 1
