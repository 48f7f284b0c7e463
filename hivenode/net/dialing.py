"""Opening verified connections to other nodes, and saying precisely why one could not be opened."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from hivenode.errors import InvalidInput, Refused
from hivenode.net.addresses import url_of
from hivenode.net.link import MAX_WEBSOCKET_MESSAGE, LinkLimits
from hivenode.net.messages import PROTOCOL
from hivenode.net.transport import LinkEnd, Refusing
from hivenode.trust.certificates import SKEW_WORTH_NAMING, Paper, gap, read_certificate
from hivenode.trust.credentials import Credentials

LINK_PATH = "/link"
X509_NOT_YET_VALID = 9
X509_EXPIRED = 10
X509_FOREIGN = (2, 18, 19, 20, 21, 27)
"""OpenSSL's ways of saying that a certificate comes from an authority unknown to us."""
CLOCK_HEADER = "X-Hive-Clock"
"""The sender's clock, seconds since 1970: each end can tell the other how far they are apart."""
REASON_HEADER = "X-Hive-Reason"
"""Of a refusal, as a sentence."""
FAULT_HEADER = "X-Hive-Fault"
"""Of a refusal: a `Refusing`."""
CLOCK_SECONDS = 3.0


class DialError(Exception):
    """A connection could not be opened; the text is the detail for a person.

    Args:
        fault: of an `identity` failure, what is the matter, if that is known.
        refused: it is the other side that finds fault with us.
        skew: seconds by which its clock is ahead of ours, if it said.
    """

    def __init__(
        self,
        why: LinkEnd,
        detail: str,
        *,
        fault: Refusing | None = None,
        refused: bool = False,
        skew: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.why = why
        self.fault = fault
        self.refused = refused
        self.skew = skew


class Outdated(ssl.SSLCertVerificationError):
    """The right node answered, with a certificate that is not valid now."""

    def __init__(self, paper: Paper, trouble: str) -> None:
        super().__init__(1, trouble)
        self.paper = paper


def verifying(context: ssl.SSLContext, hive_id: str, wall: Callable[[], float] | None = None) -> ssl.SSLContext:
    """Make a client context check, at the end of the TLS handshake and so before anything is sent, that the server is
    the one meant: its server name must be the expected node id, or the hive's id if any of its nodes will do.

    Args:
        wall: seconds since 1970; with it, the server's certificate must also be valid now.
    """

    class VerifiedConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            certificate = self.getpeercert(True)
            if certificate is None:
                raise ssl.SSLCertVerificationError(1, "the server showed no certificate")
            try:
                paper = read_certificate(certificate, hive_id)
            except Refused as error:
                raise ssl.SSLCertVerificationError(1, error.sentence) from error
            if self.server_hostname not in (hive_id, paper.node):
                raise ssl.SSLCertVerificationError(1, f"node {paper.node} answered instead of {self.server_hostname}")
            if wall is not None and (trouble := paper.trouble(wall())):
                raise Outdated(paper, trouble)

    context.sslobject_class = VerifiedConnection
    return context


class Dialer:
    """Connections of this node to others, all with its certificate and all verified.

    Args:
        limits: of the links.
        wall: seconds since 1970.
    """

    def __init__(self, credentials: Credentials, limits: LinkLimits, wall: Callable[[], float] = time.time) -> None:
        self._hive = credentials.hive_id
        self._limits = limits
        self._wall = wall
        self.renew(credentials)
        self._session = aiohttp.ClientSession(
            # Each connection is for one link or one transfer, so none is pooled.
            connector=aiohttp.TCPConnector(force_close=True, limit=0, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            middlewares=(_no_redirects,),
        )

    def renew(self, credentials: Credentials) -> None:
        """Use a new certificate for the connections from here on."""
        self._context = verifying(credentials.client_context(), credentials.hive_id, self._wall)
        self._timeless = verifying(credentials.client_context(), credentials.hive_id)

    async def link(self, address: str, expected: str) -> tuple[aiohttp.ClientWebSocketResponse, Paper]:
        """A websocket to the node `expected`, or to any node of the hive if that is "", and the certificate of who
        answered. The caller sets the deadline.

        Raises:
            DialError: with the reason, as precise as it can be known.
        """
        try:
            socket = await self._session.ws_connect(
                url_of(address, LINK_PATH),
                protocols=(PROTOCOL,),
                headers=self._clock(),
                ssl=self._context,
                server_hostname=expected or self._hive,
                timeout=aiohttp.ClientWSTimeout(ws_close=self._limits.goodbye_seconds),
                max_msg_size=MAX_WEBSOCKET_MESSAGE,
                heartbeat=self._limits.heartbeat_seconds,
                autoping=False,  # the link answers pings, and counts them
                autoclose=False,  # the reader is to see the close frame: it tells a goodbye from a broken connection
                compress=0,
            )
        except (aiohttp.ClientError, OSError, InvalidInput) as error:
            raise await self.explain(error, address, expected) from error
        if socket.protocol != PROTOCOL:
            await socket.close()
            raise DialError(LinkEnd.protocol, f"the node at {address} does not speak {PROTOCOL}")
        return socket, shown_by(socket.get_extra_info("ssl_object"), self._hive)

    def get(self, address: str, path: str, expected: str, headers: dict[str, str]) -> Any:
        """An HTTP GET from the node `expected`, as an asynchronous context manager. Raises what `explain` explains."""
        return self._session.get(
            url_of(address, path),
            ssl=self._context,
            server_hostname=expected,
            headers={**self._clock(), **headers},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=30.0),
        )

    def post(self, address: str, path: str, expected: str, body: bytes) -> Any:
        """The same for an HTTP POST; `expected` "" is any node of the hive."""
        return self._session.post(
            url_of(address, path),
            data=body,
            ssl=self._context,
            server_hostname=expected or self._hive,
            headers=self._clock(),
            allow_redirects=False,
        )

    async def explain(self, error: BaseException, address: str, expected: str) -> DialError:
        """What a failed attempt says about the other side. Where its certificate is not valid now, it is asked for
        its clock: the certificate is the right node's, and nothing is told to it."""
        if isinstance(error, aiohttp.WSServerHandshakeError) and error.status == 403 and error.headers:
            return refused_by(error.headers, self._wall())
        failed = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else None
        if not isinstance(failed, Outdated):
            return explain(error)
        skew = None
        try:
            async with (
                asyncio.timeout(CLOCK_SECONDS),
                self._session.get(
                    url_of(address, LINK_PATH),
                    ssl=self._timeless,
                    server_hostname=expected or self._hive,
                    headers=self._clock(),
                    allow_redirects=False,
                ) as response,
            ):
                skew = skew_of(response.headers, self._wall())
        except (aiohttp.ClientError, OSError, TimeoutError, DialError):
            skew = None  # then the two possible causes are named
        detail = failed.paper.trouble(self._wall(), skew) or str(failed.args[-1])
        return DialError(LinkEnd.identity, detail, fault=Refusing.expired, skew=skew)

    def _clock(self) -> dict[str, str]:
        return {CLOCK_HEADER: f"{self._wall():.3f}"}

    async def close(self) -> None:
        await self._session.close()


def shown_by(connection: ssl.SSLObject | None, hive_id: str) -> Paper:
    """The certificate of the node at the other end of a finished TLS handshake; the caller looks whether it is valid
    now. Raises Refused without one of the hive."""
    certificate = connection.getpeercert(True) if connection is not None else None
    if certificate is None:
        raise Refused(
            "The other side showed no certificate.", fix="Only members of the hive may do this: join it first."
        )
    return read_certificate(certificate, hive_id)


def skew_of(headers: Mapping[str, str], now: float) -> float | None:
    """By how many seconds the sender's clock is ahead of ours; None if it did not say."""
    try:
        told = float(headers.get(CLOCK_HEADER, ""))
    except ValueError:
        return None
    return told - now if 0.0 <= told < 1e11 else None


def explain(error: BaseException) -> DialError:
    """What a failed connection attempt says about the other side."""
    match error:
        case DialError():
            return error
        case InvalidInput():
            return DialError(LinkEnd.unreachable, str(error))
        case aiohttp.ClientConnectorCertificateError():
            foreign = getattr(error.certificate_error, "verify_code", 0) in X509_FOREIGN
            fault = Refusing.hive if foreign else Refusing.identity
            return DialError(LinkEnd.identity, certificate_trouble(error.certificate_error), fault=fault)
        case aiohttp.ClientConnectorSSLError():
            return DialError(LinkEnd.identity, f"no TLS handshake: {error.os_error}")
        case aiohttp.ClientConnectorDNSError():
            return DialError(LinkEnd.unreachable, f"the name {error.host} is not known")
        case aiohttp.ClientConnectorError():
            return _explain_os(error.os_error)
        case aiohttp.WSServerHandshakeError():
            return _explain_status(error.status, error.headers or {})
        case aiohttp.ServerDisconnectedError():
            return DialError(
                LinkEnd.reset, "the other side broke the connection off during the handshake; its log says why"
            )
        case TimeoutError():
            return DialError(LinkEnd.unreachable, "no answer in time")
        case OSError():
            return _explain_os(error)
        case _:
            return DialError(LinkEnd.reset, repr(error))


def certificate_trouble(error: Exception) -> str:
    """A failed certificate check in words."""
    code = getattr(error, "verify_code", 0)
    if code in X509_FOREIGN:
        return "whoever answers there is of another hive"
    if code == X509_NOT_YET_VALID:
        return "its certificate is not valid yet: the clock of this machine is behind, or that one's was ahead"
    if code == X509_EXPIRED:
        return "its certificate has expired: the clock of this machine is ahead, or the certificate was not renewed"
    return getattr(error, "verify_message", "") or str(error.args[-1] if error.args else error)


def _explain_os(error: OSError) -> DialError:
    if isinstance(error, ssl.SSLError):
        return DialError(LinkEnd.identity, f"refused by the other side's TLS: {error}")
    if isinstance(error, ConnectionRefusedError) or error.errno == errno.ECONNREFUSED:
        return DialError(LinkEnd.refused, "connection refused: nothing listens there")
    if isinstance(error, ConnectionError) or error.errno in (errno.ECONNRESET, errno.EPIPE):
        return DialError(LinkEnd.reset, "connection broken during the handshake")
    return DialError(LinkEnd.unreachable, error.strerror or str(error) or "unreachable")


def refused_by(headers: Mapping[str, str], now: float | None) -> DialError:
    """What a 403 says: the other side finds fault with us, and its clock may be the reason."""
    said = headers.get(FAULT_HEADER, "")
    fault = Refusing(said) if said in set(Refusing) else None
    reason = headers.get(REASON_HEADER, "")[:500].rstrip(".") or "it does not say why"
    skew = skew_of(headers, now) if now is not None else None
    off = f"; its clock is {gap(skew)} ours" if skew is not None and abs(skew) >= SKEW_WORTH_NAMING else ""
    return DialError(LinkEnd.identity, f"it turns this node away: {reason}{off}", fault=fault, refused=True, skew=skew)


def _explain_status(status: int, headers: Mapping[str, str]) -> DialError:
    reason = headers.get(REASON_HEADER, "")[:500]
    if status == 403:
        return refused_by(headers, None)
    if status == 503:
        return DialError(LinkEnd.reset, reason or "the other side has no room for another link")
    return DialError(LinkEnd.protocol, reason or f"unexpected HTTP status {status}")


async def _no_redirects(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise DialError(LinkEnd.protocol, "the other side answered with a redirect")
    return response
