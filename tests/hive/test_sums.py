"""A membership in brief: kept up to date, it says what working it out anew would."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from hivenode.hive import sums
from hivenode.hive.roster import Member, MemberState
from hivenode.hive.sums import Summary

NODES = [hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(40)]
CHANGES = st.tuples(st.sampled_from(NODES), st.integers(0, 3), st.sampled_from([None, *MemberState]))
GROUPS = st.sampled_from([1, 2, 8, 16, 64])


@given(st.lists(st.one_of(CHANGES, GROUPS), max_size=120))
def test_kept_up_to_date_it_says_what_a_new_one_would(steps: list[tuple[str, int, MemberState | None] | int]) -> None:
    members: dict[str, Member] = {}
    summary = Summary(members)
    for step in steps:
        if isinstance(step, int):
            assert summary.of(step) == Summary(members).of(step)
            continue
        node, incarnation, state = step
        if state is None:
            members.pop(node, None)
        else:
            members[node] = Member(node, state, incarnation, "x", (), "1", 0.0)
        summary.touch(node)
    for groups in (1, 2, 8):
        assert summary.of(groups) == Summary(members).of(groups)
        assert sorted(summary.members(groups, range(groups))) == sorted(members)


def test_two_that_differ_in_one_member_find_its_group() -> None:
    members = {node: Member(node, MemberState.alive, 1, "x", (), "1", 0.0) for node in NODES}
    other = {**members, NODES[3]: Member(NODES[3], MemberState.dead, 1, "x", (), "1", 0.0)}
    differing = sums.differing(Summary(members).of(8), Summary(other).of(8))
    assert differing == {sums.group(NODES[3], 8)}
    assert NODES[3] in Summary(members).members(8, differing)
