"""Joining with an invite: who gets in, who does not, and that the secret goes to nobody else."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from hivenode.errors import HiveError, InvalidInput, Refused, Unavailable
from hivenode.net.joining import JoinReply, JoinRequest, join, join_routes, proof_of
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority, open_grant
from hivenode.trust.identity import Identity
from hivenode.trust.invites import Invite
from tests.net.nodes import AUTHORITY, PATIENCE, STRANGERS, credentials_of, linked, node
from tests.security.hostile import anonymous, certificate, http, key_of

SECRET = b"sixteen bytes ok"
NOW = datetime.now(UTC)


class Gatekeeper:
    """The node that admits: remembers what it was asked."""

    def __init__(self, authority: Authority = AUTHORITY, now: datetime = NOW) -> None:
        self.asked: list[JoinRequest] = []
        self._authority = authority
        self._now = now
        self.error: HiveError | None = None

    async def admit(self, request: JoinRequest) -> JoinReply:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        if request.secret != SECRET:
            raise Refused("The invite is not known, or its secret is wrong.", fix="Ask for a new one.")
        return JoinReply(
            certificate_pem=self._authority.certify(request.public_key, now=self._now, lifetime=timedelta(days=1)),
            grant=self._authority.grant(request.public_key, request.name, (Role.worker,), serial=1),
            authority_pem=self._authority.certificate_pem,
            addresses=("10.0.0.1:7700", "10.0.0.2:7700"),
        )

    def routes(self) -> Callable[[web.Application], None]:
        return join_routes(self._authority.hive_id, self._authority.certificate_pem, self.admit, body_seconds=0.5)


def invite(*addresses: str, hive: str = AUTHORITY.hive_id, secret: bytes = SECRET) -> Invite:
    return Invite(hive=hive, addresses=addresses, id="inv1", secret=secret)


NEWCOMER = Identity.from_seed(b"newcomer")


async def test_a_newcomer_joins_and_links_with_what_it_got(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    async with node(1, tmp_path, routes=keeper.routes()) as a:
        credentials, addresses = await join(invite(a.address), NEWCOMER, "newcomer", NOW)
        assert addresses == ("10.0.0.1:7700", "10.0.0.2:7700")
        assert credentials.hive_id == AUTHORITY.hive_id
        grant = open_grant(credentials.grant, credentials.authority_key)
        assert (grant.node, grant.name, grant.roles) == (NEWCOMER.node_id, "newcomer", (Role.worker,))
        async with node(99, tmp_path, credentials=credentials) as b:
            await linked(b, a)


async def test_an_address_where_nobody_answers_is_passed_over(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    async with node(2, tmp_path) as gone:
        dead = gone.address
    async with node(1, tmp_path, routes=keeper.routes()) as a:
        credentials, _ = await join(invite("nonsense", dead, a.address), NEWCOMER, "newcomer", NOW)
        assert credentials.identity is NEWCOMER
    with pytest.raises(Unavailable, match=f"{dead} cannot be reached.*nothing listens"):
        await join(invite(dead), NEWCOMER, "newcomer", NOW)
    with pytest.raises(InvalidInput, match="no address"):
        await join(invite(), NEWCOMER, "newcomer", NOW)


async def test_the_hives_reason_for_a_refusal_is_passed_on(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    async with node(1, tmp_path, routes=keeper.routes()) as a:
        with pytest.raises(Refused, match="its secret is wrong") as caught:
            await join(invite(a.address, secret=b"another secret.."), NEWCOMER, "newcomer", NOW)
        assert caught.value.fix == "Ask for a new one."


@asynccontextmanager
async def impostor(context: ssl.SSLContext, authority_pem: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that plays the join protocol's first half with any certificate, and keeps every body it is sent."""
    heard: list[bytes] = []

    async def authority(request: web.Request) -> web.Response:
        return web.Response(text=authority_pem)

    async def anything(request: web.Request) -> web.Response:
        heard.append(await request.read())
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/join/authority", authority)
    app.router.add_route("*", "/{rest:.*}", anything)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", heard
    finally:
        await runner.cleanup()


async def test_a_man_in_the_middle_with_an_authority_of_his_own_gets_nothing() -> None:
    context = credentials_of(7, STRANGERS).server_context()
    async with impostor(context, STRANGERS.certificate_pem) as (address, heard):
        with pytest.raises(Refused, match="not of the invite's hive") as caught:
            await join(invite(address), NEWCOMER, "newcomer", NOW)
        assert "intercepting" in caught.value.fix
        assert heard == []


