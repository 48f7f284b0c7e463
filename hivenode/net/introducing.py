"""Joining with a pairing code: over a connection that proves nothing yet, both machines prove to each other that they
were given the same code, and an invite goes over, sealed with what they share. The rest is joining with an invite.

A man in the middle who does not know the code cannot make the two halves fit; one who merely passes bytes on can read
none of them. So it does not matter whose certificate is shown here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from hivenode.errors import HiveError, InvalidInput, NotFound, Refused, Unavailable, from_dict
from hivenode.logs import get_logger
from hivenode.net.addresses import url_of
from hivenode.net.dialing import explain
from hivenode.net.door import read_bounded
from hivenode.net.transport import Refusal, Refusing
from hivenode.spec.values import Name
from hivenode.trust.invites import Invite, read_token
from hivenode.trust.pairing_codes import MESSAGE_BYTES, PROOF_BYTES, Exchange, proves

log = get_logger("introducing")

PAIR_PATH = "/join/pair"
CONFIRM_PATH = "/join/pair/confirm"
MAX_BODY = 1024
MAX_REPLY = 8 * 1024
LOOK_SECONDS = 4.0
"""To find out whether a code is open at an address."""
STEP_SECONDS = 10.0
MAX_ASKED = 64
_NO_CODE = (
    "Run `hivenode pair` on a member. If multicast does not get through, add its address: `hivenode pair CODE HOST`."
)

T = TypeVar("T")


class Showing(msgspec.Struct, frozen=True):
    """A code is open at the node of this name."""

    name: Name


class Begin(msgspec.Struct, frozen=True):
    message: Annotated[bytes, msgspec.Meta(min_length=MESSAGE_BYTES, max_length=MESSAGE_BYTES)]


class Begun(msgspec.Struct, frozen=True):
    session: Annotated[bytes, msgspec.Meta(max_length=64)]
    message: Annotated[bytes, msgspec.Meta(min_length=MESSAGE_BYTES, max_length=MESSAGE_BYTES)]


class Confirm(msgspec.Struct, frozen=True):
    session: Annotated[bytes, msgspec.Meta(max_length=64)]
    proof: Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
    name: Annotated[bytes, msgspec.Meta(max_length=256)]
    """Sealed."""


class Confirmed(msgspec.Struct, frozen=True):
    proof: Annotated[bytes, msgspec.Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
    token: Annotated[bytes, msgspec.Meta(max_length=4096)]
    """Of an invite, sealed."""


class Desk(Protocol):
    """`hive.pairing_desk.PairingDesk` as the routes see it."""

    @property
    def showing(self) -> bool: ...

    def begin(self, message: bytes, address: str) -> tuple[bytes, bytes]: ...

    async def confirm(self, session: bytes, proof: bytes, sealed_name: bytes, address: str) -> tuple[bytes, bytes]: ...


def pair_routes(
    name: str, desk: Callable[[], Desk], *, on_refused: Callable[[Refusal], None] = lambda refusal: None
) -> Callable[[web.Application], None]:
    """The member's half, for `PeerTransport(routes=...)`.

    Args:
        name: this node's.
        desk: looked up anew for each request.
    """

    async def look(request: web.Request) -> web.StreamResponse:
        if not desk().showing:
            return _refusal(NotFound("No pairing code is open here.", fix=_NO_CODE))
        return _answer(Showing(name))

    async def begin(request: web.Request) -> web.StreamResponse:
        async def work() -> Begun:
            asked = await _read(request, Begin)
            return Begun(*desk().begin(asked.message, request.remote or ""))

        return await _guarded(work, request)

    async def confirm(request: web.Request) -> web.StreamResponse:
        async def work() -> Confirmed:
            asked = await _read(request, Confirm)
            try:
                return Confirmed(*await desk().confirm(asked.session, asked.proof, asked.name, request.remote or ""))
            except Refused as error:
                on_refused(Refusal("", request.remote or "", Refusing.invite, error.sentence))
                raise

        return await _guarded(work, request)

    def add(app: web.Application) -> None:
        app.router.add_get(PAIR_PATH, look)
        app.router.add_post(PAIR_PATH, begin)
        app.router.add_post(CONFIRM_PATH, confirm)

    return add


async def obtain_invite(code: str, name: str, addresses: Sequence[str], *, chosen: bool) -> Invite:
    """The joining machine's half: find who shows a code, and get an invite for it.

    Args:
        code: the digits, from `pairing_codes.read_code`.
        name: this node's, told to the member.
        addresses: where members may be.
        chosen: a person gave the address; else they are all that were heard nearby.

    Raises:
        Unavailable: nobody there shows a code, or whoever did does not answer any more.
        InvalidInput: several do.
        Refused: the code is wrong; it is void now.
    """
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, use_dns_cache=False), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        asker = _Asker(session)
        address = await _who_shows_one(asker, addresses[:MAX_ASKED], chosen=chosen)
        exchange = Exchange(code, joiner=True)
        begun = await asker.ask(address, PAIR_PATH, Begun, Begin(exchange.message))
        shared = exchange.finish(begun.message)
        sealed_name = shared.seal(msgspec.msgpack.encode(name), joiner=True)
        confirm = Confirm(begun.session, shared.joiner_proof, sealed_name)
        confirmed = await asker.ask(address, CONFIRM_PATH, Confirmed, confirm)
    if not proves(shared.member_proof, confirmed.proof):
        raise Refused(
            f"Whoever answers at {address} does not know the code: it is not the machine that shows it.",
            fix="Somebody may be intercepting the connection. Take a new code, and give the member's address.",
        )
    invite = read_token(shared.open(confirmed.token, joiner=False).decode("ascii", "replace"))
    return msgspec.structs.replace(invite, addresses=tuple(dict.fromkeys((address, *invite.addresses)))[:16])


async def _who_shows_one(asker: _Asker, addresses: Sequence[str], *, chosen: bool) -> str:
    """The one address at which a code is open; of several addresses of one node, the first."""

    async def look(address: str) -> str | HiveError:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return (await asker.ask(address, PAIR_PATH, Showing)).name
        except HiveError as error:
            return error
        except TimeoutError:
            return Unavailable(f"Nobody answers at {address}.", fix="See that the node there runs.")

    answers = dict(zip(addresses, await asyncio.gather(*map(look, addresses)), strict=True))
    found: dict[str, str] = {}
    for address, answer in answers.items():
        if isinstance(answer, str):
            found.setdefault(answer, address)
    if len(found) > 1:
        where = ", ".join(f"{name} at {address}" for name, address in sorted(found.items()))
        raise InvalidInput(
            f"Several nodes show a pairing code now: {where}.", fix="Say which one: `hivenode pair CODE ADDRESS`."
        )
    if found:
        return next(iter(found.values()))
    troubles = [answer for answer in answers.values() if isinstance(answer, HiveError)]
    if chosen and troubles:
        raise troubles[0]
    heard = f"none of the {len(addresses)} heard nearby shows one" if addresses else "no other node is heard nearby"
    raise Unavailable(f"No node with a pairing code was found: {heard}.", fix=_NO_CODE)


class _Asker:
    """Asks over TLS without looking at the certificate."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._anyone.check_hostname = False
        self._anyone.verify_mode = ssl.CERT_NONE
        self._anyone.minimum_version = ssl.TLSVersion.TLSv1_3

    async def ask(self, address: str, path: str, form: type[T], body: object = None) -> T:
        """Raises Unavailable without an answer, and the HiveError that was answered."""
        try:
            async with (
                asyncio.timeout(STEP_SECONDS),
                self._session.request(
                    "GET" if body is None else "POST",
                    url_of(address, path),
                    data=None if body is None else msgspec.msgpack.encode(body),
                    ssl=self._anyone,
                    server_hostname="pairing.invalid",
                    allow_redirects=False,
                ) as response,
            ):
                data = await read_bounded(response.content, MAX_REPLY)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(
                f"The node at {address} cannot be reached: {explain(error)}.",
                fix="See that it runs, and that its port is open to this machine.",
            ) from error
        try:
            if response.status == 200:
                return msgspec.msgpack.decode(data, type=form)
            refusal = msgspec.msgpack.decode(data, type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unavailable(
                f"The node at {address} gave an answer that makes no sense (HTTP status {response.status}).",
                fix="Run the same version of hivenode on both machines.",
            ) from error
        raise from_dict(refusal)


async def _guarded(work: Callable[[], Awaitable[object]], request: web.Request) -> web.StreamResponse:
    try:
        return _answer(await work())
    except (msgspec.MsgspecError, UnicodeDecodeError, TimeoutError) as error:
        log.warning("malformed request to pair", address=request.remote, reason=repr(error))
        return _refusal(
            InvalidInput("The request to pair is malformed or incomplete.", fix="Update hivenode on that machine.")
        )
    except HiveError as error:
        log.warning("request to pair refused", address=request.remote, reason=error.sentence)
        return _refusal(error)


async def _read(request: web.Request, form: type[T]) -> T:
    async with asyncio.timeout(STEP_SECONDS):
        data = await read_bounded(request.content, MAX_BODY)
    return msgspec.msgpack.decode(data, type=form)


def _answer(found: object) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(found), content_type="application/msgpack")


def _refusal(error: HiveError) -> web.Response:
    return web.Response(
        body=msgspec.msgpack.encode(error.to_dict()), status=error.http_status, content_type="application/msgpack"
    )
