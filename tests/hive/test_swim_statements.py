"""What a node believes of others after hearing this and that; the scenarios of memberlist's state tests."""

from __future__ import annotations

import dataclasses
import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.hive import statements
from hivenode.hive.profiles import PROFILES, confirmations_wanted, push_pull_interval, retransmit_limit, suspicion_min
from hivenode.hive.roster import MAX_UNPROVEN
from hivenode.hive.suspicion import Suspicion
from hivenode.hive.swim import Changed, Conflict, Effect, Forgotten, Member, MemberState, Profile, Send, Swim
from hivenode.net.messages import (
    MAX_FRAME,
    Ack,
    Alive,
    Dead,
    Gossip,
    Left,
    Message,
    Ping,
    PushPull,
    Statement,
    Sums,
    Suspect,
)
from hivenode.net.transport import LinkEnd
from hivenode.trust.identity import Identity, verify
from tests.hive.swarm import core, node_id, signer

ME, A, B, C, D = (node_id(i) for i in range(5))
LAN = PROFILES["lan"]
BOOT = 1 << 32


def alive(node: str, incarnation: int = BOOT, address: str = "10.0.0.1:7701", version: str = "1") -> Alive:
    return statements.alive(signer(node), node, incarnation, node[:7], (address,), version)


def suspect(node: str, by: str, incarnation: int = BOOT) -> Suspect:
    return statements.suspect(signer(by), node, incarnation, by)


def dead(node: str, by: str, incarnation: int = BOOT) -> Dead:
    return statements.dead(signer(by), node, incarnation, by)


def left(node: str, incarnation: int = BOOT) -> Left:
    return statements.left(signer(node), node, incarnation)


class Rig:
    """One started core, linked with `peers` and knowing them."""

    def __init__(self, *peers: str, profile: Profile = LAN, known: list[str] | None = None) -> None:
        self.swim: Swim = core(ME, profile=profile, known=known)
        self.effects: list[Effect] = self.swim.start(0.0)
        for peer in peers:
            self.swim.link_up(0.0, peer)
            self.hear(alive(peer), by=peer)
        self.effects.clear()

    def hear(self, *heard: Statement, by: str = A, now: float = 0.0) -> list[Effect]:
        return self.receive(Gossip(heard), by, now)

    def pushed(self, *heard: Statement, by: str = A, now: float = 0.0) -> list[Effect]:
        return self.receive(PushPull(heard, False), by, now)

    def receive(self, message: Message, by: str, now: float = 0.0) -> list[Effect]:
        effects = self.swim.receive(now, by, message)
        self.effects += effects
        return effects

    def state(self, node: str) -> MemberState | None:
        member = self.swim.members.get(node)
        return member.state if member else None

    def until(self, when: float) -> list[Effect]:
        done: list[Effect] = []
        while self.swim.deadline() <= when:
            done += self.swim.tick(self.swim.deadline())
        self.effects += done
        return done

    def said(self, node: str) -> list[Statement]:
        """What it has told anybody about `node`."""
        told: list[Statement] = []
        for message in sent(self.effects):
            heard = message.members if isinstance(message, PushPull) else getattr(message, "gossip", ())
            told += [s for s in heard if s.node == node]
        return told


def sent(effects: list[Effect], to: str | None = None) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send) and to in (None, e.peer)]


def changes(effects: list[Effect]) -> list[tuple[str, MemberState | None, MemberState]]:
    return [(e.member.node, e.was, e.member.state) for e in effects if isinstance(e, Changed)]


# --- alive ------------------------------------------------------------------------------------------------------------


def test_a_new_member_is_listed_and_passed_on_once_known() -> None:
    rig = Rig(A)
    assert changes(rig.hear(alive(B))) == [(B, None, MemberState.alive)]
    assert rig.hear(alive(B)) == []
    rig.until(1.0)
    assert alive(B) in rig.said(B)