async def test_a_man_in_the_middle_who_shows_the_true_authority_gets_nothing() -> None:
    # His own authority issues a certificate that claims the invite's hive, and he appends that authority to the true
    # one, in the hope that both will be trusted.
    mallory = credentials_of(7, STRANGERS)
    claim = f"spiffe://{AUTHORITY.hive_id}/node/{mallory.identity.node_id}"
    forged = dataclasses.replace(mallory, certificate_pem=certificate(key_of(mallory), [claim], authority=STRANGERS))
    for pem in (AUTHORITY.certificate_pem, AUTHORITY.certificate_pem + STRANGERS.certificate_pem):
        async with impostor(forged.server_context(), pem) as (address, heard):
            with pytest.raises(Refused, match="not of the invite's hive"):
                await join(invite(address), NEWCOMER, "newcomer", NOW)
            assert heard == []


@pytest.mark.parametrize("body", ["", "no certificate", "x" * 1_000_000])
async def test_whatever_else_answers_is_named_and_gets_nothing(body: str) -> None:
    async with impostor(credentials_of(7, STRANGERS).server_context(), body) as (address, heard):
        with pytest.raises((Refused, Unavailable)):
            await join(invite(address), NEWCOMER, "newcomer", NOW)
        assert heard == []


async def test_what_the_right_hive_said_matters_more_than_what_others_said(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    keeper.error = Refused("Invite inv1 is used up.", fix="Ask for a new one.")
    context = credentials_of(7, STRANGERS).server_context()
    async with node(1, tmp_path, routes=keeper.routes()) as a, impostor(context, STRANGERS.certificate_pem) as (bad, _):
        for addresses in ((bad, a.address, "127.0.0.1:1"), ("127.0.0.1:1", a.address, bad)):
            with pytest.raises(Refused, match="used up"):
                await join(invite(*addresses), NEWCOMER, "newcomer", NOW)


async def test_clocks_that_disagree_are_named(tmp_path: Path) -> None:
    ahead = NOW + timedelta(days=30)
    async with node(1, tmp_path, routes=Gatekeeper(now=ahead).routes()) as a:
        with pytest.raises(Refused, match="By this machine's clock") as caught:
            await join(invite(a.address), NEWCOMER, "newcomer", NOW)
        assert "clocks" in caught.value.fix
    future = credentials_of(1, now=ahead)
    async with node(1, tmp_path, credentials=future, routes=Gatekeeper().routes()) as a:
        with pytest.raises(Refused, match="By this machine's clock"):
            await join(invite(a.address), NEWCOMER, "newcomer", NOW)


def request(**changes: object) -> bytes:
    hive = AUTHORITY.hive_id
    signed = proof_of(hive, "inv1", SECRET, NEWCOMER.public_key, "newcomer")
    proper = JoinRequest(hive, "inv1", SECRET, NEWCOMER.public_key, "newcomer", NEWCOMER.sign(signed))
    return msgspec.msgpack.encode(msgspec.structs.replace(proper, **changes))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (request(name="another name"), 403),
        (request(public_key=Identity.from_seed(b"somebody").public_key), 403),
        (request(hive=STRANGERS.hive_id), 403),
        (request(proof=bytes(64)), 403),
        (b"\x90" * 3000, 400),
        (bytes(1_000_000), 400),
        (b"", 400),
    ],
)
async def test_a_request_without_proof_of_the_key_never_reaches_the_book(
    tmp_path: Path, body: bytes, status: int
) -> None:
    keeper = Gatekeeper()
    async with node(1, tmp_path, routes=keeper.routes()) as a, http(anonymous()) as session:
        url = f"https://{a.address}/join"
        try:
            async with session.post(url, data=body) as response:
                assert response.status == status
        except aiohttp.ClientError:
            assert len(body) > 100_000  # cut off while it was still sending
        assert keeper.asked == []
        async with session.post(url, data=request()) as response:
            assert response.status == 200
        assert len(keeper.asked) == 1


async def test_a_request_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    async with node(1, tmp_path, routes=keeper.routes()) as a:
        reader, writer = await asyncio.open_connection("127.0.0.1", a.transport.port, ssl=anonymous())
        writer.write(b"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read(1000)
        assert b" 400 " in answer
        assert keeper.asked == []
        writer.close()


async def test_a_failure_inside_the_hive_is_passed_on_too(tmp_path: Path) -> None:
    keeper = Gatekeeper()
    keeper.error = Unavailable("The disk is away.", fix="Bring it back.")
    async with node(1, tmp_path, routes=keeper.routes()) as a:
        with pytest.raises(Unavailable, match="The disk is away"):
            await join(invite(a.address), NEWCOMER, "newcomer", NOW)


async def test_certificates_of_another_key_are_not_taken(tmp_path: Path) -> None:
    """A gatekeeper that answers with somebody else's membership is found out by the joiner."""

    class Confused(Gatekeeper):
        async def admit(self, request: JoinRequest) -> JoinReply:
            other = Identity.from_seed(b"somebody")
            return await super().admit(msgspec.structs.replace(request, public_key=other.public_key))

    async with node(1, tmp_path, routes=Confused().routes()) as a:
        with pytest.raises(Refused):
            await join(invite(a.address), NEWCOMER, "newcomer", NOW)
