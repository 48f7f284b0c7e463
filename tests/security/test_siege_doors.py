"""At the doors of a real daemon: connections that say nothing, strangers, would-be joiners, and other programs of the
same machine at the admin endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import aiohttp
import pytest
import pytest_asyncio

from tests.security.hostile import anonymous, http
from tests.security.siege import Siege, siege
from tests.security.test_joining import NEWCOMER
from tests.security.wire import PATIENCE, UPGRADE, Wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hive(tmp_path_factory: pytest.TempPathFactory):
    async with siege(tmp_path_factory.mktemp("siege")) as one:
        yield one


async def opened(hive: Siege, context: ssl.SSLContext | None, source: str) -> Wire | None:
    """A connection, if it was not ended before it stood."""
    try:
        return await Wire.open(hive.address, context, source=source)
    except (ConnectionError, ssl.SSLError):
        return None


async def still_open(wires: list[Wire | None], seconds: float = 0.3) -> int:
    """How many of these the other side has left open."""
    await asyncio.sleep(seconds)
    return sum(wire is not None and not wire.reader.at_eof() and wire.reader.exception() is None for wire in wires)


async def close(wires: list[Wire | None]) -> None:
    for wire in wires:
        if wire is not None:
            wire.writer.transport.abort()


async def test_a_thousand_half_open_connections(hive: Siege) -> None:
    async with hive.attack("1,000 connections before TLS, one address"):
        wires = await asyncio.gather(*(opened(hive, None, "127.0.0.9") for _ in range(1000)))
        assert await still_open(wires) <= 8
        await asyncio.gather(*(wire.gone() for wire in wires if wire is not None))  # ended within the handshake's time
    async with hive.attack("1,000 connections before TLS, 250 addresses"):
        wires = await asyncio.gather(*(opened(hive, None, f"127.0.1.{1 + n % 250}") for n in range(1000)))
        assert await still_open(wires) <= 40
        await asyncio.gather(*(wire.gone() for wire in wires if wire is not None))
    mallory = await hive.attacker()  # somebody new still gets in afterwards
    assert mallory.id in hive.attackers


async def test_connections_after_tls_and_before_the_hello(hive: Siege) -> None:
    async with hive.attack("strangers after TLS"):
        wires = await asyncio.gather(*(opened(hive, anonymous(), f"127.0.2.{1 + n % 20}") for n in range(200)))
        assert await still_open(wires) <= 40
        await asyncio.gather(*(wire.gone() for wire in wires if wire is not None))
    mallory = await hive.attacker()
    context = mallory.credentials.client_context()
    async with hive.attack("a member after TLS, two hundred times"):
        wires = []
        for _ in range(10):
            wires += await asyncio.gather(*(opened(hive, context, "127.0.0.1") for _ in range(20)))
        assert await still_open(wires) <= 16
        await asyncio.gather(*(wire.gone() for wire in wires if wire is not None))
    async with hive.attack("a member after the upgrade, without a hello"):
        made: list[Wire] = []
        for _ in range(30):
            with contextlib.suppress(AssertionError, ConnectionError, asyncio.IncompleteReadError):
                made.append(await Wire.upgraded(hive.address, mallory.credentials))
        assert made
        assert len(made) <= 16
        await asyncio.gather(*(wire.gone() for wire in made))


async def test_dribbles(hive: Siege) -> None:
    mallory = await hive.attacker()

    async def dribble(wire: Wire, data: bytes) -> None:
        """A byte every 50 ms, again and again, until the other side has enough."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while not wire.reader.at_eof():
                for byte in data:
                    wire.raw(bytes([byte]))
                    await wire.writer.drain()
                    await asyncio.sleep(0.05)
                    if wire.reader.at_eof():
                        return

    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    header = UPGRADE.encode()[:-2] + b"X-More: " + b"x" * 4000
    endless = b"POST /join HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n" + bytes(4000)
    ways = [
        ("TLS", None, hello),
        ("headers of a stranger", anonymous(), header),
        ("headers of a member", mallory.credentials.client_context(), header),
        ("a body that never ends", anonymous(), endless),
    ]  # fmt: skip
    async with hive.attack("dribbles"), asyncio.TaskGroup() as tasks:
        for _, context, data in ways:
            wire = await Wire.open(hive.address, context)
            tasks.create_task(dribble(wire, data))
            tasks.create_task(wire.gone())


