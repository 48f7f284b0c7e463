"""Views: the same events give the same view, in whatever order and however often they came."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from hivenode.catalog.models import Catalogue
from hivenode.hive.feeds import Entry
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
)
from hivenode.spec.values import BlobRef, Epoch, Plan, Share, Strategy

NODES = ["a" * 32, "b" * 32, "c" * 32]


def plan(*nodes: str) -> Plan:
    shares = tuple(Share(node, rank, 1 / len(nodes), 0.01, 1000) for rank, node in enumerate(nodes))
    return Plan(Strategy.data_parallel, shares, 1.0, "because", False, (0, 0, 0, 0), ())


def ref(number: int) -> BlobRef:
    return BlobRef(hashlib.sha256(str(number).encode()).hexdigest(), number)


def history() -> list[Body]:
    e1, e2 = Epoch(1, NODES[0]), Epoch(2, NODES[1])
    return [
        JobSubmitted(job="j-1", name="digits", spec=b"{}"),
        JobPlanned("j-1", 1, e1, plan(*NODES), "first plan"),
        CheckpointSaved("j-1", 1, 50, ref(50), (NODES[0],)),
        CheckpointSaved("j-1", 1, 100, ref(100), (NODES[1], NODES[2])),
        AttemptEnded("j-1", 1, e1, e2, "lost", 100, 1.0, {}, "node lost"),
        JobPlanned("j-1", 2, e2, plan(*NODES[1:]), "node lost", ref(100), 100),
        JobPlanned("j-1", 2, e1, plan(NODES[0]), "the other side of a partition", ref(50), 50),
        ModelRegistered("digits", "j-1", 2, e2, ref(7), "zoo:cnn", {"accuracy": 0.9}),
        AttemptEnded("j-1", 2, e2, e2, "finished", 200, 2.0, {"accuracy": 0.9}),
        AttemptEnded("j-1", 2, e1, e1, "finished", 200, 2.0, {"accuracy": 0.8}),
        ModelRegistered("digits", "j-1", 2, e1, ref(8), "zoo:cnn", {"accuracy": 0.8}),
        JobCancelled("j-1", "too late"),
        JobSubmitted(job="j-2", name="digits", spec=b"{}"),
        JobCancelled("j-2", "changed my mind"),
        ModelRegistered("digits", "j-3", 1, e1, ref(9), "zoo:cnn", {}),
    ]


def entries() -> list[Entry]:
    counts = dict.fromkeys(NODES, 0)
    found = []
    for at, body in enumerate(history()):
        author = NODES[at % 3]
        counts[author] += 1
        found.append(Entry(Event(author, counts[author], bytes(32), 100 + at, b"", bytes(64)), body, b""))
    return found


def outcome(order: list[Entry], cuts: list[int]) -> tuple[Ledger, Catalogue]:
    ledger, catalogue = Ledger(), Catalogue()
    views = Views([ledger, catalogue])
    at = 0
    for cut in [*cuts, len(order)]:
        views.add(order[at : at + cut])
        at += cut
    return ledger, catalogue


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


def test_the_furthest_checkpoint_within_reach_is_resumed_from() -> None:
    job = outcome(entries(), [])[0].jobs["j-1"]
    assert job.latest_checkpoint().step == 100
    assert job.latest_checkpoint(frozenset({NODES[0]})).step == 50
    assert job.latest_checkpoint(frozenset()) is None


@given(st.permutations(entries()), st.lists(st.integers(0, 6), max_size=6))
def test_any_order_and_any_pieces_give_the_same_views(order: list[Entry], cuts: list[int]) -> None:
    ledger, catalogue = outcome(order, cuts)
    expected_ledger, expected_catalogue = outcome(entries(), [])
    assert ledger.jobs == expected_ledger.jobs
    assert catalogue.versions == expected_catalogue.versions