def test_a_higher_incarnation_brings_new_addresses_and_a_lower_one_does_not() -> None:
    rig = Rig(A, B)
    rig.hear(alive(B, BOOT + 2, "10.0.0.9:7701"))
    assert rig.swim.members[B].addresses == ("10.0.0.9:7701",)
    assert rig.hear(alive(B, BOOT + 1, "10.0.0.8:7701")) == []
    assert rig.hear(alive(B, BOOT + 2, "10.0.0.8:7701")) == []
    assert rig.swim.members[B].addresses == ("10.0.0.9:7701",)


def test_a_restarted_member_is_alive_at_once_whatever_was_said_of_its_earlier_life() -> None:
    rig = Rig(A, B)
    rig.swim.link_down(0.0, B, LinkEnd.reset)
    rig.hear(dead(B, by=A))
    assert changes(rig.hear(alive(B, 2 << 32))) == [(B, MemberState.dead, MemberState.alive)]
    assert rig.hear(dead(B, by=A), suspect(B, by=C)) != [], "the sender is told better"
    assert rig.state(B) is MemberState.alive
    assert rig.swim.members[B].boot == 2


def test_a_restart_that_nobody_noticed_is_still_told() -> None:
    rig = Rig(A, B)
    assert changes(rig.hear(alive(B, 2 << 32), now=3.0)) == [(B, MemberState.alive, MemberState.alive)]
    assert rig.swim.members[B].since == 3.0


# --- suspect ----------------------------------------------------------------------------------------------------------


def test_a_suspicion_about_nobody_or_about_an_old_incarnation_is_nothing() -> None:
    rig = Rig(A, B)
    rig.hear(alive(B, BOOT + 5))
    assert rig.hear(suspect(C, by=A)) == []
    assert changes(rig.hear(suspect(B, by=A, incarnation=BOOT + 4))) == []
    assert rig.state(B) is MemberState.alive


def test_a_suspect_that_never_answers_dies_and_one_that_does_lives() -> None:
    rig = Rig(A, B, C)
    rig.hear(suspect(B, by=A), suspect(C, by=A))
    assert rig.state(B) is rig.state(C) is MemberState.suspect
    rig.hear(alive(C, BOOT + 1), by=C, now=1.0)
    assert rig.state(C) is MemberState.alive
    rig.swim.link_down(1.0, C, LinkEnd.local)
    done = rig.until(6 * 4.0 + 1.0)
    assert (B, MemberState.suspect, MemberState.dead) in changes(done)
    assert any(isinstance(s, Dead) and s.by == ME for s in rig.said(B))


def test_refute() -> None:
    """Suspected, we say that we live, in a higher incarnation, to whoever told us and to all."""
    rig = Rig(A)
    answer = sent(rig.receive(Ping(7, (suspect(ME, by=B),)), by=A), to=A)
    assert isinstance(answer[0], Ack)
    assert answer[0].sequence == 7
    assert answer[0].gossip[0] == alive(ME, BOOT + 1)
    assert rig.state(ME) is MemberState.alive
    assert rig.swim.members[ME].incarnation == BOOT + 1
    assert rig.swim.health == 1
    rig.until(1.0)
    assert alive(ME, BOOT + 1) in rig.said(ME)


def test_refute_dead() -> None:
    rig = Rig(A)
    rig.hear(dead(ME, by=B))
    assert rig.swim.members[ME].incarnation == BOOT + 1
    assert rig.state(ME) is MemberState.alive


def test_a_stale_accusation_of_us_is_answered_and_costs_nothing() -> None:
    rig = Rig(A)
    rig.hear(suspect(ME, by=B))
    answers = sent(rig.hear(suspect(ME, by=C)), to=A)
    assert answers == [Gossip((alive(ME, BOOT + 1),))]
    assert rig.swim.members[ME].incarnation == BOOT + 1
    assert rig.swim.health == 1