async def test_requests_that_make_no_sense_at_the_port_of_the_hive(hive: Siege) -> None:
    mallory = await hive.attacker()
    good = mallory.credentials.client_context()
    requests = [
        b"GET /bulk/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /bulk/" + b"0" * 64 + b" HTTP/1.1\r\nHost: x\r\nRange: bytes=-1\r\n\r\n",
        b"GET /bulk/%2e%2e%2fkey.pem HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /link HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"POST /link HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"\x00" * 10_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    async with hive.attack("requests that make no sense"):
        for context in (good, anonymous()):
            for request in requests:
                async with await Wire.open(hive.address, context) as wire:
                    wire.raw(request)
                    await wire.flushed()
                    answer = b""
                    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                        async with asyncio.timeout(PATIENCE):
                            answer = await wire.reader.read(1 << 16)
                    assert b" 200 " not in answer.split(b"\r\n")[0]
                    assert b"PRIVATE" not in answer


async def test_the_wrong_secret_a_thousand_times(hive: Siege) -> None:
    async with hive.attack("guesses at the door", lines=500), http(anonymous()) as session:
        url = f"https://{hive.address}/join"

        async def guess(body: bytes) -> int:
            try:
                async with session.post(url, data=body) as response:
                    return response.status
            except aiohttp.ClientError:
                return 0  # turned away, or cut off while it was still sending

        for body in (b"\x90" * 4000, bytes(4 << 20), NEWCOMER.public_key * 100):
            statuses = await asyncio.gather(*(guess(body) for _ in range(60)))
            assert set(statuses) <= {0, 400, 403}
    members = {member["name"] for member in (await hive.ash.api("GET", "/v1/status"))["members"]}
    assert members == {"ash", "birch"}


async def test_other_programs_at_the_admin_endpoint(hive: Siege) -> None:
    url = (await hive.ash.api("GET", "/v1/status"))["admin_url"]
    token = (hive.ash.home / "admin.token").read_text().strip()
    bearer = {"Authorization": f"Bearer {token}"}
    async with hive.attack("the admin endpoint"), aiohttp.ClientSession() as session:
        for path, headers, status in [
            ("/v1/jobs", {}, 401),
            ("/v1/jobs", {"Authorization": "Bearer "}, 401),
            ("/v1/jobs", {"Authorization": f"Bearer {token[:-1]}"}, 401),
            ("/v1/jobs", {"Authorization": f"Basic {token}"}, 401),
            ("/v1/status", {"Host": "evil.example"}, 403),
            ("/v1/status", {"Host": "127.0.0.1.evil.example"}, 403),
            ("/v1/jobs", {**bearer, "Origin": "https://evil.example"}, 403),
            ("/v1/jobs", {**bearer, "Origin": "null"}, 403),
            ("/v1//status", {}, 401),
            ("/../../key.pem", bearer, 404),
            ("/v1/jobs/..%2f..%2fkey.pem", bearer, 404),
            ("/v1/jobs/" + "x" * 4000, bearer, 404),
            ("/v1/doctor?peer=" + "x" * 4000, bearer, 404),
        ]:
            async with session.get(url + path, headers=headers) as response:
                assert response.status == status, (path, headers)
                assert "PRIVATE" not in await response.text()
        for body in (
            b"[" * 500_000,
            b"{" * 1000,
            b"\xff" * 1000,
            b'{"spec": ' + b"9" * 10_000 + b"}",
            b'"' + b"a" * 900_000 + b'"',
        ):
            async with session.post(url + "/v1/jobs", data=body, headers=bearer) as response:
                assert response.status in (400, 413, 422), body[:20]
        async with session.post(url + "/v1/jobs", data=bytes(64 << 20), headers=bearer) as response:
            assert response.status == 413
        for method in ("PUT", "DELETE", "TRACE", "OPTIONS"):
            async with session.request(method, url + "/v1/jobs", headers=bearer) as response:
                assert response.status in (404, 405), method
        streams = [await session.get(url + "/v1/events", headers=bearer) for _ in range(50)]
        for stream in streams:
            stream.close()
