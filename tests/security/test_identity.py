"""Nobody gets a link, or any bytes, without the right certificate."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from hivenode.net.transport import LinkEnd
from hivenode.trust.credentials import Credentials
from tests.net.nodes import AUTHORITY, STRANGERS, credentials_of, linked, node
from tests.security.hostile import anonymous, certificate, http, key_of, listening_tls

REFUSALS = (aiohttp.ClientError, ConnectionError)


def uri(node_id: str, hive: str = AUTHORITY.hive_id) -> str:
    return f"spiffe://{hive}/node/{node_id}"


async def test_nodes_of_two_hives_refuse_one_another(tmp_path: Path) -> None:
    async with node(1, tmp_path) as ours, node(2, tmp_path, authority=STRANGERS) as theirs:
        ours.want(theirs)
        theirs.want(ours)
        for one, other in ((ours, theirs), (theirs, ours)):
            failed = await one.handler.one("failed")
            assert failed[:3] == (other.id, other.address, LinkEnd.identity)
        # A foreigner that does not mind who we are is refused by us.
        async with http(_uncritical(credentials_of(3, STRANGERS))) as session:
            with pytest.raises(REFUSALS):
                await session.ws_connect(f"https://{ours.address}/link", protocols=("hive.v1",))
        assert ours.handler.all("up") == theirs.handler.all("up") == []


async def test_another_member_than_the_one_dialled_is_refused(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b, node(3, tmp_path) as c:
        a.transport.want(c.id, (b.address,))
        failed = await a.handler.one("failed")
        assert failed[:3] == (c.id, b.address, LinkEnd.identity)
        assert b.id in failed[3]
        assert b.handler.all("up") == []


async def test_nothing_is_sent_to_the_wrong_node(tmp_path: Path) -> None:
    wrong = credentials_of(2)
    async with node(1, tmp_path) as a, listening_tls(wrong.server_context()) as (address, heard, _):
        a.transport.want(credentials_of(3).identity.node_id, (address,))
        await a.handler.one("failed", 3)
        assert bytes(heard) == b""
        # The same server under its own name is spoken to.
        a.transport.want(wrong.identity.node_id, (address,))
        while not heard:
            await a.handler.one("failed", len(a.handler.all("failed")) + 1)
        assert heard.startswith(b"GET /link")


async def test_without_a_certificate_there_is_nothing_but_joining(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, http(anonymous()) as session:
        ref = await a.blobs.put_bytes(b"secret")
        for path in ("/link", f"/bulk/{ref.digest}", "/", "/joined"):
            async with session.get(f"https://{a.address}{path}") as response:
                assert response.status == 403
                assert b"secret" not in await response.read()
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(f"https://{a.address}/link", protocols=("hive.v1",))


@pytest.mark.parametrize("case", ["other node", "two names", "other hive", "no name", "self-signed"])
async def test_a_certificate_that_is_not_quite_right_is_refused(tmp_path: Path, case: str) -> None:
    mallory = credentials_of(4)
    victim = credentials_of(5).identity.node_id
    own = uri(mallory.identity.node_id)
    names = {
        "other node": [uri(victim)],
        "two names": [own, uri(victim)],
        "other hive": [uri(mallory.identity.node_id, STRANGERS.hive_id)],
        "no name": ["https://example.org/"],
        "self-signed": [own],
    }[case]
    signer = key_of(mallory) if case == "self-signed" else None
    forged = certificate(key_of(mallory), names, signer=signer)
    bad = dataclasses.replace(mallory, certificate_pem=forged)
    async with node(1, tmp_path) as a:
        async with http(_uncritical(bad)) as session:
            with pytest.raises(REFUSALS):
                await session.ws_connect(f"https://{a.address}/link", protocols=("hive.v1",))
        async with listening_tls(bad.server_context()) as (address, heard, _):
            for claimed in (mallory.identity.node_id, victim):
                a.transport.want(claimed, (address,))
            for count in (1, 2):
                assert (await a.handler.one("failed", count))[2] is LinkEnd.identity
            a.transport.seed([address])
            await a.handler.until(lambda: any(failed[0] == "" for failed in a.handler.all("failed")))
            assert bytes(heard) == b""
        assert a.handler.all("up") == []


async def test_an_expired_certificate_is_refused_and_the_clocks_are_named(tmp_path: Path) -> None:
    old = credentials_of(2, now=datetime.now(UTC) - timedelta(days=800))
    async with node(1, tmp_path) as a, node(2, tmp_path, credentials=old) as b:
        a.want(b)
        failed = await a.handler.one("failed")
        assert failed[2] is LinkEnd.identity
        assert "expired" in failed[3]
        assert "clock" in failed[3]


async def test_an_expelled_node_gets_no_new_link(tmp_path: Path) -> None:
    expelled: set[str] = set()
    async with (
        node(1, tmp_path, allowed=lambda peer: peer not in expelled) as a,
        node(2, tmp_path) as b,
    ):
        await linked(a, b)
        expelled.add(b.id)
        b.want(a)
        a.transport.drop(b.id, LinkEnd.identity)
        assert await a.handler.one("down") == (b.id, LinkEnd.identity)
        failed = await b.handler.one("failed")
        assert failed[:3] == (a.id, a.address, LinkEnd.identity)
        assert "not a member any more" in failed[3]
        await a.handler.one("failed")
        assert list(a.transport.links) == []


async def test_a_renewed_certificate_is_shown_from_then_on(tmp_path: Path) -> None:
    expired = credentials_of(2, now=datetime.now(UTC) - timedelta(days=800))
    async with node(1, tmp_path) as a, node(2, tmp_path, credentials=expired) as b:
        a.want(b)
        await a.handler.one("failed")
        b.transport.renew(credentials_of(2))
        await a.handler.one("up")


def _uncritical(credentials: Credentials):  # type: ignore[no-untyped-def]
    """A context that shows these credentials and accepts any server."""
    import ssl

    context = credentials.client_context()
    context.verify_mode = ssl.CERT_NONE
    return context
