"""Ephemeral keys of workers, and TLS that trusts exactly the certificates it was given.

A worker makes a key when it starts and shows its certificate to its own daemon, which passes it on over the nodes'
authenticated links. Nobody else's word is asked: no authority, no names, no dates. A certificate is trusted when it
is, byte for byte, one of those handed in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """A P-256 key and its self-signed certificate, for one worker process and one attempt.

    Attributes:
        certificate: PEM.
        private: PEM (PKCS #8, unencrypted); never leaves the process.
    """

    certificate: str
    private: bytes = field(repr=False)

    @classmethod
    def create(cls) -> WorkerKey:
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own, so that verification never confuses two trusted certificates.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"worker-{secrets.token_hex(12)}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # It lives as long as the process; a peer's wrong clock must not matter (RFC 5280 4.1.2.5: no end).
            .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM).decode(), private)

    def accepting(self, trusted: Sequence[str]) -> ssl.SSLContext:
        """For a listener: only holders of one of these certificates (PEM) get in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Nothing may follow the handshake in the direction that carries no data: unread bytes there would turn a
        # close into a reset, and a reset destroys what is still under way.
        context.num_tickets = 0
        return self._prepare(context, trusted)

    def dialling(self, trusted: str) -> ssl.SSLContext:
        """For a connection to the holder of this certificate (PEM)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._prepare(context, [trusted])

    def _prepare(self, context: ssl.SSLContext, trusted: Sequence[str]) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata="\n".join(trusted))
        with _readable(self.certificate.encode()) as certificate, _readable(self.private) as private:
            context.load_cert_chain(certificate, private)
        return context


def der(certificate: str) -> bytes:
    """The DER bytes of a PEM certificate. Raises ValueError."""
    return ssl.PEM_cert_to_DER_cert(certificate.strip())


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[str]:
    """`ssl` reads keys from files only; this one is a pipe, which takes so few bytes at once and is never on a disk."""
    reads, writes = os.pipe()
    try:
        try:
            os.write(writes, data)
        finally:
            os.close(writes)
        yield f"/dev/fd/{reads}"
    finally:
        os.close(reads)