def test_one_member_that_accuses_us_again_and_again_does_not_make_us_doubt_ourselves() -> None:
    rig = Rig(A)
    for again in range(5):
        rig.hear(suspect(ME, B, BOOT + again))
        assert rig.swim.members[ME].incarnation == BOOT + again + 1, "each is refuted"
    assert rig.swim.health == 1
    rig.hear(suspect(ME, C, BOOT + 5))
    assert rig.swim.health == 2, "another's opinion counts"


def test_suspect_dogpile() -> None:
    """The more independent accusers, the sooner; the same one twice counts once. memberlist's Suspect_Dogpile."""
    peers = [node_id(i) for i in range(1, 12)]
    deaths = []
    for confirming in ([], [C], [C, C], [C, D], [C, D, peers[5]]):
        rig = Rig(*peers)
        for peer in peers:
            rig.swim.link_down(0.0, peer, LinkEnd.local)
        rig.hear(suspect(B, by=A))
        for accuser in confirming:
            rig.hear(suspect(B, by=accuser))
        while rig.state(B) is MemberState.suspect:
            rig.until(rig.swim.deadline())
        deaths.append(rig.swim.members[B].since)
    shortest = suspicion_min(LAN, 12)
    # Our own failing probes confirm too, so no confirmation from elsewhere does not mean the longest time.
    alone, one, twice_the_same, two, three = deaths
    assert alone > one == twice_the_same > two == three == pytest.approx(shortest)


@pytest.mark.parametrize(("confirmed", "expected"), [(0, 30.0), (1, 16.0), (2, 7.81), (3, 2.0), (4, 2.0), (5, 2.0)])
def test_the_timeout_falls_with_the_logarithm_of_confirmations(confirmed: int, expected: float) -> None:
    """The table of memberlist's suspicion test: k = 3, from 30 s to 2 s."""
    suspicion = Suspicion(0.0, "me", 3, 2.0, 30.0)
    for index in range(confirmed):
        suspicion.confirm(f"other{index}")
    assert suspicion.deadline == pytest.approx(expected, abs=0.01)


def test_nobody_who_could_confirm_means_the_shortest_time_at_once() -> None:
    assert Suspicion(1.0, "me", 0, 2.0, 30.0).deadline == 3.0
    assert confirmations_wanted(LAN, 3) == 0
    assert confirmations_wanted(LAN, 4) == 2


# --- dead and left ----------------------------------------------------------------------------------------------------


def test_dead_node_alive_replay() -> None:
    """The very statement that brought a member does not bring it back."""
    rig = Rig(A, B)
    rig.swim.link_down(0.0, B, LinkEnd.reset)
    rig.hear(dead(B, by=A))
    assert rig.state(B) is MemberState.dead
    assert changes(rig.hear(alive(B))) == []
    assert rig.state(B) is MemberState.dead
    rig.hear(alive(B, BOOT + 1))
    assert rig.state(B) is MemberState.alive


def test_dead_twice_is_news_once() -> None:
    rig = Rig(A, B)
    assert len(changes(rig.hear(dead(B, by=A)))) == 1
    assert rig.hear(dead(B, by=C), dead(B, by=A)) == []


def test_a_verdict_on_a_linked_member_that_was_well_a_moment_ago_is_a_suspicion() -> None:
    """A network that heals delivers in one moment what was said over seconds while it was split."""
    rig = Rig(A, B)
    done = rig.hear(suspect(B, by=A), dead(B, by=A), now=20.0)
    assert changes(done) == [(B, MemberState.alive, MemberState.suspect)]
    assert changes(rig.hear(alive(B, BOOT + 1), by=B, now=20.1)) == [(B, MemberState.suspect, MemberState.alive)]
    assert changes(rig.hear(dead(B, by=A, incarnation=BOOT + 1), now=20.2)) == [
        (B, MemberState.alive, MemberState.suspect)
    ]
    assert changes(rig.hear(dead(B, by=A, incarnation=BOOT + 1), now=21.3)) == [
        (B, MemberState.suspect, MemberState.dead)
    ], "it had time to answer"


