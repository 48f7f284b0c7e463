"""Real TLS handshakes over loopback sockets between nodes with all kinds of papers."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from hivenode.errors import Refused
from hivenode.net.dialing import verifying
from hivenode.trust.authority import Authority
from hivenode.trust.certificates import peer_id, read_certificate
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity


def member(authority: Authority, *, now: datetime | None = None, days: float = 1) -> Credentials:
    identity = Identity.create()
    now = now or datetime.now(UTC)
    return Credentials.joined(
        identity,
        certificate_pem=authority.certify(identity.public_key, now=now, lifetime=timedelta(days=days)),
        grant=authority.grant(identity.public_key, "n", (), 1),
        authority_pem=authority.certificate_pem,
    )


class Server:
    """Answers each connection with the node it sees at the other end."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("ssl_object").getpeercert(True)
        try:
            seen = peer_id(certificate, self.credentials.hive_id) if certificate else "nobody"
        except Refused as error:
            seen = error.sentence
        writer.write(seen.encode() + b"\n")
        writer.close()


@asynccontextmanager
async def listening(credentials: Credentials) -> AsyncIterator[Server]:
    server = Server(credentials)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=credentials.server_context())
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


async def dial(port: int, context: ssl.SSLContext, expected: str | None = None) -> tuple[bytes, str, str]:
    """The server's certificate, the TLS version, and whom the server saw."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=expected)
    try:
        tls = writer.get_extra_info("ssl_object")
        answer = (await reader.readline()).decode().strip()
        if not answer:
            raise ConnectionResetError("the server hung up")
        return tls.getpeercert(True), tls.version(), answer
    finally:
        writer.close()


async def test_members_see_each_others_ids() -> None:
    authority = Authority.create()
    here, there = member(authority), member(authority)
    async with listening(there) as server:
        certificate, version, seen = await dial(server.port, here.client_context())
    assert version == "TLSv1.3"
    assert peer_id(certificate, authority.hive_id) == there.identity.node_id
    assert seen == here.identity.node_id


async def test_the_founder_and_a_member_accept_each_other() -> None:
    founder = Credentials.found(Identity.create(), "founder", now=datetime.now(UTC))
    assert founder.authority is not None
    async with listening(founder) as server:
        _, _, seen = await dial(server.port, (other := member(founder.authority)).client_context())
    assert seen == other.identity.node_id


async def test_a_server_of_another_hive_is_refused_by_the_dialler() -> None:
    async with listening(member(Authority.create())) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            await dial(server.port, member(Authority.create()).client_context())


async def test_a_client_of_another_hive_is_refused_by_the_server() -> None:
    authority = Authority.create()
    stranger = member(Authority.create())
    context = stranger.client_context()
    context.load_verify_locations(cadata=authority.certificate_pem)  # it has no scruples about the server
    async with listening(member(authority)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(server.port, context)


async def test_a_certificate_for_another_key_cannot_be_shown() -> None:
    """Papers without the private key are worth nothing."""
    authority = Authority.create()
    stolen = replace(member(authority), identity=Identity.create())
    with pytest.raises(ssl.SSLError):
        stolen.client_context()


async def test_the_dialler_notices_that_another_member_answers() -> None:
    authority = Authority.create()
    wanted, answering = member(authority), member(authority)
    async with listening(answering) as server:
        certificate, _, _ = await dial(server.port, member(authority).client_context())
    assert peer_id(certificate, authority.hive_id) != wanted.identity.node_id


async def test_an_expired_certificate_is_told_from_a_good_one_on_either_side() -> None:
    """TLS lets it through, so that its owner can be told; the dialler refuses it before it sends anything, the server
    before it answers anything else."""
    authority = Authority.create()
    expired = member(authority, now=datetime.now(UTC) - timedelta(days=3), days=1)
    good = member(authority)
    async with listening(expired) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired 2 days ago"):
            await dial(server.port, verifying(good.client_context(), authority.hive_id, time.time), authority.hive_id)
    async with listening(good) as server:
        certificate, _, seen = await dial(server.port, expired.client_context())
    assert seen == expired.identity.node_id
    assert not read_certificate(certificate, authority.hive_id).trouble(time.time())
    assert "expired" in expired.paper.trouble(time.time())


async def test_a_machine_whose_clock_is_an_hour_slow_is_still_accepted() -> None:
    authority = Authority.create()
    ahead = member(authority, now=datetime.now(UTC) + timedelta(hours=1))
    async with listening(ahead) as server:
        _, _, seen = await dial(server.port, member(authority).client_context())
    assert seen != "nobody"


async def test_a_machine_without_a_certificate_gets_through_as_nobody() -> None:
    """It has to, in order to join; what else it may do is for the routes to decide."""
    authority = Authority.create()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority.certificate_pem)
    async with listening(member(authority)) as server:
        _, _, seen = await dial(server.port, context)
    assert seen == "nobody"


async def test_tls_1_2_is_refused() -> None:
    authority = Authority.create()
    context = member(authority).client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(member(authority)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(server.port, context)


async def test_a_member_cannot_act_as_an_authority() -> None:
    """A certificate made with a member's key, in every detail as the authority would, is not accepted."""
    authority = Authority.create()
    insider, identity = member(authority), Identity.create()
    own = Authority(insider.identity._key)
    own._name = x509.load_pem_x509_certificate(insider.certificate_pem.encode()).subject
    own.hive_id = authority.hive_id
    leaf = own.certify(identity.public_key, now=datetime.now(UTC))
    forged = replace(insider, identity=identity, certificate_pem=leaf + insider.certificate_pem)
    async with listening(forged) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA certificate"):
            await dial(server.port, member(authority).client_context())
    async with listening(member(authority)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await dial(server.port, forged.client_context())
