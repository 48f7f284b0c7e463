from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from hivenode.errors import Conflict, Corrupted, InvalidInput, NotFound, Refused
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority, open_grant
from hivenode.trust.certificates import peer_id
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ROLES = (Role.worker, Role.submitter)


def der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


def test_a_certificate_names_the_node_and_only_the_node() -> None:
    authority, node = Authority.create(), Identity.create()
    pem = authority.certify(node.public_key, now=NOW, lifetime=timedelta(days=2))
    assert peer_id(der(pem), authority.hive_id) == node.node_id
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://{authority.hive_id}/node/{node.node_id}"]
    assert certificate.not_valid_after_utc == NOW + timedelta(days=2)
    assert certificate.not_valid_before_utc <= NOW - timedelta(hours=1), "a slow clock must not lock a machine out"


def test_certificates_carry_what_strict_verifiers_ask_for() -> None:
    authority, node = Authority.create(), Identity.create()
    root = x509.load_pem_x509_certificate(authority.certificate_pem.encode()).extensions
    leaf = x509.load_pem_x509_certificate(authority.certify(node.public_key, now=NOW).encode()).extensions
    constraints = root.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert root.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    usage = leaf.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    key_id = root.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == key_id


def test_certifying_something_that_is_no_key_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Authority.create().certify(b"short", now=NOW)


def test_a_grant_says_what_the_authority_said() -> None:
    authority, node = Authority.create(), Identity.create()
    grant = open_grant(authority.grant(node.public_key, "box", ROLES, 7), authority.public_key)
    assert (grant.hive, grant.node, grant.public_key) == (authority.hive_id, node.node_id, node.public_key)
    assert (grant.name, grant.roles, grant.serial) == ("box", ROLES, 7)


def test_a_grant_of_another_authority_is_refused() -> None:
    node = Identity.create()
    data = Authority.create().grant(node.public_key, "box", ROLES, 1)
    with pytest.raises(Refused, match="not signed"):
        open_grant(data, Authority.create().public_key)


def test_no_changed_byte_of_a_grant_goes_unnoticed() -> None:
    authority, node = Authority.from_seed(b"a"), Identity.from_seed(b"n")
    data = authority.grant(node.public_key, "box", (Role.worker,), 1)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x01
        with pytest.raises(Refused):
            open_grant(bytes(changed), authority.public_key)


@pytest.mark.parametrize("data", [b"", b"\x90", b"x" * 5000, msgspec.msgpack.encode([b"a", b"b"])])
def test_what_is_no_grant_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        open_grant(data, Authority.from_seed(b"a").public_key)


def test_a_grant_signed_for_a_foreign_hive_or_a_borrowed_id_is_refused() -> None:
    """Even the authority's own signature does not make these true."""
    authority, node, other = Authority.create(), Identity.create(), Identity.create()
    data = msgspec.msgpack.decode(authority.grant(node.public_key, "box", ROLES, 1))
    fields = msgspec.msgpack.decode(data[0])
    for change in ({"hive": Authority.create().hive_id}, {"node": other.node_id}):
        encoded = msgspec.msgpack.encode({**fields, **change})
        signature = authority._key.sign(b"hivenode grant 1\0" + encoded)
        with pytest.raises(Refused, match=r"another hive|not that node's"):
            open_grant(msgspec.msgpack.encode([encoded, signature]), authority.public_key)


def test_an_authority_is_kept_private_and_comes_back_the_same(tmp_path: Path) -> None:
    authority = Authority.create()
    authority.save(tmp_path)
    again = Authority.load(tmp_path)
    assert again.hive_id == authority.hive_id
    assert again.certificate_pem == authority.certificate_pem
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(Refused, match="open to others"):
        Authority.load(tmp_path)