def test_a_verdict_on_a_member_whose_link_broke_stands_at_once() -> None:
    rig = Rig(A, B)
    rig.swim.link_down(20.0, B, LinkEnd.reset)
    done = rig.hear(suspect(B, by=A), dead(B, by=A), now=20.0)
    assert changes(done)[-1] == (B, MemberState.suspect, MemberState.dead)


def test_a_death_learnt_by_push_pull_is_a_suspicion_and_we_stand_for_it() -> None:
    rig = Rig(A, B)
    assert changes(rig.pushed(alive(B), dead(B, by=A))) == [(B, MemberState.alive, MemberState.suspect)]
    rig.until(1.0)
    assert any(isinstance(s, Suspect) and s.by == ME for s in rig.said(B))
    assert not any(isinstance(s, Dead) for s in rig.said(B))


def test_a_newcomer_takes_the_long_dead_as_dead_and_never_as_alive() -> None:
    rig = Rig(A)
    done = rig.pushed(alive(B), dead(B, by=A), alive(C), left(C), alive(D), suspect(D, by=A))
    assert changes(done) == [
        (B, None, MemberState.dead),
        (C, None, MemberState.left),
        (D, None, MemberState.alive),
        (D, MemberState.alive, MemberState.suspect),
    ]


def test_join_leave_join() -> None:
    rig = Rig(A, B)
    assert changes(rig.hear(left(B))) == [(B, MemberState.alive, MemberState.left)]
    assert rig.hear(dead(B, by=A)) == []
    assert changes(rig.hear(suspect(B, by=A))) == []
    assert changes(rig.hear(alive(B, 2 << 32))) == [(B, MemberState.left, MemberState.alive)]


def test_leaving_tells_every_link_and_is_not_refuted() -> None:
    rig = Rig(A, B)
    goodbye = rig.swim.leave(1.0)
    assert sent(goodbye, to=A) == sent(goodbye, to=B) == [Gossip((left(ME),))]
    assert changes(goodbye) == [(ME, MemberState.alive, MemberState.left)]
    assert rig.swim.deadline() == float("inf")
    rig.hear(dead(ME, by=A), now=1.1)
    assert rig.swim.members[ME].incarnation == BOOT
    assert len(sent(rig.receive(Ping(1), by=A, now=1.2), to=A)) == 1


@pytest.mark.parametrize(("after", "hears"), [(1.0, True), (29.0, True), (31.0, False)])
def test_the_dead_get_gossip_for_a_while_so_that_they_can_refute(after: float, hears: bool) -> None:
    rig = Rig(A, B)
    rig.hear(suspect(B, by=A))
    rig.hear(dead(B, by=A), now=2.0)
    assert rig.state(B) is MemberState.dead
    rig.until(2.0 + after)
    rig.effects.clear()
    rig.hear(alive(C), now=2.0 + after)
    rig.until(2.5 + after)
    gossip = [message for message in sent(rig.effects, to=B) if isinstance(message, Gossip)]
    assert bool(gossip) is hears
    if hears:
        assert gossip[0].gossip[0] == dead(B, by=A), "first of what it is accused of"


def test_those_that_left_get_no_gossip() -> None:
    rig = Rig(A, B)
    rig.hear(left(B))
    rig.effects.clear()
    rig.hear(alive(C), now=1.0)
    rig.until(2.0)
    assert not any(isinstance(message, Gossip) for message in sent(rig.effects, to=B))


def test_the_long_dead_are_forgotten_and_old_statements_do_not_bring_them_back() -> None:
    rig = Rig(A, B, C, profile=dataclasses.replace(LAN, forget_after=100.0))
    rig.hear(dead(B, by=A), left(C))
    done = rig.until(250.0)
    assert {B, C} <= {e.member.node for e in done if isinstance(e, Forgotten)}
    assert B not in rig.swim.members
    assert changes(rig.pushed(alive(B), dead(B, by=A), alive(C), now=250.0)) == []
    assert changes(rig.hear(alive(B, BOOT + 1), now=250.0)) == [(B, None, MemberState.alive)]


# --- peers that lie ---------------------------------------------------------------------------------------------------


