"""Joining with a pairing code, over real connections: one guess, ten minutes, and nothing for whoever is in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from hivenode.errors import Exhausted, HiveError, InvalidInput, NotFound, Refused, Unavailable
from hivenode.hive.pairing_desk import CODE_SECONDS, PairingDesk
from hivenode.net.introducing import Begin, Begun, Confirm, Confirmed, obtain_invite, pair_routes
from hivenode.net.transport import Refusal, Refusing
from hivenode.spec.status import InviteIssued
from hivenode.spec.values import Role
from hivenode.trust.invites import Invite
from hivenode.trust.pairing_codes import MAX_STARTS, Exchange, make_code, read_code
from tests.net.nodes import AUTHORITY, credentials_of, node
from tests.security.hostile import anonymous, http
from tests.simulation.loop import run

WORKER = (Role.worker,)


class Member:
    """A desk, and what it has given out."""

    def __init__(self) -> None:
        self.issued: list[tuple[tuple[Role, ...], int]] = []
        self.refused: list[Refusal] = []
        self.error: HiveError | None = None
        self.forbidden: HiveError | None = None
        self.desk = PairingDesk(wall=lambda: 1_000_000.0, may_invite=self._may, invite=self._invite)

    def _may(self) -> None:
        if self.forbidden is not None:
            raise self.forbidden

    async def _invite(self, roles: tuple[Role, ...], uses: int, seconds: float) -> InviteIssued:
        if self.error is not None:
            raise self.error
        self.issued.append((roles, uses))
        invite = Invite(AUTHORITY.hive_id, ("10.0.0.1:7447",), f"id{len(self.issued)}", b"sixteen bytes ok")
        return InviteIssued(invite.token(), tuple(role.value for role in roles), uses, 1_000_300.0)

    def routes(self, name: str = "ash") -> Callable[[web.Application], None]:
        return pair_routes(name, lambda: self.desk, on_refused=self.refused.append)

    @property
    def code(self) -> str:
        return read_code(self.desk.status().code)


def another(code: str) -> str:
    return f"{(int(code) + 1) % 10**8:08d}"


async def test_the_right_code_brings_an_invite_and_only_once(tmp_path: Path) -> None:
    member = Member()
    async with node(1, tmp_path, routes=member.routes()) as a:
        shown = member.desk.open(WORKER)
        assert (shown.state, shown.roles, shown.ends_at) == ("open", ("worker",), 1_000_000.0 + CODE_SECONDS)
        code = member.code
        invite = await obtain_invite(code, "cedar", [a.address], chosen=True)
        assert (invite.hive, invite.id) == (AUTHORITY.hive_id, "id1")
        assert invite.addresses == (a.address, "10.0.0.1:7447")  # what was reached goes first
        paired = member.desk.status()
        assert (paired.state, paired.member, paired.code) == ("paired", "cedar", "")
        member.desk.admitted("another", "elm")
        assert member.desk.status().state == "paired"
        member.desk.admitted("id1", "cedar")
        assert member.desk.status().state == "joined"
        with pytest.raises(NotFound, match="No pairing code is open"):
            await obtain_invite(code, "elm", [a.address], chosen=True)
        assert member.issued == [(WORKER, 1)]


async def test_a_wrong_code_makes_it_void_and_both_sides_are_told(tmp_path: Path) -> None:
    member = Member()
    async with node(1, tmp_path, routes=member.routes()) as a:
        member.desk.open(WORKER)
        right = member.code
        with pytest.raises(Refused, match="wrong, and void"):
            await obtain_invite(another(right), "cedar", [a.address], chosen=True)
        status = member.desk.status()
        assert status.state == "void"
        assert "127.0.0.1 gave a wrong code" in status.detail
        assert [(one.address, one.why) for one in member.refused] == [("127.0.0.1", Refusing.invite)]
        with pytest.raises(NotFound):
            await obtain_invite(right, "cedar", [a.address], chosen=True)
        assert member.issued == []
        member.desk.open(WORKER)
        assert await obtain_invite(member.code, "cedar", [a.address], chosen=True)


def test_after_ten_minutes_a_code_is_worth_nothing() -> None:
    async def story(rng: object) -> None:
        member = Member()
        member.desk.open(WORKER)
        code = member.code
        exchange = Exchange(code, joiner=True)
        session, message = member.desk.begin(exchange.message, "10.0.0.9")
        await asyncio.sleep(CODE_SECONDS - 1)
        assert member.desk.showing
        waiting = asyncio.create_task(member.desk.wait("open", 30))
        await asyncio.sleep(2)
        assert not member.desk.showing
        shared = exchange.finish(message)
        with pytest.raises(NotFound):
            await member.desk.confirm(session, shared.joiner_proof, shared.seal(b"\xa1x", joiner=True), "10.0.0.9")
        with pytest.raises(NotFound):
            member.desk.begin(Exchange(code, joiner=True).message, "10.0.0.9")
        assert (await waiting).state == "expired"
        assert member.issued == []

        member.desk.open(WORKER)
        exchange = Exchange(member.code, joiner=True)
        session, message = member.desk.begin(exchange.message, "10.0.0.9")
        shared = exchange.finish(message)
        await member.desk.confirm(session, shared.joiner_proof, shared.seal(b"\xa1x", joiner=True), "10.0.0.9")
        assert (await member.desk.wait("paired", 1000)).state == "expired"
        assert "did not join" in member.desk.status().detail

    run(story)


async def test_what_was_overheard_is_of_no_use(tmp_path: Path) -> None:
    """All that the right machine sent, sent again: into the same exchange, and into another of a code open later."""
    member = Member()
    async with node(1, tmp_path, routes=member.routes()) as a, http(anonymous()) as session:

        async def post(path: str, body: object) -> tuple[int, bytes]:
            async with session.post(f"https://{a.address}{path}", data=msgspec.msgpack.encode(body)) as response:
                return response.status, await response.read()

        member.desk.open(WORKER)
        exchange = Exchange(member.code, joiner=True)
        begin = Begin(exchange.message)
        _, data = await post("/join/pair", begin)
        begun = msgspec.msgpack.decode(data, type=Begun)
        shared = exchange.finish(begun.message)
        confirm = Confirm(begun.session, shared.joiner_proof, shared.seal(msgspec.msgpack.encode("elm"), joiner=True))
        status, data = await post("/join/pair/confirm", confirm)
        assert status == 200
        assert AUTHORITY.hive_id.encode() not in data
        assert b"HIVE1-" not in data
        status, _ = await post("/join/pair/confirm", confirm)
        assert status == 404
        member.desk.open(WORKER)
        status, data = await post("/join/pair", begin)
        assert status == 200
        again = msgspec.msgpack.decode(data, type=Begun)
        status, _ = await post("/join/pair/confirm", confirm)
        assert status == 404  # its session is over
        status, _ = await post("/join/pair/confirm", msgspec.structs.replace(confirm, session=again.session))
        assert status == 403
        assert member.desk.status().state == "void"
        assert len(member.issued) == 1


@asynccontextmanager
async def between(target: str, tamper: Callable[[str, bytes], bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A man in the middle, with a certificate of his own, who passes on whatever `tamper` makes of it. He is reached
    by the joiner in place of the member; all that he sees is in the list."""
    seen: list[bytes] = []

    async def pass_on(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append(body)
        async with (
            http(anonymous()) as session,
            session.request(
                request.method, f"https://{target}{request.path}", data=tamper(request.path, body) or None
            ) as response,
        ):
            answer = await response.read()
            seen.append(answer)
            return web.Response(body=tamper(request.path + " answer", answer), status=response.status)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", pass_on)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=credentials_of(9).server_context())
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


async def test_a_man_in_the_middle_who_only_passes_on_learns_nothing(tmp_path: Path) -> None:
    member = Member()
    async with (
        node(1, tmp_path, routes=member.routes()) as a,
        between(a.address, lambda path, data: data) as (address, seen),
    ):
        member.desk.open(WORKER)
        code = member.code
        invite = await obtain_invite(code, "cedar", [address], chosen=True)
        assert invite.hive == AUTHORITY.hive_id
        everything = b"".join(seen)
        for secret in (code.encode(), invite.secret, invite.token().encode(), b"cedar"):
            assert secret not in everything


async def test_a_man_in_the_middle_with_halves_of_his_own_is_found_out(tmp_path: Path) -> None:
    """He does not know the code, so he puts a half made with a guess in place of one of the two."""
    member = Member()
    guess = another("00000000")

    def to_the_joiner(path: str, data: bytes) -> bytes:
        if path != "/join/pair answer" or not member.desk.showing:
            return data
        try:
            begun = msgspec.msgpack.decode(data, type=Begun)
        except msgspec.MsgspecError:
            return data
        return msgspec.msgpack.encode(Begun(begun.session, Exchange(guess, joiner=False).message))

    def to_the_member(path: str, data: bytes) -> bytes:
        if path != "/join/pair" or not data:
            return data
        return msgspec.msgpack.encode(Begin(Exchange(guess, joiner=True).message))

    async with node(1, tmp_path, routes=member.routes()) as a:
        for tamper in (to_the_joiner, to_the_member):
            member.desk.open(WORKER)
            async with between(a.address, tamper) as (address, _):
                with pytest.raises(Refused, match="wrong, and void"):
                    await obtain_invite(member.code, "cedar", [address], chosen=True)
            assert member.desk.status().state == "void"
    assert member.issued == []


async def test_a_false_member_gets_nothing_and_is_found_out() -> None:
    """It answers in the member's place, takes any proof for right, and gives an invite to a hive of its own."""
    guess = "87654321"
    held: dict[str, object] = {}

    async def look(request: web.Request) -> web.Response:
        return web.Response(body=msgspec.msgpack.encode({"name": "ash"}))

    async def begin(request: web.Request) -> web.Response:
        asked = msgspec.msgpack.decode(await request.read(), type=Begin)
        exchange = Exchange(guess, joiner=False)
        held["shared"] = shared = exchange.finish(asked.message)
        assert shared is not None
        return web.Response(body=msgspec.msgpack.encode(Begun(b"s", exchange.message)))

    async def confirm(request: web.Request) -> web.Response:
        asked = msgspec.msgpack.decode(await request.read(), type=Confirm)
        shared = held["shared"]
        assert asked.proof != shared.joiner_proof  # type: ignore[attr-defined]
        token = Invite(AUTHORITY.hive_id, ("10.6.6.6:7447",), "bad", b"sixteen bytes ok").token().encode()
        sealed = shared.seal(token, joiner=False)  # type: ignore[attr-defined]
        return web.Response(body=msgspec.msgpack.encode(Confirmed(shared.member_proof, sealed)))  # type: ignore[attr-defined]

    app = web.Application()
    app.router.add_get("/join/pair", look)
    app.router.add_post("/join/pair", begin)
    app.router.add_post("/join/pair/confirm", confirm)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=credentials_of(9).server_context())
    await site.start()
    try:
        with pytest.raises(Refused, match="does not know the code"):
            await obtain_invite("12345678", "cedar", [f"127.0.0.1:{runner.addresses[0][1]}"], chosen=True)
    finally:
        await runner.cleanup()


