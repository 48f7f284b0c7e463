"""Sealing: old events make way for what follows from them, and nobody's view changes by it."""

from __future__ import annotations

import msgspec
import pytest

from hivenode.catalog.models import Catalogue
from hivenode.errors import Refused
from hivenode.hive.seals import excusable
from hivenode.hive.snapshots import Certificate, finish, judge, open_file, read, sealed_file
from hivenode.spec.events import (
    AttemptEnded,
    BlobHeld,
    Body,
    ExperienceRecorded,
    JobCancelled,
    JobPlanned,
    JobSubmitted,
    ModelRegistered,
    NodeAdmitted,
    SealClosed,
    SealConfirmed,
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Role, Share, Strategy
from tests.hive.replicas import AUTHORITY, Replica, digest


def job(name: str) -> JobSubmitted:
    return JobSubmitted(job=f"j-{name}", name=name, spec=b"{}")


def held(name: str) -> BlobHeld:
    return BlobHeld(digest=digest(name), size=1)


def ran(name: str, factor: float) -> ExperienceRecorded:
    return ExperienceRecorded(f"j-{name}", 1, (0, 0, 1, 0), 1, 10.0, 10.0 * factor, 1.0)


def spread(*replicas: Replica) -> None:
    for _ in range(2):
        for one in replicas:
            for other in replicas:
                while one.send(other):
                    pass


def trio() -> tuple[Replica, Replica, Replica]:
    replicas = (Replica(1), Replica(2), Replica(3))
    for number, replica in enumerate(replicas):
        replica.say(10 + number, job(f"a{number}"), held(f"a{number}"), ran(f"a{number}", 1.5 + number))
    spread(*replicas)
    return replicas


def seal(*replicas: Replica, now: int = 1000, horizon: int = 100, forget: int = 0) -> None:
    leader = replicas[0]
    leader.propose(now, now, horizon, forget)
    spread(*replicas)
    assert all(replica.confirm(now + 1) for replica in replicas[1:])
    spread(*replicas)
    assert leader.close(now + 2)
    spread(*replicas)
    assert all(replica.settle() for replica in replicas)


def test_a_seal_leaves_the_views_as_they_are_and_the_events_gone() -> None:
    replicas = trio()
    replicas[1].say(200, job("young"))
    spread(*replicas)
    before = replicas[0].dump()
    seal(*replicas)
    assert {replica.dump() for replica in replicas} == {before}
    for replica in replicas:
        assert [e.event.author for e in replica.feeds.entries() if e.event.hlc <= 100] == []
        assert replica.ledger.jobs["j-young"].open
    replicas[2].say(2000, JobCancelled("j-a0", "enough"))
    spread(*replicas)
    assert len({replica.dump() for replica in replicas}) == 1
    assert replicas[0].ledger.jobs["j-a0"].ending == "cancelled"


def test_a_job_that_ended_long_ago_is_forgotten_and_its_name_not_taken_again() -> None:
    replicas = trio()
    replicas[0].say(20, JobCancelled("j-a0", "x"))
    replicas[0].say(80, JobCancelled("j-a1", "x"))
    spread(*replicas)
    seal(*replicas, forget=50)
    assert [sorted(replica.ledger.jobs) for replica in replicas] == [["j-a1", "j-a2"]] * 3


def test_what_is_said_late_counts_the_same_for_those_who_sealed_and_the_one_who_was_away() -> None:
    first, second, away = trio()
    late = Replica(4)
    late.say(5, job("late"), held("late"))
    away.say(50, JobCancelled("j-a0", "away"), ran("z", 3.0))
    first.say(60, JobCancelled("j-a0", "first"))
    first.propose(1000, 1, 100)
    first.send(second)
    assert second.confirm(1001)
    second.send(first)
    assert not first.close(1002), "somebody has not confirmed"
    assert first.close(1002, excused=(away.id,))
    assert first.settle()
    spread(first, second)
    assert second.settle()
    before = away.dump()
    away.send(first)
    late.send(first)
    assert away.dump() == before, "nothing can be sent to it from below the seal"
    first.send(away)
    away.catch_up(first.file)
    spread(first, second, away, late)
    late.catch_up(second.file)
    spread(first, second, away, late)
    assert len({replica.dump() for replica in (first, second, away, late)}) == 1
    assert first.ledger.jobs["j-a0"].error == "first", "the sealed facts stand"
    assert first.ledger.jobs["j-late"].at == 100
    heads = first.feeds.heads
    assert heads[away.id] == 6
    seal(first, second, away, late, now=5000, horizon=2000)
    assert len({replica.dump() for replica in (first, second, away, late)}) == 1


def finished(name: str, leader: Replica) -> list[Body]:
    """A job from its submission to its model, all on one node."""
    epoch, blob = Epoch(1, leader.id), BlobRef(digest(name), 1)
    plan = Plan(Strategy.single_node, (Share(leader.id, 0, 1.0, 1.0, 1),), 1.0, "", False, (0, 0, 0, 0), ())
    return [
        job(name),
        JobPlanned(f"j-{name}", 1, epoch, plan, "first plan"),
        ModelRegistered("digits", f"j-{name}", 1, epoch, blob, "zoo:cnn", {}),
        AttemptEnded(f"j-{name}", 1, epoch, epoch, "finished", 1, 1.0, {}),
    ]


@pytest.mark.parametrize("forget", [0, 99])
def test_a_model_registered_late_takes_no_number_that_was_given(forget: int) -> None:
    first, second, third = trio()
    first.say(50, *finished("early", first))
    third.say(40, *finished("late", third))
    spread(first, second)
    first.propose(1000, 1, 100, forget)
    spread(first, second)
    assert second.confirm(1001)
    spread(first, second)
    assert first.close(1002, excused=(third.id,))
    assert first.settle()
    spread(first, second)
    assert second.settle()
    third.catch_up(first.file)
    spread(first, second, third)
    for replica in (first, second, third):
        versions = Catalogue(replica.ledger.models).versions
        assert {version.reference: version.job for version in versions} == {"digits:1": "j-early", "digits:2": "j-late"}
        assert ("j-early" in replica.ledger.jobs) == (not forget)


def test_a_node_restored_from_a_backup_goes_on_from_the_cut_without_a_fork() -> None:
    first, second, third = trio()
    old = Replica(3)
    old.take([e.event for e in third.feeds.entries()][:3])
    third.say(70, held("later"))
    spread(first, second, third)
    seal(first, second, third)
    assert old.feeds.heads.get(third.id, 0) < first.feeds.heads[third.id]
    old.catch_up(first.file)
    first.send(old)
    assert old.feeds.heads == first.feeds.heads
    old.last = third.last
    old.say(5000, held("new"))
    spread(first, second, old)
    assert not first.feeds.forked
    assert len({replica.dump() for replica in (first, second, old)}) == 1


def test_an_event_from_below_the_cut_is_passed_over_even_if_it_is_another_one() -> None:
    first, second, third = trio()
    events = [e.event for e in first.feeds.entries() if e.event.author == third.id]
    seal(first, second, third)
    twin = Replica(3)
    twin.say(12, job("other"))
    forked = [e.event for e in twin.feeds.entries()]
    found = first.feeds.examine([*events, *forked])
    assert (found.fresh, found.forks, found.offence, found.gap) == ((), (), "", False)


def test_a_cut_that_lacks_what_one_knows_is_not_confirmed_but_proposed_anew() -> None:
    first, second, third = trio()
    third.say(50, job("more"))
    third.send(second)
    first.propose(1000, 1, 100)
    first.send(second)
    assert not second.confirm(1001)
    spread(first, second, third)
    first.propose(1003, 1, 100)
    spread(first, second, third)
    assert second.confirm(1004)
    assert third.confirm(1004)
    spread(first, second, third)
    assert first.close(1005)


def test_a_higher_epoch_replaces_an_open_proposal_and_who_confirmed_it_closes_its_own_no_more() -> None:
    first, second, third = trio()
    first.propose(1000, 1, 100)
    spread(first, second, third)
    assert third.confirm(1001)
    second.propose(1002, 2, 90)
    second.send(first)
    assert first.confirm(1003)
    third.send(first)
    second.feeds, before = second.feeds, first.feeds
    assert first.feeds is before
    assert not first.close(1004, excused=(second.id, third.id))
    spread(first, second, third)
    assert third.confirm(1005)
    spread(first, second, third)
    assert second.close(1006)
    spread(first, second, third)
    assert all(replica.settle() for replica in (first, second, third))
    assert len({replica.sealed.digest for replica in (first, second, third) if replica.sealed}) == 1


def test_only_a_coordinator_in_its_own_epoch_is_heard() -> None:
    first, second = Replica(1), Replica(2, (Role.worker, Role.submitter))
    first.say(10, job("a"))
    second.say(11, job("b"))
    spread(first, second)
    second.propose(1000, 9, 100)
    spread(first, second)
    assert first.round().current is None
    assert not first.confirm(1001)


def closed() -> tuple[tuple[Replica, Replica, Replica], bytes]:
    replicas = trio()
    seal(*replicas)
    return replicas, replicas[0].file


def newcomer() -> Replica:
    return Replica(9)


def resealed(file: bytes, certificate: Certificate) -> bytes:
    return sealed_file(certificate, open_file(file)[1])


def test_a_newcomer_takes_a_seal_over_and_judges_it_by_itself() -> None:
    replicas, file = closed()
    other = newcomer()
    other.catch_up(file)
    spread(*replicas, other)
    assert other.dump() == replicas[0].dump()


def test_a_seal_that_somebody_did_not_confirm_is_refused() -> None:
    _, file = closed()
    certificate, _ = open_file(file)
    fewer = msgspec.structs.replace(certificate, confirmations=certificate.confirmations[:1])
    with pytest.raises(Refused, match="has not confirmed"):
        newcomer().catch_up(resealed(file, fewer))


def test_a_coordinator_that_excuses_most_of_the_others_is_refused() -> None:
    first, second, third = trio()
    first.propose(1000, 1, 100)
    assert first.close(1001, excused=(second.id, third.id))
    with pytest.raises(Refused, match="most coordinators"):
        first.settle()


def test_a_wrong_snapshot_is_not_confirmed_and_cannot_be_closed() -> None:
    first, second, third = trio()
    liar = Replica(1)
    liar.take([e.event for e in first.feeds.entries()])
    liar.last = first.last
    proposal = liar.propose(1000, 1, 100)
    honest = liar.feeds
    forged = msgspec.structs.replace(proposal, digest=digest("forged"))
    liar.feeds = honest
    liar.say(1001, forged)
    liar.send(second)
    liar.send(third)
    assert not second.confirm(1002)
    assert not third.confirm(1002)
    liar.say(1003, SealClosed(number=1, digest=forged.digest, excused=()))
    liar.send(second)
    before = second.dump()
    assert not second.settle()
    assert second.dump() == before
    assert second.number_sealed == 0


@pytest.mark.parametrize("victim", ["proposal", "closing", "confirmation"])
def test_a_forged_signature_is_refused(victim: str) -> None:
    _, file = closed()
    certificate, _ = open_file(file)
    bad = lambda event: msgspec.structs.replace(event, signature=bytes(64))  # noqa: E731
    if victim == "confirmation":
        first, *others = certificate.confirmations
        forged = msgspec.structs.replace(certificate, confirmations=(bad(first), *others))
    else:
        forged = msgspec.structs.replace(certificate, **{victim: bad(getattr(certificate, victim))})
    with pytest.raises(Refused, match="signature"):
        newcomer().catch_up(resealed(file, forged))


def test_no_byte_of_a_file_can_be_changed() -> None:
    _, file = closed()
    for at in range(0, len(file), 37):
        changed = file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]
        with pytest.raises(Refused):
            newcomer().catch_up(changed)
    for cut in (0, 3, 100, len(file) - 1):
        with pytest.raises(Refused):
            newcomer().catch_up(file[:cut])
    with pytest.raises(Refused):
        newcomer().catch_up(file + bytes(5))


