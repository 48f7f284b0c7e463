"""What is read in a certificate, when it is to be renewed, and what a person is told about it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hivenode.errors import Refused
from hivenode.trust.authority import Authority
from hivenode.trust.certificates import Paper, gap, read_signed, span
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AUTHORITY, NODE = Authority.from_seed(b"a"), Identity.from_seed(b"n")


def paper(days: float = 10) -> Paper:
    return Credentials.found(NODE, "n", now=NOW, lifetime=timedelta(days=days), authority=AUTHORITY).paper


def der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def test_renewal_is_due_between_half_and_four_fifths_of_the_life_and_not_at_once_for_all() -> None:
    rng, found, day = random.Random(1), paper(), 86400.0
    due = [(found.renewal_due(rng) - NOW.timestamp()) / day for _ in range(1000)]
    assert found.issued == NOW.timestamp()
    assert 5 <= min(due) < 5.1
    assert 7.9 < max(due) <= 8
    assert abs(sum(due) / len(due) - 6.5) < 0.1


def test_a_certificate_that_is_not_good_is_named_with_its_cause() -> None:
    found = paper()
    start, end = found.begins, found.ends
    assert found.trouble(start) == found.trouble(end - 1) == ""
    assert "expired 3 hours ago" in found.trouble(end + 3 * 3600)
    assert "or this clock is ahead" in found.trouble(end + 60)
    assert found.trouble(end + 60, -3660.0).endswith("its clock is 61 minutes behind ours")
    assert "clock is" not in found.trouble(end + 60, 2.0).partition("ago by this machine's clock")[2]
    assert "not valid for another 2 hours" in found.trouble(start - 7200)
    assert found.trouble(start - 60, 3660.0).endswith("its clock is 61 minutes ahead of ours")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 seconds"), (90, "90 seconds"), (3660, "61 minutes"), (86400, "24 hours"),
                           (30 * 86400, "30 days")],
)  # fmt: skip
def test_lengths_of_time_are_in_the_unit_a_person_would_choose(seconds: float, words: str) -> None:
    assert span(seconds) == words
    assert gap(-seconds - 0.01).endswith("behind")


def test_a_certificate_off_the_wire_counts_only_with_the_authoritys_signature() -> None:
    good = der(AUTHORITY.certify(NODE.public_key, now=NOW))
    assert read_signed(good, AUTHORITY.hive_id, AUTHORITY.certificate_pem).node == NODE.node_id
    forger = Authority.from_seed(b"forger")
    forger.hive_id, forger._name = AUTHORITY.hive_id, AUTHORITY._name
    with pytest.raises(Refused, match="not signed by this hive's authority"):
        read_signed(der(forger.certify(NODE.public_key, now=NOW)), AUTHORITY.hive_id, AUTHORITY.certificate_pem)
    own = Authority(NODE._key)  # a member that signs for itself
    own.hive_id = AUTHORITY.hive_id
    with pytest.raises(Refused):
        read_signed(der(own.certify(NODE.public_key, now=NOW)), AUTHORITY.hive_id, AUTHORITY.certificate_pem)


def test_only_a_newer_certificate_for_the_same_node_is_a_renewal() -> None:
    held = Credentials.found(NODE, "n", now=NOW, authority=AUTHORITY)
    fresh = AUTHORITY.certify(NODE.public_key, now=NOW + timedelta(days=1), lifetime=timedelta(days=3))
    assert held.renewed(fresh).paper.ends < held.paper.ends  # an admin may shorten the life of certificates
    with pytest.raises(Refused, match="not newer"):
        held.renewed(AUTHORITY.certify(NODE.public_key, now=NOW - timedelta(days=1)))
    with pytest.raises(Refused, match="is for node"):
        held.renewed(AUTHORITY.certify(Identity.create().public_key, now=NOW))
    with pytest.raises(Refused):
        held.renewed(Authority.create().certify(NODE.public_key, now=NOW))


def test_the_authoritys_key_can_be_copied_whole() -> None:
    copy = Authority.from_private_bytes(AUTHORITY.private_bytes())
    assert (copy.hive_id, copy.certificate_pem) == (AUTHORITY.hive_id, AUTHORITY.certificate_pem)
    with pytest.raises(Refused):
        Authority.from_private_bytes(b"short")