async def test_a_code_is_found_among_those_heard_nearby_unless_two_show_one(tmp_path: Path) -> None:
    ash, birch = Member(), Member()
    async with (
        node(1, tmp_path, routes=ash.routes("ash")) as a,
        node(2, tmp_path, routes=birch.routes("birch")) as b,
    ):
        nearby = ["127.0.0.1:1", b.address, a.address, a.address]
        with pytest.raises(Unavailable, match="none of the 4 heard nearby"):
            await obtain_invite("12345678", "cedar", nearby, chosen=False)
        with pytest.raises(Unavailable, match="no other node is heard"):
            await obtain_invite("12345678", "cedar", [], chosen=False)
        with pytest.raises(Unavailable, match="nothing listens"):
            await obtain_invite("12345678", "cedar", ["127.0.0.1:1"], chosen=True)
        ash.desk.open(WORKER)
        birch.desk.open(WORKER)
        with pytest.raises(InvalidInput, match=f"ash at {a.address}, birch at {b.address}") as caught:
            await obtain_invite(ash.code, "cedar", nearby, chosen=False)
        assert "hivenode pair CODE ADDRESS" in caught.value.fix
        assert ash.desk.showing  # nobody has guessed
        birch.desk.close()
        assert (await obtain_invite(ash.code, "cedar", nearby, chosen=False)).id == "id1"


