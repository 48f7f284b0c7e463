"""What a coordinator says of a job below the epoch that has it does not count, in whatever order it arrives."""

from __future__ import annotations

import itertools

import pytest

from hivenode.jobs.ledger import Job, Ledger
from hivenode.spec.events import (
    AttemptAdopted,
    AttemptEnded,
    AttemptGrown,
    Body,
    JobCancelled,
    JobGivenUp,
    JobPlanned,
    JobSubmitted,
    ModelRegistered,
    NodeAdmitted,
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Role, Share, Strategy
from hivenode.trust.authority import Authority
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(bytes(32))
IDENTITIES = [Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3)]
OLD, NEW, WORKER = (identity.node_id for identity in IDENTITIES)
LOW, HIGH = Epoch(3, OLD), Epoch(5, NEW)
REF = BlobRef("0" * 64, 1)


def plan() -> Plan:
    return Plan(Strategy.single_node, (Share(WORKER, 0, 1.0, 0.1, 1),), 1.0, "because", False, (0, 0, 0, 0), ())


def job(*said: tuple[str, Body]) -> Job:
    """The job after these were said, in this order."""
    ledger = Ledger(AUTHORITY.public_key)
    roles = ((Role.coordinator, Role.submitter), (Role.coordinator,), (Role.worker,))
    for identity, held in zip(IDENTITIES, roles, strict=True):
        grant = AUTHORITY.grant(identity.public_key, "x", held, serial=1)
        ledger.apply(identity.node_id, 1, NodeAdmitted(grant=grant))
    ledger.apply(OLD, 2, JobSubmitted(job="j-1", name="digits", spec=b"{}"))
    for hlc, (author, body) in enumerate(said, start=3):
        ledger.apply(author, hlc, body)
    return ledger.jobs["j-1"]


FIRST = (OLD, JobPlanned("j-1", 1, LOW, plan(), "first plan"))
ADOPTED = (NEW, AttemptAdopted("j-1", 1, LOW, HIGH, (WORKER,)))


def ended(by: str, epoch: Epoch, outcome: str, *, planned: Epoch = LOW, attempt: int = 1) -> tuple[str, Body]:
    return (by, AttemptEnded("j-1", attempt, planned, epoch, outcome, 1, 1.0, {}, "error", "fix"))


@pytest.mark.claim("E6")
@pytest.mark.parametrize("outcome", ["lost", "failed"])
def test_the_end_of_an_attempt_is_not_for_one_to_say_from_whom_it_was_taken(outcome: str) -> None:
    held = job(FIRST, ADOPTED, ended(OLD, LOW, outcome))
    assert held.open
    assert held.current is not None
    assert held.current.ended is None
    held = job(FIRST, ADOPTED, ended(NEW, HIGH, outcome))
    assert held.current is not None
    assert held.current.ended is not None


@pytest.mark.claim("E6")
def test_a_late_plan_does_not_replace_an_adopted_attempt() -> None:
    late = (OLD, JobPlanned("j-1", 2, Epoch(4, OLD), plan(), "thought lost"))
    for order in itertools.permutations([ADOPTED, late]):
        held = job(FIRST, *order)
        assert held.current is not None
        assert held.current.name == (1, LOW), "what the highest epoch has taken over stands"
        assert held.fence == HIGH


def test_a_late_failure_of_an_outlived_plan_does_not_end_the_job() -> None:
    second = (NEW, JobPlanned("j-1", 2, HIGH, plan(), "planned anew"))
    held = job(FIRST, second, ended(OLD, LOW, "failed"))
    assert held.open
    assert held.current is not None
    assert held.current.name == (2, HIGH)


@pytest.mark.claim("E6")
def test_giving_up_below_the_fence_ends_nothing() -> None:
    given_up = JobGivenUp("j-1", LOW, "error", "fix")
    assert job(FIRST, ADOPTED, (OLD, given_up)).open
    assert not job(FIRST, (OLD, given_up)).open
    assert not job(FIRST, ADOPTED, (NEW, JobGivenUp("j-1", HIGH, "error", "fix"))).open