def test_a_revoked_member_need_not_confirm_and_its_sealed_events_stay() -> None:
    first, second, third = trio()
    key = third.identity.public_key
    first.say(50, NodeAdmitted(grant=AUTHORITY.grant(key, "n3", (), 2, through=2, reason="sold")))
    spread(first, second)
    first.propose(1000, 1, 100)
    spread(first, second)
    assert second.confirm(1001)
    spread(first, second)
    assert first.close(1002)
    assert first.settle()
    spread(first, second)
    assert second.settle()
    assert first.feeds.heads[third.id] == 2
    first.say(3000, NodeAdmitted(grant=AUTHORITY.grant(key, "n3", (), 3, through=1)))
    spread(first, second)
    assert first.feeds.heads[third.id] == 2, "what is sealed counts, whatever is said later"
    assert first.dump() == second.dump()


def test_who_is_there_or_was_heard_is_waited_for() -> None:
    found = excusable(
        ["away", "quiet", "recent", "revoked"],
        present=["quiet"],
        revoked=lambda node: node == "revoked",
        heard={"away": 1, "quiet": 1, "recent": 50, "revoked": 60}.__getitem__,
        since=30,
    )
    assert found == ("away", "revoked")


def test_the_marks_of_a_fold_do_not_change_with_it() -> None:
    replica = trio()[0]
    bodies: list[Body] = [JobCancelled("j-a0", "x"), held("more"), ran("q", 2.0), job("later")]
    marks = [(fold, fold.mark(), list(fold.dump(0))) for fold in replica.views.folds]
    replica.say(500, *bodies)
    for fold, mark, before in marks:
        after = list(fold.dump(0))
        fold.back(mark)
        assert list(fold.dump(0)) == before
        assert after != before or fold.topic == "roles"


def test_a_snapshot_read_back_is_what_was_written() -> None:
    replicas, file = closed()
    certificate, data = open_file(file)
    again = finish(read(data, replicas[0].views.folds, AUTHORITY.public_key))
    assert replicas[0].sealed is not None
    assert again.digest == replicas[0].sealed.digest
    finish(judge(certificate, again, AUTHORITY.hive_id))
    assert isinstance(certificate.confirmations[0].author, str)
    assert SealConfirmed(number=1, digest=again.digest) in [
        e.body for e in replicas[0].feeds.entries() if isinstance(e.body, SealConfirmed)
    ]