def test_only_the_subject_says_that_it_lives_or_left_and_only_the_accuser_accuses() -> None:
    rig = Rig(A, B)
    forged: list[Statement] = [
        msgspec.structs.replace(alive(B, BOOT + 9), signature=bytes(64)),
        msgspec.structs.replace(alive(B, BOOT + 1), incarnation=BOOT + 9),
        msgspec.structs.replace(left(B), signature=left(A).signature),
        statements.left(signer(A), B, BOOT),
        Suspect(B, BOOT, C, suspect(B, by=A).signature),
        Dead(B, BOOT, A, suspect(B, by=A).signature),
        dead(B, by=B),
        statements.alive(signer(A), C, BOOT, "x", (), "1"),
    ]
    for statement in forged:
        assert rig.hear(statement) == [], statement
        assert rig.pushed(statement) == [], statement
    assert rig.state(B) is MemberState.alive
    assert C not in rig.swim.members


def test_statements_of_nodes_outside_of_the_hive_are_dropped() -> None:
    rig = Rig(A, B, known=[ME, A, B])
    assert rig.hear(alive(C)) == []
    assert rig.hear(dead(B, by=C)) == []
    assert rig.state(B) is MemberState.alive


def test_what_a_newcomer_says_before_it_is_known_to_be_one_counts_once_it_is() -> None:
    known = [ME, A, B]
    rig = Rig(A, B, known=known)
    rig.hear(alive(C))
    rig.hear(alive(C, BOOT + 7, address="10.0.0.9:1"))
    rig.hear(alive(C, BOOT + 3))
    known.append(C)
    (change,) = (e for e in rig.swim.admitted(5.0, C) if isinstance(e, Changed))
    assert change.member.node == C
    assert rig.state(C) is MemberState.alive
    assert rig.swim.admitted(6.0, C) == [], "only once"
    rig.hear(alive(C, BOOT + 9))
    assert rig.swim.members[C].incarnation == BOOT + 9


def test_what_cannot_be_checked_after_all_counts_as_nothing() -> None:
    known = [ME, A, B]
    rig = Rig(A, B, known=known)
    rig.hear(msgspec.structs.replace(alive(C), signature=bytes(64)))
    assert rig.swim.admitted(1.0, C) == [], "not admitted as far as we know"
    known.append(C)
    rig.hear(msgspec.structs.replace(alive(C), signature=bytes(64)))
    assert rig.swim.admitted(1.0, C) == []
    assert rig.state(C) is None


def test_of_those_that_cannot_be_checked_yet_the_latest_are_kept() -> None:
    known = [ME, A]
    rig = Rig(A, known=known)
    strangers = [node_id(100 + number) for number in range(MAX_UNPROVEN + 2)]
    for at in range(0, len(strangers), 32):
        rig.hear(*(alive(one) for one in strangers[at : at + 32]))
    known += strangers
    taken = [one for one in strangers if rig.swim.admitted(1.0, one)]
    assert taken == strangers[2:]


def test_an_accusation_above_what_the_accused_ever_said_is_dropped() -> None:
    rig = Rig(A, B)
    top = 2**63 - 1
    assert rig.hear(dead(B, by=A, incarnation=top), suspect(B, by=A, incarnation=BOOT + 1)) == []
    assert rig.hear(dead(ME, by=A, incarnation=top), suspect(ME, by=A, incarnation=BOOT + 1)) == []
    assert rig.state(B) is MemberState.alive
    assert rig.swim.members[ME].incarnation == BOOT


def test_conflict() -> None:
    """Our own key on another host: the one in the lower incarnation is told, once, and does not fight."""
    rig = Rig(A)
    assert rig.hear(msgspec.structs.replace(alive(ME, 5 << 32), signature=bytes(64))) == []
    assert rig.hear(alive(ME, 0)) == []
    assert rig.hear(alive(ME, BOOT)) == []
    assert rig.hear(alive(ME, 5 << 32, "10.9.9.9:1")) == [Conflict(5 << 32, ("10.9.9.9:1",))]
    assert rig.hear(alive(ME, 5 << 32, "10.9.9.9:1")) == []
    assert rig.swim.members[ME].incarnation == BOOT


