"""Joining a hive with an invite.

The joiner fetches the authority's certificate from whoever answers, and compares the hash of its key with the one in
the invite. Then it connects again, verified against that certificate, and only then sends the invite's secret. The
pattern is that of kubeadm and Docker Swarm join tokens.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hivenode.errors import Conflict, HiveError, InvalidInput, Refused, Unavailable, from_dict
from hivenode.logs import get_logger
from hivenode.net.addresses import url_of
from hivenode.net.dialing import X509_EXPIRED, X509_NOT_YET_VALID, explain, verifying
from hivenode.net.door import read_bounded
from hivenode.net.messages import Address
from hivenode.net.transport import Refusal, Refusing
from hivenode.spec.values import HiveId, Name
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity, id_of, verify
from hivenode.trust.invites import Invite

log = get_logger("joining")

AUTHORITY_PATH = "/join/authority"
JOIN_PATH = "/join"
MAX_REQUEST = 4 * 1024
MAX_REPLY = 64 * 1024
ADDRESS_SECONDS = 10.0
"""For each step at one address."""
ADMITTING = 8
"""Requests looked at at once."""
PROOF = b"hivenode join 1\0"


class JoinRequest(msgspec.Struct, frozen=True):
    """What a joiner sends. `proof` is its key's signature over all the other fields and the hive's id."""

    hive: HiveId
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    """Of the invite."""
    secret: Annotated[bytes, msgspec.Meta(max_length=64)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    name: Name
    proof: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    rejoins: bool = False
    """It runs in this hive already: that a node with its key is alive there is no wonder."""

    def __repr__(self) -> str:
        return f"JoinRequest(invite={self.id}, name={self.name!r})"


class JoinReply(msgspec.Struct, frozen=True):
    """What it gets: membership, and where to find members."""

    certificate_pem: Annotated[str, msgspec.Meta(max_length=8192)]
    grant: Annotated[bytes, msgspec.Meta(max_length=8192)]
    authority_pem: Annotated[str, msgspec.Meta(max_length=8192)]
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=64)]


def proof_of(hive: str, id: str, secret: bytes, public_key: bytes, name: str) -> bytes:
    """The bytes whose signature proves that the joiner holds the private key."""
    return PROOF + msgspec.msgpack.encode((hive, id, secret, public_key, name))


def join_routes(
    hive_id: str,
    authority_pem: str,
    admit: Callable[[JoinRequest], Awaitable[JoinReply]],
    *,
    body_seconds: float = 5.0,
    on_refused: Callable[[Refusal], None] = lambda refusal: None,
) -> Callable[[web.Application], None]:
    """The server's half, for `PeerTransport(routes=...)`.

    Args:
        admit: redeems the invite; raises a HiveError to refuse. Called only after proof of the key.
        body_seconds: within which a request must have arrived whole.
        on_refused: told of everybody who wanted to join and may not.
    """
    admitting = asyncio.Semaphore(ADMITTING)

    async def authority(request: web.Request) -> web.StreamResponse:
        return web.Response(text=authority_pem, content_type="application/x-pem-file")

    async def join(request: web.Request) -> web.StreamResponse:
        node, name = "", ""
        try:
            body = await _body(request, body_seconds)
            asked = msgspec.msgpack.decode(body, type=JoinRequest)
            signed = proof_of(asked.hive, asked.id, asked.secret, asked.public_key, asked.name)
            if asked.hive != hive_id:
                raise Refused(f"This is hive {hive_id}, not {asked.hive}.", fix="Ask for an invite to this hive.")
            if not verify(asked.public_key, asked.proof, signed):
                raise Refused("The proof of the node's key is wrong.", fix="Update hivenode on the joining machine.")
            node, name = id_of(asked.public_key), asked.name
            async with admitting:
                reply = await admit(asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, TimeoutError) as error:
            log.warning("malformed request to join", address=request.remote, reason=repr(error))
            refusal: HiveError = InvalidInput(
                "The request to join is malformed or incomplete.", fix="Update hivenode on the joining machine."
            )
        except HiveError as error:
            log.warning("request to join refused", address=request.remote, reason=error.sentence)
            refusal = error
            if isinstance(error, Refused | Conflict):
                on_refused(Refusal(node, request.remote or "", Refusing.invite, error.sentence, name))
        else:
            return web.Response(body=msgspec.msgpack.encode(reply), content_type="application/msgpack")
        return web.Response(
            body=msgspec.msgpack.encode(refusal.to_dict()),
            status=refusal.http_status,
            content_type="application/msgpack",
        )

    def add(app: web.Application) -> None:
        app.router.add_get(AUTHORITY_PATH, authority)
        app.router.add_post(JOIN_PATH, join)

    return add


async def join(
    invite: Invite, identity: Identity, name: str, now: datetime, *, rejoins: bool = False
) -> tuple[Credentials, tuple[str, ...]]:
    """Redeem an invite: credentials, and addresses of members to dial.

    Args:
        name: this node's name as people know it.
        rejoins: whether this node runs in that hive already.
        now: aware datetime; named when the clocks of the two machines disagree.

    Raises:
        Unavailable: nobody answers at any address of the invite.
        Refused: only another hive answers, the clocks disagree, or the hive said no (with its reason).
        HiveError: whatever else the hive answered.
    """
    if not invite.addresses:
        raise InvalidInput("The invite names no address.", fix="Ask for a new invite.")
    troubles: list[HiveError] = []
    for address in invite.addresses:
        try:
            async with (
                asyncio.timeout(ADDRESS_SECONDS),
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(force_close=True, use_dns_cache=False),
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
            ):
                return await _Joiner(session, address, invite, identity, name, now, rejoins).join()
        except HiveError as error:
            troubles.append(error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            troubles.append(
                Unavailable(
                    f"The node at {address} cannot be reached: {explain(error)}.",
                    fix="See that it runs, and that its port is open to this machine.",
                )
            )
        log.info("joining failed at one address", address=address, reason=troubles[-1].sentence)
    # What a node of the right hive said matters more than what somebody else said, and that more than silence.
    worst = max(troubles, key=lambda error: (not isinstance(error, _WrongHive), not isinstance(error, Unavailable)))
    raise worst


class _WrongHive(Refused):
    """Whoever answers is not of the invite's hive; code and status are those of Refused."""


