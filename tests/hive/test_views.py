"""Views: the same events give the same view, in whatever order and however often they came."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from hivenode.catalog.models import Catalogue
from hivenode.hive.feeds import Entry
from hivenode.hive.roles import Roles
from hivenode.hive.views import Views
from hivenode.jobs.ledger import Ledger
from hivenode.net.messages import Event
from hivenode.spec.events import (
    AttemptEnded,
    Body,
    CheckpointSaved,
    JobCancelled,
    JobPlanned,
    JobSubmitted,
    ModelRegistered,
    NodeAdmitted,
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Role, Share, Strategy
from hivenode.trust.authority import Authority
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(bytes(32))
IDENTITIES = [Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4)]
NODES = [identity.node_id for identity in IDENTITIES]
VOLUNTEER = 3
"""The last has the worker role alone, and a share in no plan."""


def plan(*nodes: str) -> Plan:
    shares = tuple(Share(node, rank, 1 / len(nodes), 0.01, 1000) for rank, node in enumerate(nodes))
    return Plan(Strategy.data_parallel, shares, 1.0, "because", False, (0, 0, 0, 0), ())


def ref(number: int) -> BlobRef:
    return BlobRef(hashlib.sha256(str(number).encode()).hexdigest(), number)


def history() -> list[tuple[int, Body]]:
    """Who says what, in the order of the clocks."""
    e1, e2 = Epoch(1, NODES[0]), Epoch(2, NODES[1])
    roles = [tuple(Role)] * 3 + [(Role.worker,)]
    grants = [AUTHORITY.grant(i.public_key, "x", r, serial=1) for i, r in zip(IDENTITIES, roles, strict=True)]
    return [
        *((number, NodeAdmitted(grant=grant)) for number, grant in enumerate(grants)),
        (2, JobSubmitted(job="j-1", name="digits", spec=b"{}")),
        (VOLUNTEER, JobSubmitted(job="j-9", name="mine", spec=b"{}")),
        (2, JobSubmitted(job="j-8", name="garbled", spec=b"not json")),
        (0, JobPlanned("j-1", 1, e1, plan(*NODES[:3]), "first plan")),
        (VOLUNTEER, JobPlanned("j-1", 5, Epoch(99, NODES[3]), plan(NODES[3]), "taken over")),
        (VOLUNTEER, JobPlanned("j-1", 6, e1, plan(NODES[3]), "in another's name")),
        (0, CheckpointSaved("j-1", 1, 50, ref(50), (NODES[0],))),
        (1, CheckpointSaved("j-1", 1, 100, ref(100), (NODES[1], NODES[2]))),
        (VOLUNTEER, CheckpointSaved("j-1", 1, 999, ref(999), (NODES[3],))),
        (1, AttemptEnded("j-1", 1, e1, e2, "lost", 100, 1.0, {}, "node lost")),
        (1, JobPlanned("j-1", 2, e2, plan(*NODES[1:3]), "node lost", ref(100), 100)),
        (0, JobPlanned("j-1", 2, e1, plan(NODES[0]), "the other side of a partition", ref(50), 50)),
        (VOLUNTEER, JobCancelled("j-1", "out of spite")),
        (1, ModelRegistered("digits", "j-1", 2, e2, ref(7), "zoo:cnn", {"accuracy": 0.9})),
        (1, AttemptEnded("j-1", 2, e2, e2, "finished", 200, 2.0, {"accuracy": 0.9})),
        (0, AttemptEnded("j-1", 2, e1, e1, "finished", 200, 2.0, {"accuracy": 0.8})),
        (0, ModelRegistered("digits", "j-1", 2, e1, ref(8), "zoo:cnn", {"accuracy": 0.8})),
        (2, JobCancelled("j-1", "too late")),
        (2, JobSubmitted(job="j-2", name="digits", spec=b"{}")),
        (2, JobCancelled("j-2", "changed my mind")),
        (0, JobSubmitted(job="j-3", name="digits", spec=b"{}")),
        (0, JobPlanned("j-3", 1, e1, plan(NODES[2]), "first plan")),
        (1, AttemptEnded("j-3", 1, e1, e2, "lost", 0, 0.0, {}, "out of reach")),
        (2, ModelRegistered("digits", "j-3", 1, e1, ref(9), "zoo:cnn", {})),
        (2, AttemptEnded("j-3", 1, e1, e1, "finished", 9, 1.0, {})),
    ]


def entries() -> list[Entry]:
    counts = [0] * len(NODES)
    found = []
    for at, (number, body) in enumerate(history()):
        counts[number] += 1
        event = Event(NODES[number], counts[number], bytes(32), 100 + at, b"", bytes(64))
        found.append(Entry(event, body, b""))
    return found


def outcome(order: list[Entry], cuts: list[int]) -> tuple[Ledger, Catalogue]:
    ledger = Ledger(AUTHORITY.public_key)
    views = Views([ledger])
    at = 0
    for cut in [*cuts, len(order)]:
        views.add(order[at : at + cut])
        at += cut
    return ledger, Catalogue(ledger.models)


def test_a_job_ends_once_and_makes_one_version() -> None:
    ledger, catalogue = outcome(entries(), [])
    job = ledger.jobs["j-1"]
    assert job.ending == "finished"
    assert job.finished_by == (2, Epoch(2, NODES[1]))
    assert job.current is not None
    assert job.current.planned == Epoch(2, NODES[1])
    assert ledger.jobs["j-2"].ending == "cancelled"
    assert [(v.reference, v.job) for v in catalogue.versions] == [("digits:2", "j-3"), ("digits:1", "j-1")]
    assert catalogue.find("digits:1").blob == ref(7)


def test_what_was_thought_lost_may_have_finished() -> None:
    job = outcome(entries(), [])[0].jobs["j-3"]
    assert job.ending == "finished"
    assert job.finished_by == (1, Epoch(1, NODES[0]))


def test_nobody_is_heard_beyond_its_role() -> None:
    ledger, _ = outcome(entries(), [])
    assert sorted(ledger.jobs) == ["j-1", "j-2", "j-3"]
    job = ledger.jobs["j-1"]
    assert {number for number, _ in job.attempts} == {1, 2}
    assert ref(999).digest not in job.checkpoints


def test_only_attempts_without_progress_count_as_tries() -> None:
    whole = entries()
    kept = [entry for entry in whole if not isinstance(entry.body, AttemptEnded | ModelRegistered)]
    lost = next(e for e in whole if isinstance(e.body, AttemptEnded) and e.body.outcome == "lost")
    job = outcome([*kept, lost], [])[0].jobs["j-1"]
    assert job.attempts[1, Epoch(1, NODES[0])].ended is not None
    assert job.tries == 0
    assert job.latest_checkpoint() is not None
    assert job.latest_checkpoint().step == 100


@given(st.permutations(entries()), st.lists(st.integers(0, 6), max_size=6))
def test_any_order_and_any_pieces_give_the_same_views(order: list[Entry], cuts: list[int]) -> None:
    ledger, catalogue = outcome(order, cuts)
    expected_ledger, expected_catalogue = outcome(entries(), [])
    assert ledger.jobs == expected_ledger.jobs
    assert catalogue.versions == expected_catalogue.versions


class Tally(Roles):
    """Counts how often it folds an event."""

    folded = 0

    def apply(self, author: str, hlc: int, body: Body) -> None:
        super().apply(author, hlc, body)
        self.folded += 1


def test_newcomers_heard_of_in_any_order_are_folded_once_each() -> None:
    keys = [Identity.from_seed(bytes([n]) * 32) for n in range(40)]
    grants = [AUTHORITY.grant(key.public_key, "x", (Role.worker,), serial=1) for key in keys]
    heard = [
        Entry(Event(key.node_id, 1, bytes(32), 100 + at, b"", bytes(64)), NodeAdmitted(grant=grant), b"")
        for at, (key, grant) in enumerate(zip(keys, grants, strict=True))
    ]
    roles = Tally(AUTHORITY.public_key)
    views = Views([roles])
    for entry in reversed(heard):
        views.add([entry])
    assert roles.folded == len(keys)
    assert sorted(roles.news()) == sorted(key.node_id for key in keys)
    assert roles.news() == ()


def test_a_grant_that_comes_after_what_depends_on_it_still_counts_first() -> None:
    admitted, submitted, late = entries()[2], entries()[4], entries()[0]
    ledger = Ledger(AUTHORITY.public_key)
    views = Views([ledger])
    for entry in (submitted, late, admitted):
        views.add([entry])
    assert sorted(ledger.jobs) == ["j-1"]


def test_of_two_grants_with_one_serial_the_same_counts_for_everybody() -> None:
    key = IDENTITIES[0]
    grants = [AUTHORITY.grant(key.public_key, name, (Role.worker,), serial=7) for name in ("ann", "bob")]
    names = set[str]()
    for order in (grants, grants[::-1]):
        roles = Roles(AUTHORITY.public_key)
        for grant in order:
            roles.apply(key.node_id, 1, NodeAdmitted(grant=grant))
        names.add(roles.name(key.node_id))
    assert len(names) == 1
