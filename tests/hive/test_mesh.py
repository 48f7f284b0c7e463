"""The mesh: whom members keep links to, and what graph follows from it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Set

from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.hive.mesh import Mesh, Rings, ring_keys, rings_for

HIVE = "h" * 32
FULL = 64

SIZES = st.integers(min_value=FULL + 1, max_value=300)
SALTS = st.integers(min_value=0, max_value=10**6)

Graph = Mapping[str, Set[str]]


def ids(count: int, salt: int = 0) -> list[str]:
    return [hashlib.sha256(f"{salt}/{number}".encode()).hexdigest()[:32] for number in range(count)]


def mesh_of(me: str, members: Iterable[str], gone: Iterable[str] = (), full: int = FULL) -> Mesh:
    mesh = Mesh(me, HIVE, full)
    absent = dict.fromkeys(gone)
    for node in members:
        mesh.set(node, present=node not in absent)
    return mesh


def graph(members: list[str], gone: Iterable[str] = ()) -> dict[str, Set[str]]:
    """Links that each of those present keeps to another one present: what each one's mesh says, without the work of
    as many meshes."""
    absent = dict.fromkeys(gone)
    keys = {node: ring_keys(HIVE, node) for node in members}
    known, present = Rings(), Rings()
    for node in members:
        known.add(node, keys[node])
        if node not in absent:
            present.add(node, keys[node])
    return {
        node: {
            peer
            for rings in (known, present)
            for peer in rings.beside(node, keys[node])
            if peer not in absent and peer != node
        }
        for node in members
        if node not in absent
    }


@given(SIZES, SALTS, st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_a_mesh_keeps_what_the_rings_say(count: int, salt: int, rng: random.Random) -> None:
    members = ids(count, salt)
    lost = rng.sample(members[1:], count // 5)
    mesh = mesh_of(members[0], members, lost)
    assert mesh.neighbours() - set(lost) == graph(members, lost)[members[0]]


def reached(links: Graph) -> int:
    """How many can be reached from one of them."""
    start = next(iter(links))
    seen, edge = {start}, [start]
    while edge:
        fresh = {peer for node in edge for peer in links[node] if peer in links} - seen
        seen |= fresh
        edge = sorted(fresh)
    return len(seen)


@given(st.integers(min_value=1, max_value=FULL), SALTS)
@settings(max_examples=20, deadline=None)
def test_a_small_hive_is_a_full_mesh(count: int, salt: int) -> None:
    members = ids(count, salt)
    mesh = mesh_of(members[0], members)
    assert not mesh.partial
    assert mesh.neighbours() == frozenset(members[1:])


@given(SIZES, SALTS)
@settings(max_examples=10, deadline=None)
def test_everybody_can_tell_who_keeps_a_link_to_whom(count: int, salt: int) -> None:
    me, *others = members = ids(count, salt)
    mesh, links = mesh_of(me, members), graph(members)
    for node in others:
        if node not in links[me]:
            assert mesh.beside(node) <= links[node]
            assert len(mesh.beside(node)) >= 2


@given(SIZES, SALTS)
@settings(max_examples=60, deadline=None)
def test_a_large_one_has_few_links_each_agreed_on_by_both_ends_and_is_connected(count: int, salt: int) -> None:
    members = ids(count, salt)
    links = graph(members)
    for node, peers in links.items():
        assert node not in peers
        assert 2 <= len(peers) <= 2 * rings_for(count)
        assert all(node in links[peer] for peer in peers)
    assert sum(map(len, links.values())) / count > 2 * rings_for(count) - 1.5, "the rings are independent"
    assert reached(links) == count


@given(SIZES, SALTS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_those_left_stay_connected_when_three_in_ten_vanish_before_anybody_noticed(
    count: int, salt: int, rng: random.Random
) -> None:
    members = ids(count, salt)
    lost = dict.fromkeys(rng.sample(members, int(count * 0.3)))
    links = graph(members)
    left = {node: peers for node, peers in links.items() if node not in lost}
    assert reached(left) == len(left)


@given(SIZES, SALTS, st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_those_left_have_their_links_again_once_the_loss_is_known(count: int, salt: int, rng: random.Random) -> None:
    members = ids(count, salt)
    lost = rng.sample(members, int(count * 0.3))
    links = graph(members, lost)
    assert reached(links) == len(links)
    for peers in links.values():
        assert len(peers) >= rings_for(len(links))


@given(SIZES, SALTS)
@settings(max_examples=10, deadline=None)
def test_one_that_comes_or_goes_changes_few_links(count: int, salt: int) -> None:
    members = ids(count + 1, salt)
    before, after = graph(members[:-1]), graph(members)
    newcomer = members[-1]
    changed = sum(len((before[node] ^ after[node]) - {newcomer}) for node in before)
    if rings_for(count) == rings_for(count + 1):
        assert changed <= 2 * rings_for(count), "each ring is opened in one place, whose two ends part"
    gone = graph(members, [newcomer])
    assert all(before[node] <= gone[node] | {newcomer} for node in before)


@given(st.integers(min_value=FULL, max_value=200), SALTS)
@settings(max_examples=3, deadline=None)
def test_the_two_sides_of_a_split_keep_seeking_each_other(count: int, salt: int) -> None:
    members = ids(2 * count, salt)
    left, right = members[:count], members[count:]
    sought = [set(mesh_of(node, members, right).neighbours()) & set(right) for node in left]
    assert sum(map(len, sought)) > count, "on the average each node seeks at least one of the other side"


def test_the_order_in_which_members_become_known_does_not_matter() -> None:
    members = ids(150)
    other = list(reversed(members))
    assert mesh_of(members[7], members).neighbours() == mesh_of(members[7], other).neighbours()


def test_the_needed_come_on_top_up_to_a_bound() -> None:
    members = ids(400)
    mesh = mesh_of(members[0], members)
    plain = mesh.neighbours()
    few = mesh.neighbours([*members[10:20], members[0], "a stranger"])
    assert few == plain | set(members[10:20])
    assert len(mesh.neighbours(members)) <= len(plain) + FULL <= mesh.limit


def test_a_hive_around_the_size_of_a_full_mesh_does_not_swing() -> None:
    members = ids(FULL + 1)
    mesh = mesh_of(members[0], members)
    assert mesh.partial
    mesh.drop(members[1])
    assert mesh.partial, "one fewer than it takes is not reason enough"
    for node in members[2:18]:
        mesh.drop(node)
    assert not mesh.partial
    assert mesh.neighbours() == frozenset(members[18:])
    for node in members[1:17]:
        mesh.set(node, present=True)
    assert not mesh.partial
    mesh.set(members[17], present=True)
    assert mesh.partial


def test_who_returns_is_present_again_and_who_is_dropped_is_not_sought() -> None:
    members = ids(100)
    mesh = mesh_of(members[0], members)
    plain = mesh.neighbours()
    victim = sorted(plain)[0]
    mesh.set(victim, present=False)
    assert victim in mesh.neighbours(), "the gone are sought"
    mesh.drop(victim)
    assert victim not in mesh.neighbours()
    mesh.set(victim, present=True)
    assert mesh.neighbours() == plain


@given(SALTS, st.lists(st.tuples(st.integers(0, 119), st.sampled_from(["present", "gone", "drop"])), max_size=200))
@settings(max_examples=25, deadline=None)
def test_a_mesh_says_when_its_neighbours_change(salt: int, steps: list[tuple[int, str]]) -> None:
    members = ids(120, salt)
    mesh, held = Mesh("m" * 32, HIVE, 40), dict[str, bool]()
    for number, what in [*((n, "present") for n in range(60)), *steps]:
        node, before = members[number], mesh.neighbours()
        if what == "drop":
            mesh.drop(node)
            held.pop(node, None)
        else:
            told = mesh.set(node, present=what == "present")
            held[node] = what == "present"
            assert told or mesh.neighbours() == before
    if len(held) > 40:
        assert (
            mesh.neighbours() == mesh_of("m" * 32, held, [n for n, here in held.items() if not here], 40).neighbours()
        )