class _Joiner:
    """One try at one address."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: str,
        invite: Invite,
        identity: Identity,
        name: str,
        now: datetime,
        rejoins: bool,
    ) -> None:
        self._rejoins = rejoins
        self._session = session
        self._address = address
        self._invite = invite
        self._identity = identity
        self._name = name
        self._now = now

    async def join(self) -> tuple[Credentials, tuple[str, ...]]:
        authority_pem = await self._authority()
        reply = await self._redeem(self._verified(authority_pem))
        credentials = Credentials.joined(
            self._identity,
            certificate_pem=reply.certificate_pem,
            grant=reply.grant,
            authority_pem=reply.authority_pem,
        )
        if credentials.hive_id != self._invite.hive:
            raise self._wrong_hive()
        certificate = x509.load_pem_x509_certificate(reply.certificate_pem.encode())
        if not certificate.not_valid_before_utc <= self._now <= certificate.not_valid_after_utc:
            raise self._wrong_clock()
        return credentials, reply.addresses

    async def _authority(self) -> str:
        """The authority's certificate, from whoever answers, good only if it is the one the invite names."""
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname = False
        anyone.verify_mode = ssl.CERT_NONE
        anyone.minimum_version = ssl.TLSVersion.TLSv1_3
        async with self._session.get(
            url_of(self._address, AUTHORITY_PATH), ssl=anyone, server_hostname=self._invite.hive, allow_redirects=False
        ) as response:
            if response.status != 200:
                raise self._wrong_hive()
            pem = await read_bounded(response.content, MAX_REPLY)
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise self._wrong_hive() from error
        if (
            not isinstance(key, Ed25519PublicKey)
            or id_of(key.public_bytes(Encoding.Raw, PublicFormat.Raw)) != self._invite.hive
        ):
            raise self._wrong_hive()
        # Re-encoded: whatever else stood in the answer must not reach the list of trusted certificates.
        return certificate.public_bytes(Encoding.PEM).decode()

    def _verified(self, authority_pem: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=authority_pem)
        return verifying(context, self._invite.hive)

    async def _redeem(self, context: ssl.SSLContext) -> JoinReply:
        invite, key = self._invite, self._identity.public_key
        proof = self._identity.sign(proof_of(invite.hive, invite.id, invite.secret, key, self._name))
        request = JoinRequest(invite.hive, invite.id, invite.secret, key, self._name, proof, self._rejoins)
        try:
            async with self._session.post(
                url_of(self._address, JOIN_PATH),
                data=msgspec.msgpack.encode(request),
                ssl=context,
                server_hostname=invite.hive,
                allow_redirects=False,
            ) as response:
                body = await read_bounded(response.content, MAX_REPLY)
        except aiohttp.ClientConnectorCertificateError as error:
            code = getattr(error.certificate_error, "verify_code", 0)
            if code in (X509_NOT_YET_VALID, X509_EXPIRED):
                raise self._wrong_clock() from error
            raise self._wrong_hive() from error
        try:
            if response.status == 200:
                return msgspec.msgpack.decode(body, type=JoinReply)
            refusal = msgspec.msgpack.decode(body, type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(
                f"The node at {self._address} gave an answer that makes no sense (HTTP status {response.status}).",
                fix="Update hivenode on both machines.",
            ) from error
        raise from_dict(refusal)

    def _wrong_hive(self) -> _WrongHive:
        return _WrongHive(
            f"Whoever answers at {self._address} is not of the invite's hive {self._invite.hive}.",
            fix="Ask for a new invite. If the address is right, somebody may be intercepting the connection.",
        )

    def _wrong_clock(self) -> Refused:
        return Refused(
            f"By this machine's clock ({self._now:%Y-%m-%d %H:%M %Z}) the certificates of the hive are not valid now.",
            fix="Set the clocks of both machines (timedatectl set-ntp true), then join again.",
        )


async def _body(request: web.Request, seconds: float) -> bytes:
    """A whole request, in time and no longer than MAX_REQUEST."""
    data = bytearray()
    async with asyncio.timeout(seconds):
        async for piece in request.content.iter_any():
            data += piece
            if len(data) > MAX_REQUEST:
                raise msgspec.ValidationError("too long")
    return bytes(data)
