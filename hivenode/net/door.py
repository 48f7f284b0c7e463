"""Who may speak to this node over HTTP: the check that stands before every route, and the route by which a node
whose certificate ends, or has ended, gets a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from hivenode.errors import HiveError, Refused, Unavailable, from_dict
from hivenode.logs import get_logger
from hivenode.net.dialing import (
    CLOCK_HEADER,
    FAULT_HEADER,
    REASON_HEADER,
    Dialer,
    DialError,
    shown_by,
    skew_of,
)
from hivenode.net.transport import Refusal, Refusing
from hivenode.trust.certificates import Paper

log = get_logger("door")

JOIN_PATH = "/join"
RENEW_PATH = "/renew"
PAPER: web.RequestKey[Paper] = web.RequestKey("paper", Paper)
MAX_REPLY = 16 * 1024
APPEAL_SECONDS = 10.0


class RenewReply(msgspec.Struct, frozen=True):
    """A new certificate, PEM."""

    certificate: Annotated[str, msgspec.Meta(max_length=8192)]


class Door:
    """
    Args:
        allowed: asked for every authenticated peer; False (revoked, expelled) refuses it.
        wall: seconds since 1970.
        on_refused: told of everybody who is turned away.
        certify: makes a new certificate for a member, or refuses (HiveError).
    """

    def __init__(
        self,
        me: str,
        hive_id: str,
        *,
        allowed: Callable[[str], bool],
        wall: Callable[[], float],
        on_refused: Callable[[Refusal], None],
        certify: Callable[[str], Awaitable[str]],
    ) -> None:
        self._me = me
        self._hive = hive_id
        self._allowed = allowed
        self._wall = wall
        self._on_refused = on_refused
        self._certify = certify

    def application(self, max_body: int) -> web.Application:
        """A web application in which every route but those under `JOIN_PATH` has a `PAPER` in its request."""

        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not all(value.isascii() for _, value in request.raw_headers):  # an answer may have to repeat them
                raise web.HTTPBadRequest(text="Headers are ASCII here.")
            if request.path != JOIN_PATH and not request.path.startswith(JOIN_PATH + "/"):
                request[PAPER] = self._look(request)
            return await handler(request)

        app = web.Application(middlewares=[authenticate], client_max_size=max_body)
        app.on_response_prepare.append(self._tell_time)
        app.router.add_post(RENEW_PATH, self._renew)
        return app

    def _look(self, request: web.Request) -> Paper:
        secured = request.transport.get_extra_info("ssl_object") if request.transport else None
        try:
            paper = shown_by(secured, self._hive)
        except Refused as error:
            raise self._turn_away(request, "", Refusing.identity, error.sentence, error.fix) from error
        if not self._allowed(paper.node):
            sentence = f"Node {paper.node} is not a member any more."
            fix = "It was revoked: ask an admin of the hive to grant it roles again."
            raise self._turn_away(request, paper.node, Refusing.revoked, sentence, fix)
        now = self._wall()
        if request.path != RENEW_PATH and (trouble := paper.trouble(now, skew_of(request.headers, now))):
            fix = "It asks for a new one by itself as soon as it reaches a member with the admin role."
            told = paper.trouble(now, 0.0, f"the clock of node {self._me[:8]}")
            raise self._turn_away(request, paper.node, Refusing.expired, trouble, fix, told)
        return paper

    def _turn_away(
        self, request: web.Request, node: str, why: Refusing, detail: str, fix: str, told: str = ""
    ) -> web.HTTPForbidden:
        """Args: told: what the other side hears, if that is not `detail`."""
        host = request.remote or ""
        log.warning("request refused", address=host, path=request.path, node_id=node, reason=detail)
        # Who shows no certificate is a browser or a scanner, and no node that stands at the door; nor do we ourselves.
        if why is not Refusing.identity and node != self._me:
            self._on_refused(Refusal(node, host, why, detail))
        return web.HTTPForbidden(
            text=f"{told or detail} {fix}", headers={REASON_HEADER: told or detail, FAULT_HEADER: why.value}
        )

    async def _tell_time(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[CLOCK_HEADER] = f"{self._wall():.3f}"

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        try:
            certificate = await self._certify(request[PAPER].node)
        except HiveError as error:
            body, status = msgspec.msgpack.encode(error.to_dict()), error.http_status
        else:
            body, status = msgspec.msgpack.encode(RenewReply(certificate)), 200
        return web.Response(body=body, status=status, content_type="application/msgpack")


async def appeal(dialer: Dialer, address: str, expected: str) -> str:
    """Ask the node `expected` at an address ("": any node of the hive) for a new certificate, PEM. It works with an
    expired one too, which is good for nothing else.

    Raises:
        Unavailable: it cannot be reached.
        HiveError: it refused.
    """
    try:
        async with asyncio.timeout(APPEAL_SECONDS), dialer.post(address, RENEW_PATH, expected, b"") as response:
            body = await read_bounded(response.content, MAX_REPLY)
    except (aiohttp.ClientError, OSError, TimeoutError, DialError) as error:
        trouble = await dialer.explain(error, address, expected)
        raise Unavailable(
            f"No new certificate could be asked for at {address}: {trouble}.", fix="Start a member with the admin role."
        ) from error
    try:
        if response.status == 200:
            return msgspec.msgpack.decode(body, type=RenewReply).certificate
        if response.headers.get(REASON_HEADER):
            raise Refused(response.headers[REASON_HEADER][:500], fix="Ask an admin of the hive.")
        refusal = msgspec.msgpack.decode(body, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(
            f"The node at {address} gave an answer that makes no sense (HTTP status {response.status}).",
            fix="Update hivenode on both machines.",
        ) from error
    raise from_dict(refusal)


async def read_bounded(content: aiohttp.StreamReader, limit: int) -> bytes:
    """A whole answer. Raises Unavailable above so many bytes."""
    data = bytearray()
    async for piece in content.iter_any():
        data += piece
        if len(data) > limit:
            raise Unavailable("The answer is too long to be one.", fix="See what listens at that address.")
    return bytes(data)
