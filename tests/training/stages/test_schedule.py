"""The order of work in a pipeline: everything once, little kept, nobody waits for what never comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivenode.training.stages.schedule import Pass, Work, one_forward_one_backward, small_batches


@given(st.integers(1, 8), st.integers(1, 24))
def test_each_stage_does_everything_once_and_keeps_no_more_than_it_must(stages: int, count: int) -> None:
    for stage in range(stages):
        order = one_forward_one_backward(stage, stages, count)
        for kind in Pass:
            assert [number for done, number in order if done is kind] == list(range(count))
        kept = most = 0
        for kind, _ in order:
            kept += 1 if kind is Pass.forward else -1
            assert kept >= 0
            most = max(most, kept)
        assert most == min(count, stages - stage)


@given(st.integers(1, 8), st.integers(1, 24))
def test_a_step_takes_the_work_of_one_stage_and_the_way_through_the_line(stages: int, count: int) -> None:
    """Every pass takes one unit of time and can begin when what it needs is there."""
    orders = [one_forward_one_backward(stage, stages, count) for stage in range(stages)]
    done: dict[tuple[int, Work], int] = {}
    places = [0] * stages
    now = 0
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        now += 1
        assert now <= 2 * (count + stages - 1), "all wait for each other"
        for stage, order in enumerate(orders):
            if places[stage] == len(order):
                continue
            kind, number = work = order[places[stage]]
            before = stage - 1 if kind is Pass.forward else stage + 1
            if not 0 <= before < stages or done.get((before, work), now) < now:
                done[stage, (kind, number)] = now
                places[stage] += 1
    assert now == 2 * (count + stages - 1)


@given(st.integers(0, 500), st.integers(1, 64))
def test_small_batches_are_few_even_and_cover_the_batch(samples: int, size: int) -> None:
    parts = small_batches(samples, size)
    assert [place for part in parts for place in part] == list(range(samples))
    assert len(parts) == -(-samples // size)
    if parts:
        lengths = {len(part) for part in parts}
        assert max(lengths) - min(lengths) <= 1
        assert 1 <= min(lengths) <= max(lengths) <= size
