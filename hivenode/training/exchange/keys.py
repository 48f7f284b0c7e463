"""Ephemeral keys of workers, and TLS that trusts exactly the certificates it was given.

A worker makes a key when it starts and shows its certificate to its own daemon, which passes it on over the nodes'
authenticated links. Nobody else's word is asked: no authority, no names, no dates. A certificate is trusted when it
is, byte for byte, one of those handed in.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509

SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""The fastest first, where the processor knows AES."""


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """A P-256 key and its self-signed certificate, for one worker process and one attempt.

    Attributes:
        certificate: PEM.
        private: never leaves the process.
    """

    certificate: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)

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
        return cls(certificate.public_bytes(Encoding.PEM).decode(), key)

    def context(self, trusted: Sequence[str]) -> SSL.Context:
        """For connections to holders of one of these certificates (PEM), and nobody else. Raises ValueError."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_tls13_ciphersuites(SUITES)
        context.clear_mode(Binding.lib.SSL_MODE_ENABLE_PARTIAL_WRITE)  # a whole window is encrypted at once
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        store = context.get_cert_store()
        assert store is not None
        for certificate in trusted:
            store.add_cert(X509.from_cryptography(_read(certificate)))
        context.use_certificate(_read(self.certificate))
        context.use_privatekey(self.private)
        return context


def der(certificate: str) -> bytes:
    """The DER bytes of a PEM certificate. Raises ValueError."""
    return _read(certificate).public_bytes(Encoding.DER)


def _read(certificate: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.encode())
