"""Reading a node's certificate: whose it is, for how long it is good, and when to ask for the next. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hivenode.errors import Refused
from hivenode.trust.authority import BACKDATE, node_uri
from hivenode.trust.identity import id_of

RENEW_BETWEEN = (0.5, 0.8)
"""Of a certificate's life: when to renew it. Drawn, so that machines that joined together do not ask together."""
SKEW_WORTH_NAMING = 60.0
"""Seconds by which two clocks must differ to be named as the cause of a refusal."""


@dataclass(frozen=True)
class Paper:
    """What a node's certificate says. Times are seconds since 1970."""

    node: str
    begins: float
    ends: float

    @property
    def issued(self) -> float:
        """When it was made; see `authority.BACKDATE`."""
        return min(self.begins + BACKDATE.total_seconds(), self.ends)

    def renewal_due(self, rng: random.Random) -> float:
        """When to renew it."""
        return self.issued + (self.ends - self.issued) * rng.uniform(*RENEW_BETWEEN)

    def trouble(self, now: float, skew: float | None = None, clock: str = "this machine's clock") -> str:
        """Why it is not good at `now`, as the end of a sentence; empty when it is.

        Args:
            skew: seconds by which the clock of the node that shows it is ahead of ours, if that is known.
            clock: whose `now` is.
        """
        if self.begins <= now < self.ends:
            return ""
        whose = f"the certificate of node {self.node[:8]}"
        if now >= self.ends:
            found = f"{whose} expired {span(now - self.ends)} ago by {clock}"
            untold = "it was not renewed, or this clock is ahead"
        else:
            found = f"{whose} is not valid for another {span(self.begins - now)} by {clock}"
            untold = "this clock is behind, or that of whoever signed it was ahead"
        if skew is None:
            return f"{found}: {untold}"
        if abs(skew) < SKEW_WORTH_NAMING:
            return found
        return f"{found}; its clock is {gap(skew)} ours"


def read_certificate(certificate_der: bytes, hive_id: str) -> Paper:
    """What a (chain-verified) certificate says.

    Raises:
        Refused: it names another hive, not exactly one node, or a node whose id is not the hash of its key.
    """
    fix = "Invite that node to this hive again."
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise Refused(f"The peer's certificate is malformed: {error}.", fix=fix) from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise Refused("The peer's certificate does not carry exactly one node URI.", fix=fix)
    node = id_of(public_key_of(certificate))
    uri = names[0].value
    if uri != node_uri(hive_id, node):
        if not uri.startswith(node_uri(hive_id, "")):
            raise Refused(f"The peer's certificate is of another hive ({uri}).", fix=fix)
        raise Refused(f"The peer's certificate names {uri} but its key is that of node {node}.", fix=fix)
    return Paper(node, certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def peer_id(certificate_der: bytes, hive_id: str) -> str:
    """The node a (chain-verified) certificate belongs to. Raises Refused, as `read_certificate`."""
    return read_certificate(certificate_der, hive_id).node


def read_signed(certificate_der: bytes, hive_id: str, authority_pem: str) -> Paper:
    """What a certificate says that did not come in a TLS handshake, once its signature is found to be the
    authority's.

    Raises:
        Refused: it is not, or as `read_certificate`.
    """
    paper = read_certificate(certificate_der, hive_id)
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem.encode()))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Refused(
            f"A certificate for node {paper.node} is not signed by this hive's authority.",
            fix="Invite that node to this hive again.",
        ) from error
    return paper


def public_key_of(certificate: x509.Certificate) -> bytes:
    """The raw Ed25519 key in a certificate. Raises Refused."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(f"A certificate's key cannot be read: {error}.", fix="Invite that node again.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Refused("A certificate's key is not Ed25519.", fix="Invite that node to this hive again.")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def span(seconds: float) -> str:
    """A length of time in words, in the largest unit of which there are at least two: "61 minutes"."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"


def gap(skew: float) -> str:
    """How far a clock is off, for "its clock is {} ours": "61 minutes ahead of"."""
    return f"{span(abs(skew))} {'ahead of' if skew > 0 else 'behind'}"


def day(at: float) -> str:
    """A moment for people, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
