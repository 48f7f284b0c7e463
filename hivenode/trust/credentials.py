"""What a node shows to others of its hive, and how it checks what they show."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hivenode.errors import Corrupted, NotFound, Refused
from hivenode.spec.values import Role
from hivenode.trust.authority import CERTIFICATE_LIFETIME, Authority, open_grant
from hivenode.trust.certificates import Paper, day, peer_id, public_key_of, read_certificate, read_signed
from hivenode.trust.identity import Identity, id_of
from hivenode.trust.sealing import read_sealed, write_sealed

_FILE = "credentials.json"
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for."""


class _Stored(msgspec.Struct, frozen=True):
    certificate: str
    authority: str
    grant: bytes


@dataclass(frozen=True)
class Credentials:
    """A node's membership of one hive.

    Args:
        authority_pem: the authority's certificate.
        authority_key: its raw public key; `hive_id` is its hash.
        certificate_pem: this node's certificate.
        grant: this node's signed grant, for `open_grant`.
        authority: present where this node keeps the authority's private key.
    """

    identity: Identity
    hive_id: str
    authority_pem: str
    authority_key: bytes
    certificate_pem: str
    grant: bytes
    authority: Authority | None

    @classmethod
    def found(
        cls,
        identity: Identity,
        name: str,
        *,
        now: datetime,
        lifetime: timedelta = CERTIFICATE_LIFETIME,
        authority: Authority | None = None,
    ) -> Credentials:
        """Found a new hive of one, with all roles.

        Args:
            lifetime: of the first certificate.
            authority: instead of a fresh one (simulation and tests).
        """
        authority = authority or Authority.create()
        return cls(
            identity=identity,
            hive_id=authority.hive_id,
            authority_pem=authority.certificate_pem,
            authority_key=authority.public_key,
            certificate_pem=authority.certify(identity.public_key, now=now, lifetime=lifetime),
            grant=authority.grant(identity.public_key, name, tuple(Role), serial=int(now.timestamp() * 1000)),
            authority=authority,
        )

    @classmethod
    def joined(cls, identity: Identity, *, certificate_pem: str, grant: bytes, authority_pem: str) -> Credentials:
        """Credentials from what an authority answered.

        Raises:
            Refused: the parts do not belong together, or not to this identity.
        """
        authority_key = public_key_of(_parse(authority_pem.encode()))
        hive_id = id_of(authority_key)
        node = peer_id(_parse(certificate_pem.encode()).public_bytes(Encoding.DER), hive_id)
        granted = open_grant(grant, authority_key)
        if node != identity.node_id or granted.node != identity.node_id:
            raise Refused(
                f"The certificate or grant is for node {node}, and this node is {identity.node_id}.",
                fix="Join the hive again with an invite.",
            )
        return cls(identity, hive_id, authority_pem, authority_key, certificate_pem, grant, None)

    @classmethod
    def load(cls, directory: Path, identity: Identity) -> Credentials:
        """What `save` kept.

        Raises:
            NotFound: this node has not founded or joined a hive yet.
            Corrupted: the file cannot be read, or does not belong to `identity`.
            Refused: others can read a key file.
        """
        path = directory / _FILE
        try:
            data = read_sealed(path)
        except NotFound:
            raise NotFound(
                f"There are no credentials in {directory}.", fix="Found a hive, or join one with an invite."
            ) from None
        try:
            stored = msgspec.json.decode(data, type=_Stored)
            credentials = cls.joined(
                identity,
                certificate_pem=stored.certificate,
                grant=stored.grant,
                authority_pem=stored.authority,
            )
        except (msgspec.MsgspecError, Refused) as error:
            reason = error.sentence if isinstance(error, Refused) else f"{error}."
            raise Corrupted(
                f"{path} is not valid: {reason}",
                fix="Restore it from a backup, or move it away and join the hive again.",
            ) from error
        try:
            authority = Authority.load(directory, credentials.hive_id)
        except NotFound:
            return credentials
        return replace(credentials, authority=authority)

    def save(self, directory: Path) -> None:
        """Keep them in `directory`. The switch from one hive to another is one rename: all or nothing."""
        if self.authority is not None:
            self.authority.save(directory)
        stored = _Stored(self.certificate_pem, self.authority_pem, self.grant)
        write_sealed(directory / _FILE, msgspec.json.encode(stored))

    @property
    def paper(self) -> Paper:
        """What this node's certificate says."""
        return read_certificate(self.certificate_der, self.hive_id)

    @property
    def certificate_der(self) -> bytes:
        return _parse(self.certificate_pem.encode()).public_bytes(Encoding.DER)

    def renewed(self, certificate_pem: str) -> Credentials:
        """The same with a new certificate.

        Raises:
            Refused: it is not for this node, not of this hive's authority, or older than the one there is.
        """
        paper = read_signed(
            _parse(certificate_pem.encode()).public_bytes(Encoding.DER), self.hive_id, self.authority_pem
        )
        if paper.node != self.identity.node_id or paper.begins < self.paper.begins:
            raise Refused(
                f"The new certificate is for node {paper.node}, from {day(paper.begins)}: not newer than ours.",
                fix="Look at the clock of the node that signed it.",
            )
        return replace(self, certificate_pem=certificate_pem)

    def server_context(self) -> ssl.SSLContext:
        """For listening: TLS 1.3, own certificate. A client's certificate is optional (a node that wants to
        join has none) but must be of this hive; who needs it must look whether it is there, and whether it is
        still valid: that is not checked here, or a node whose certificate has expired could never be told so."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        # A resumed session would skip the certificate check, and outlive the certificate.
        context.num_tickets = 0
        return self._prepared(context)

    def client_context(self) -> ssl.SSLContext:
        """For dialling: TLS 1.3, own certificate, the server's must be of this hive. Before sending anything,
        compare its `Paper` with the node that was dialled and with the clock: neither is checked here."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        return self._prepared(context)

    def _prepared(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(_NO_CHECK_TIME)
        context.load_verify_locations(cadata=self.authority_pem)
        with _as_file(self.certificate_pem.encode() + self.identity.private_pem()) as chain:
            context.load_cert_chain(chain)
        return context


def _parse(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise Refused(f"A certificate is malformed: {error}.", fix="Join the hive again with an invite.") from error


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path with these bytes, for OpenSSL, which takes keys from files only. In memory where possible."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("credentials")
        try:
            os.write(handle, data)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        with tempfile.NamedTemporaryFile() as file:  # mode 0600, removed at the end
            file.write(data)
            file.flush()
            yield file.name