def test_founding_a_second_hive_never_loses_the_first_ones_key(tmp_path: Path) -> None:
    one, two = Authority.create(), Authority.create()
    one.save(tmp_path)
    two.save(tmp_path)
    assert Authority.load(tmp_path, one.hive_id).public_key == one.public_key
    assert Authority.load(tmp_path, two.hive_id).public_key == two.public_key
    with pytest.raises(Conflict):
        Authority.load(tmp_path)
    with pytest.raises(NotFound):
        Authority.load(tmp_path / "elsewhere")


def test_credentials_come_back_as_they_were(tmp_path: Path) -> None:
    identity = Identity.create()
    founded = Credentials.found(identity, "first", now=NOW)
    founded.save(tmp_path)
    again = Credentials.load(tmp_path, identity)
    assert again.authority is not None
    assert (again.hive_id, again.certificate_pem, again.grant) == (
        founded.hive_id,
        founded.certificate_pem,
        founded.grant,
    )
    assert set(open_grant(again.grant, again.authority_key).roles) == set(Role)


def test_a_member_that_joins_another_hive_keeps_only_its_place_there(tmp_path: Path) -> None:
    identity, authority = Identity.create(), Authority.create()
    Credentials.found(identity, "alone", now=NOW).save(tmp_path)
    joined = Credentials.joined(
        identity,
        certificate_pem=authority.certify(identity.public_key, now=NOW),
        grant=authority.grant(identity.public_key, "member", ROLES, 1),
        authority_pem=authority.certificate_pem,
    )
    joined.save(tmp_path)
    again = Credentials.load(tmp_path, identity)
    assert again.hive_id == authority.hive_id
    assert again.authority is None


def test_credentials_of_another_node_or_with_a_swapped_part_are_refused(tmp_path: Path) -> None:
    identity, other, authority = Identity.create(), Identity.create(), Authority.create()
    parts = {
        "certificate_pem": authority.certify(identity.public_key, now=NOW),
        "grant": authority.grant(identity.public_key, "n", ROLES, 1),
        "authority_pem": authority.certificate_pem,
    }
    for wrong in (
        {"certificate_pem": authority.certify(other.public_key, now=NOW)},
        {"grant": authority.grant(other.public_key, "n", ROLES, 1)},
        {"authority_pem": Authority.create().certificate_pem},
        {"certificate_pem": "nonsense"},
    ):
        with pytest.raises(Refused):
            Credentials.joined(identity, **{**parts, **wrong})  # type: ignore[arg-type]
    Credentials.joined(identity, **parts).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(Corrupted, match=r"credentials\.json"):
        Credentials.load(tmp_path, other)
    (tmp_path / "credentials.json").write_bytes(b"{")
    with pytest.raises(Corrupted, match=r"credentials\.json"):
        Credentials.load(tmp_path, identity)
    with pytest.raises(NotFound):
        Credentials.load(tmp_path / "none", identity)


def forged(authority: Authority, names: list[x509.GeneralName]) -> bytes:
    """A certificate with the authority's true signature over names of our choice."""
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(Ed25519PrivateKey.generate().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(authority._key, None).public_bytes(Encoding.DER)


def test_a_certificate_that_does_not_name_exactly_its_own_node_is_refused() -> None:
    authority = Authority.create()
    uri = x509.UniformResourceIdentifier(f"spiffe://{authority.hive_id}/node/{Identity.create().node_id}")
    cases = {
        "key is that of": [uri],
        "exactly one": [uri, uri],
        "exactly one node URI": [x509.DNSName("node")],
        "another hive": [x509.UniformResourceIdentifier("https://elsewhere")],
        "malformed": [],
    }
    for reason, names in cases.items():
        with pytest.raises(Refused, match=reason):
            peer_id(forged(authority, names), authority.hive_id)
    with pytest.raises(Refused, match="malformed"):
        peer_id(b"\x30\x00", authority.hive_id)
    good = der(authority.certify(Identity.create().public_key, now=NOW))
    with pytest.raises(Refused, match="another hive"):
        peer_id(good, Authority.create().hive_id)