def test_of_two_copies_with_the_same_boot_exactly_one_gives_way() -> None:
    one, two = core(ME, addresses=("10.0.0.1:1",)), core(ME, addresses=("10.0.0.2:1",))
    first = one.start(0.0) and one.receive(0.0, A, Gossip((alive(ME, BOOT, "10.0.0.2:1"),)))
    second = two.start(0.0) and two.receive(0.0, A, Gossip((alive(ME, BOOT, "10.0.0.1:1"),)))
    assert [len(first), len(second)] == [1, 0]


def test_real_keys() -> None:
    mine, theirs = Identity.create(), Identity.create()
    keys = {identity.node_id: identity.public_key for identity in (mine, theirs)}
    swims = [
        Swim(
            identity.node_id,
            name="n",
            addresses=("10.0.0.1:1",),
            version="1",
            boot=1,
            profile=LAN,
            rng=random.Random(1),
            sign=identity.sign,
            verify=lambda node, signature, data: node in keys and verify(keys[node], signature, data),
        )
        for identity in (mine, theirs)
    ]
    one, two = swims
    one.start(0.0)
    two.start(0.0)
    for message in sent(one.link_up(0.0, theirs.node_id)):
        wire = msgspec.msgpack.encode(message)
        decoded = msgspec.msgpack.decode(wire, type=Message)
        assert changes(two.receive(0.0, mine.node_id, decoded)) == [(mine.node_id, None, MemberState.alive)]


# --- convergence ------------------------------------------------------------------------------------------------------

SUBJECTS = [B, C]
ALL_STATEMENTS: list[Statement] = [
    *(alive(node, BOOT + i) for node in SUBJECTS for i in range(3)),
    *(suspect(node, by, BOOT + i) for node in SUBJECTS for by in (A, D) for i in range(3)),
    *(dead(node, A, BOOT + i) for node in SUBJECTS for i in range(3)),
    *(left(node, BOOT + i) for node in SUBJECTS for i in range(3)),
    alive(B, 2 << 32),
]


def beliefs(rig: Rig) -> dict[str, tuple[MemberState, int]]:
    return {node: (m.state, m.incarnation) for node, m in rig.swim.members.items() if node in SUBJECTS}


@given(
    chosen=st.lists(st.sampled_from(ALL_STATEMENTS), min_size=1, max_size=8),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_who_hears_the_same_ends_up_believing_the_same(chosen: list[Statement], rng: random.Random) -> None:
    """In whatever order, split over whatever messages, how often. An accusation counts once its subject's own word is
    known, so everything is heard twice, as gossip and push-pull see to."""
    results = []
    for _ in range(3):
        rig = Rig(A, D)
        for _ in range(2):
            order = chosen * rng.randint(1, 2)
            rng.shuffle(order)
            while order:
                cut = rng.randint(1, len(order))
                rig.hear(*order[:cut])
                order = order[cut:]
        results.append(beliefs(rig))
    assert results[0] == results[1] == results[2]


def test_all_orders_of_one_story_converge() -> None:
    story: list[Statement] = [alive(B), suspect(B, by=A), dead(B, by=D), alive(B, BOOT + 1), suspect(B, A, BOOT + 1)]
    ends = []
    for order in itertools.permutations(story):
        rig = Rig(A, D)
        rig.hear(*order)
        rig.hear(*order)
        ends.append(beliefs(rig)[B])
    assert set(ends) == {(MemberState.suspect, BOOT + 1)}


# --- what goes on the wire --------------------------------------------------------------------------------------------


def test_no_message_outgrows_a_frame_however_many_members_there_are() -> None:
    rig = Rig(A)
    long = tuple(f"{'h' * 240}:{port}" for port in range(8))
    for i in range(1, 400):
        node = node_id(i)
        fat = statements.alive(signer(node), node, BOOT, "n" * 64, long, "1")
        rig.hear(fat)
        if i % 3 == 0:
            rig.hear(dead(node, by=A))
    rig.effects += rig.swim.link_up(1.0, C)
    rig.until(1.0)
    rig.receive(Sums(bytes(8 * 64), reply=True), by=C, now=1.0)
    rig.receive(Ping(1), by=A, now=1.0)
    messages = sent(rig.effects)
    assert max(len(msgspec.msgpack.encode(m)) for m in messages) <= MAX_FRAME
    pushed = [s for m in messages if isinstance(m, PushPull) for s in m.members]
    assert len({s.node for s in pushed}) == 400
    for message in messages:
        msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message)