async def test_a_newer_code_takes_the_place_of_an_older_one_and_only_who_may_invite_shows_one() -> None:
    member = Member()
    member.desk.open(WORKER)
    old = member.code
    exchange = Exchange(old, joiner=True)
    session, message = member.desk.begin(exchange.message, "10.0.0.9")
    member.desk.open(WORKER)
    shared = exchange.finish(message)
    with pytest.raises(NotFound):
        await member.desk.confirm(session, shared.joiner_proof, shared.seal(b"\xa1x", joiner=True), "10.0.0.9")
    assert member.desk.close().state == "closed"
    with pytest.raises(InvalidInput):
        member.desk.open(())
    member.forbidden = Refused("This node does not keep the key.", fix="Ask ash.")
    with pytest.raises(Refused):
        member.desk.open(WORKER)
    assert not member.desk.showing


async def test_too_many_tries_make_it_void_and_a_failed_invite_does_too() -> None:
    member = Member()
    member.desk.open(WORKER)
    message = Exchange(member.code, joiner=True).message
    for _ in range(MAX_STARTS):
        member.desk.begin(message, "10.0.0.9")
    with pytest.raises(Refused, match="too many tries"):
        member.desk.begin(message, "10.0.0.9")
    assert member.desk.status().state == "void"

    member.error = Exhausted("The disk is full.", fix="Make room.")
    member.desk.open(WORKER)
    exchange = Exchange(member.code, joiner=True)
    session, message = member.desk.begin(exchange.message, "10.0.0.9")
    shared = exchange.finish(message)
    with pytest.raises(Exhausted):
        await member.desk.confirm(session, shared.joiner_proof, shared.seal(b"\xa1x", joiner=True), "10.0.0.9")
    status = member.desk.status()
    assert (status.state, "disk is full" in status.detail) == ("void", True)


@pytest.mark.parametrize(
    "body", [b"", b"\x81", b"\xc1" * 900, bytes(100_000), msgspec.msgpack.encode({"message": b"x"})]
)
async def test_malformed_requests_are_refused_and_leave_the_code_open(tmp_path: Path, body: bytes) -> None:
    member = Member()
    async with node(1, tmp_path, routes=member.routes()) as a, http(anonymous()) as session:
        member.desk.open(WORKER)
        for path in ("/join/pair", "/join/pair/confirm"):
            async with session.post(f"https://{a.address}{path}", data=body) as response:
                assert response.status in (400, 503)
        assert member.desk.showing
        assert (await obtain_invite(member.code, "cedar", [a.address], chosen=True)).id == "id1"


def test_codes_are_drawn_from_all_there_are() -> None:
    assert read_code(make_code(lambda below: below - 1)) == "99999999"
