"""The hive's authority: the key that makes certificates (who may connect) and grants (who may do what)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hivenode.errors import Conflict, InvalidInput, NotFound, Refused
from hivenode.spec.values import HiveId, Name, NodeId, Role
from hivenode.trust.identity import id_of, read_private_key, verify
from hivenode.trust.sealing import read_sealed, write_sealed

CERTIFICATE_LIFETIME = timedelta(days=30)
"""Unless the settings say otherwise."""
BACKDATE = timedelta(days=1)
"""A leaf is valid from a day before it was made: a machine whose clock is slow can still join."""

# Fixed dates make the authority's certificate a function of its key alone, and no wrong clock can reject it.
# 9999-12-31 23:59:59 is "no well-defined expiration date" in RFC 5280, 4.1.2.5.
_CA_FROM = datetime(2000, 1, 1, tzinfo=UTC)
_CA_UNTIL = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_GRANT_CONTEXT = b"hivenode grant 1\0"
_SEAL_BYTES = 4096


class Grant(msgspec.Struct, frozen=True):
    """What the authority says of a node. A higher `serial` replaces a lower one. One without roles revokes."""

    hive: HiveId
    node: NodeId
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    name: Name
    roles: Annotated[tuple[Role, ...], msgspec.Meta(max_length=16)]
    serial: int
    through: int = 0
    """Of a revoked node: the number of its last event that counts. The same for everyone, or their views would differ
    for ever by what had reached whom."""
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    """Of a revoked node: why."""

    @property
    def revokes(self) -> bool:
        return not self.roles


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    grant: Annotated[bytes, msgspec.Meta(max_length=_SEAL_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


_encode = msgspec.msgpack.Encoder().encode
_decode_grant = msgspec.msgpack.Decoder(Grant).decode
_decode_signed = msgspec.msgpack.Decoder(_Signed).decode


@lru_cache(maxsize=4096)  # each part of a node that folds the same event opens the grant in it, all when folded anew
def open_grant(data: bytes, authority_key: bytes) -> Grant:
    """Decode and check a grant.

    Args:
        authority_key: the authority's raw public key, from which the hive's id follows.

    Raises:
        Refused: malformed, not signed by this authority, for another hive, or for another node's key.
    """
    fix = "Invite that node to this hive again."
    try:
        if len(data) > _SEAL_BYTES:
            raise msgspec.ValidationError(f"it is {len(data)} bytes long")
        signed = _decode_signed(data)
        if not verify(authority_key, signed.signature, _GRANT_CONTEXT + signed.grant):
            raise Refused("A grant is not signed by this hive's authority.", fix=fix)
        grant = _decode_grant(signed.grant)
    except msgspec.MsgspecError as error:
        raise Refused(f"A grant is malformed: {error}.", fix=fix) from error
    if grant.hive != id_of(authority_key):
        raise Refused(f"The grant of node {grant.node} is for another hive, {grant.hive}.", fix=fix)
    if grant.node != id_of(grant.public_key):
        raise Refused(f"The grant of node {grant.node} names a key that is not that node's.", fix=fix)
    return grant


class Authority:
    """A hive's certificate authority (X.509 v3, Ed25519, profile of RFC 5280).

    Attributes:
        hive_id: `id_of(public_key)`.
        public_key: 32 raw bytes.
        certificate_pem: self-signed; the same for the same key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.hive_id: str = id_of(self.public_key)
        self._name = _common_name(f"hive {self.hive_id}")
        self.certificate_pem: str = self._self_signed()

    @classmethod
    def create(cls) -> Authority:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Authority:
        """The same authority for the same seed (any length): for simulation and tests."""
        return cls(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"hivenode authority\0" + seed).digest()))

    @classmethod
    def load(cls, directory: Path, hive_id: str | None = None) -> Authority:
        """The authority kept in `directory`; `hive_id` says which, where a node has founded several hives.

        Raises:
            NotFound: no authority (of that hive) is kept there.
            Conflict: there are several and `hive_id` was not given.
            Refused: others can read the key.
            Corrupted: the key cannot be read.
        """
        found = [_key_file(directory, hive_id)] if hive_id else sorted(directory.glob("authority-*.key"))
        if not found or not found[0].exists():
            raise NotFound(
                f"No authority key is kept in {directory}.",
                fix="Use the node that founded the hive, or restore its backup.",
            )
        if len(found) > 1:
            raise Conflict(f"{directory} holds the keys of {len(found)} hives.", fix="Say which hive is meant.")
        return cls(read_private_key(read_sealed(found[0]), found[0]))

    def save(self, directory: Path) -> None:
        """Keep the key in `directory` (mode 0600) under the hive's id: never over another hive's."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_sealed(_key_file(directory, self.hive_id), pem)

    def private_bytes(self) -> bytes:
        """The key itself, 32 raw bytes: for a member that is to keep a copy, and for nobody else."""
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    @classmethod
    def from_private_bytes(cls, key: bytes) -> Authority:
        """What `private_bytes` gave. Raises Refused if that is no key."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(key))
        except ValueError as error:
            raise Refused(f"This is no authority's key: {error}.", fix="Update hivenode on both machines.") from error

    @staticmethod
    def discard(directory: Path, hive_id: str) -> None:
        """Keep the key no longer."""
        _key_file(directory, hive_id).unlink(missing_ok=True)

    def certify(self, public_key: bytes, *, now: datetime, lifetime: timedelta = CERTIFICATE_LIFETIME) -> str:
        """A node's certificate, PEM, with exactly one name: the URI `spiffe://<hive>/node/<node>`.

        Args:
            public_key: the node's raw Ed25519 key; nothing else is taken from what the node says of itself.
            now: aware datetime; the certificate is valid from `BACKDATE` before it.
            lifetime: how long after `now` it is valid.

        Raises:
            InvalidInput: `public_key` is not an Ed25519 key.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(public_key)
        except ValueError as error:
            raise InvalidInput(
                f"The public key to certify is not Ed25519: {error}.", fix="Send 32 raw bytes."
            ) from error
        node = id_of(public_key)
        begin, end = (now - BACKDATE).replace(microsecond=0), (now + lifetime).replace(microsecond=0)
        # The serial number follows from what is certified: unique enough, and a run repeats byte for byte.
        seed = public_key + begin.isoformat().encode() + end.isoformat().encode()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_common_name(node))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(_serial(seed))
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signature=True, authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(node_uri(self.hive_id, node))]),
                critical=False,
            )
            .sign(self._key, algorithm=None)
        )
        return certificate.public_bytes(Encoding.PEM).decode()

    def grant(
        self,
        public_key: bytes,
        name: str,
        roles: tuple[Role, ...],
        serial: int,
        *,
        through: int = 0,
        reason: str = "",
    ) -> bytes:
        """A signed `Grant`, for `open_grant`.

        Args:
            name: the node's name as people know it, at most 64 characters.
            through, reason: of a revoked node, at most 500 characters; see `Grant`.
        """
        if len(name) > 64:
            raise InvalidInput(
                f"The node name '{name[:20]}...' is longer than 64 characters.", fix="Choose a shorter one."
            )
        grant = Grant(self.hive_id, id_of(public_key), public_key, name, tuple(roles), serial, through, reason[:500])
        encoded = _encode(grant)
        return _encode(_Signed(encoded, self._key.sign(_GRANT_CONTEXT + encoded)))

    def _self_signed(self) -> str:
        public = self._key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(_serial(self.public_key))
            .not_valid_before(_CA_FROM)
            .not_valid_after(_CA_UNTIL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signature=False, authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, algorithm=None)
        )
        return certificate.public_bytes(Encoding.PEM).decode()


def node_uri(hive_id: str, node_id: str) -> str:
    """The one name in a node's certificate."""
    return f"spiffe://{hive_id}/node/{node_id}"


def _key_file(directory: Path, hive_id: str) -> Path:
    return directory / f"authority-{hive_id}.key"


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _serial(seed: bytes) -> int:
    return int.from_bytes(hashlib.sha256(seed).digest()[:19], "big") | 1


def _usage(*, signature: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