def test_a_statement_is_passed_on_a_limited_number_of_times() -> None:
    rig = Rig(A, C, D)
    rig.hear(alive(B))
    for sequence in range(40):
        rig.receive(Ping(sequence), by=A)
    assert len(rig.said(B)) == retransmit_limit(LAN, 5) == 4


def test_the_formulas_are_memberlists() -> None:
    assert [round(suspicion_min(LAN, n), 2) for n in (2, 10, 50, 100, 1000)] == [4.0, 4.0, 6.8, 8.0, 12.0]
    assert [retransmit_limit(LAN, n) for n in (1, 9, 10, 99, 100)] == [4, 4, 8, 8, 12]
    assert [push_pull_interval(LAN, n) for n in (2, 32, 33, 64, 65, 128, 129)] == [30, 30, 60, 60, 90, 90, 120]


def test_the_profiles_have_memberlists_numbers() -> None:
    """hashicorp/memberlist, config.go: DefaultLANConfig, DefaultWANConfig, DefaultLocalConfig."""
    columns = (
        "probe_interval", "probe_timeout", "indirect_checks", "suspicion_mult", "suspicion_max_mult", "retransmit_mult",
        "gossip_interval", "gossip_fanout", "gossip_to_dead", "push_pull_interval", "max_health",
    )  # fmt: skip
    theirs = {
        "lan": (1, 0.5, 3, 4, 6, 4, 0.2, 3, 30, 30, 7),
        "wan": (5, 3, 3, 6, 6, 4, 0.5, 4, 60, 60, 7),
        "local": (1, 0.2, 1, 3, 6, 2, 0.1, 3, 15, 15, 7),
    }
    ours = {name: tuple(getattr(profile, column) for column in columns) for name, profile in PROFILES.items()}
    assert ours == theirs


@pytest.mark.parametrize(("members", "apart"), [(3, 30.0), (40, 60.0)])
def test_the_whole_membership_is_exchanged_with_somebody_at_regular_times(members: int, apart: float) -> None:
    rig = Rig(*(node_id(i) for i in range(1, members)))
    asked = []
    while (now := rig.swim.deadline()) <= 250.0:
        for effect in rig.swim.tick(now):
            if not isinstance(effect, Send):
                continue
            if isinstance(effect.message, Ping):
                rig.receive(Ack(effect.message.sequence), by=effect.peer, now=now)
            if isinstance(effect.message, PushPull):
                assert {s.node for s in effect.message.members} == set(rig.swim.members)
                assert effect.message.reply
                asked.append(now)
    assert asked[0] <= 30.0
    assert [round(after - before, 3) for before, after in itertools.pairwise(asked)] == [apart] * (len(asked) - 1)
    assert len(asked) >= 4


def test_members_is_a_view_that_nobody_can_change() -> None:
    rig = Rig(A)
    with pytest.raises(TypeError):
        rig.swim.members[B] = rig.swim.members[A]  # type: ignore[index]
    assert isinstance(rig.swim.members[A], Member)


def test_no_more_members_are_remembered_than_the_profile_says() -> None:
    rig = Rig(A, B, profile=dataclasses.replace(LAN, max_members=3))
    rig.hear(alive(C))
    assert set(rig.swim.members) == {ME, A, B}