@pytest.mark.claim("E6")
def test_a_late_adoption_takes_nothing_back() -> None:
    held = job(FIRST, ADOPTED, (OLD, AttemptAdopted("j-1", 1, LOW, Epoch(4, OLD), (WORKER,))))
    assert held.current is not None
    assert held.current.epoch == HIGH
    assert held.current.adopted == [HIGH]


@pytest.mark.claim("E6")
def test_a_late_growth_adds_nobody() -> None:
    def grown(by: str, epoch: Epoch) -> tuple[str, Body]:
        return (by, AttemptGrown("j-1", 1, LOW, epoch, Share(NEW, 1, 1.0, 0.1, 1)))

    def nodes(*said: tuple[str, Body]) -> set[str]:
        current = job(FIRST, *said).current
        assert current is not None
        return {share.node for share in current.plan.shares}

    assert nodes(ADOPTED, grown(OLD, Epoch(4, OLD))) == {WORKER}
    assert nodes(ADOPTED, grown(NEW, HIGH)) == {WORKER, NEW}
    assert nodes(grown(OLD, LOW)) == {WORKER, NEW}


@pytest.mark.claim("E6")
@pytest.mark.parametrize("body", [
    JobPlanned("j-1", 2, Epoch(4, OLD), plan(), "thought lost"),
    JobPlanned("j-1", 3, Epoch(4, OLD), plan(), "thought lost"),
    AttemptAdopted("j-1", 1, LOW, Epoch(4, OLD), (WORKER,)),
    AttemptAdopted("j-1", 2, HIGH, Epoch(4, OLD), (WORKER,)),
    AttemptGrown("j-1", 1, LOW, Epoch(4, OLD), Share(NEW, 1, 1.0, 0.1, 1)),
    AttemptGrown("j-1", 2, HIGH, Epoch(4, OLD), Share(NEW, 1, 1.0, 0.1, 1)),
    ended(OLD, LOW, "lost")[1],
    ended(OLD, LOW, "failed")[1],
    ended(OLD, Epoch(4, OLD), "failed", planned=HIGH, attempt=2)[1],
    JobGivenUp("j-1", Epoch(4, OLD), "error", "fix"),
])  # fmt: skip
def test_below_a_higher_plan_nothing_that_is_said_changes_what_is_done(body: Body) -> None:
    anew = (NEW, JobPlanned("j-1", 2, HIGH, plan(), "planned anew"))
    ends = isinstance(body, JobGivenUp) or (isinstance(body, AttemptEnded) and body.outcome == "failed")
    for order in [(anew, (OLD, body))] if ends else itertools.permutations([anew, (OLD, body)]):
        held = job(FIRST, *order)
        assert held.open
        assert held.current is not None
        assert (held.current.name, held.current.ended, held.fence) == ((2, HIGH), None, HIGH)
        assert held.current.plan == plan()
        assert held.current.adopted == []


def test_nobody_speaks_in_anothers_epoch() -> None:
    for body, liar in itertools.product(
        (
            JobPlanned("j-1", 2, HIGH, plan(), "taken over"),
            AttemptAdopted("j-1", 1, LOW, HIGH, (WORKER,)),
            AttemptGrown("j-1", 1, LOW, HIGH, Share(NEW, 1, 1.0, 0.1, 1)),
            ended(OLD, HIGH, "failed")[1],
            ended(OLD, HIGH, "lost")[1],
            JobGivenUp("j-1", HIGH, "error", "fix"),
        ),
        (OLD, WORKER),
    ):
        held = job(FIRST, (liar, body))
        assert held.open
        assert held.current is not None
        assert (held.current.name, held.current.ended, held.fence) == ((1, LOW), None, LOW)
        assert held.current.plan == plan()


def test_a_result_stands_whoever_coordinates() -> None:
    registered = (WORKER, ModelRegistered("digits", "j-1", 1, LOW, REF, "zoo:cnn", {}))
    held = job(FIRST, ADOPTED, registered, ended(WORKER, LOW, "finished"))
    assert held.ending == "finished"
    assert held.finished_by == (1, LOW)


def test_a_cancellation_is_a_persons_wish_and_needs_no_epoch() -> None:
    assert job(FIRST, ADOPTED, (OLD, JobCancelled("j-1", "enough"))).ending == "cancelled"
    assert job(FIRST, (NEW, JobCancelled("j-1", "a coordinator's role is not enough"))).open
