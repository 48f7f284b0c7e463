"""Opening verified connections to other nodes, and saying precisely why one could not be opened."""

from __future__ import annotations

import errno
import ssl
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from hivenode.errors import InvalidInput, Refused
from hivenode.net.addresses import url_of
from hivenode.net.link import MAX_WEBSOCKET_MESSAGE, LinkLimits
from hivenode.net.messages import PROTOCOL
from hivenode.net.transport import LinkEnd
from hivenode.trust.credentials import Credentials, peer_id

LINK_PATH = "/link"
X509_NOT_YET_VALID = 9
X509_EXPIRED = 10


class DialError(Exception):
    """A connection could not be opened; the text is the detail for a person."""

    def __init__(self, why: LinkEnd, detail: str) -> None:
        super().__init__(detail)
        self.why = why


def verifying(context: ssl.SSLContext, hive_id: str) -> ssl.SSLContext:
    """Make a client context check, at the end of the TLS handshake and so before anything is sent, that the server is
    the one meant: its server name must be the expected node id, or the hive's id if any of its nodes will do."""

    class VerifiedConnection(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            certificate = self.getpeercert(True)
            if certificate is None:
                raise ssl.SSLCertVerificationError(1, "the server showed no certificate")
            try:
                found = peer_id(certificate, hive_id)
            except Refused as error:
                raise ssl.SSLCertVerificationError(1, error.sentence) from error
            if self.server_hostname not in (hive_id, found):
                raise ssl.SSLCertVerificationError(1, f"node {found} answered instead of {self.server_hostname}")

    context.sslobject_class = VerifiedConnection
    return context


class Dialer:
    """Connections of this node to others, all with its certificate and all verified.

    Args:
        limits: of the links.
    """

    def __init__(self, credentials: Credentials, limits: LinkLimits) -> None:
        self._hive = credentials.hive_id
        self._limits = limits
        self._context = verifying(credentials.client_context(), credentials.hive_id)
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
        self._context = verifying(credentials.client_context(), credentials.hive_id)

    async def link(self, address: str, expected: str) -> tuple[aiohttp.ClientWebSocketResponse, str]:
        """A websocket to the node `expected`, or to any node of the hive if that is "", and the id of who answered.
        The caller sets the deadline.

        Raises:
            DialError: with the reason, as precise as it can be known.
        """
        try:
            socket = await self._session.ws_connect(
                url_of(address, LINK_PATH),
                protocols=(PROTOCOL,),
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
            raise explain(error) from error
        if socket.protocol != PROTOCOL:
            await socket.close()
            raise DialError(LinkEnd.protocol, f"the node at {address} does not speak {PROTOCOL}")
        return socket, connected_to(socket.get_extra_info("ssl_object"), self._hive)

    def get(self, address: str, path: str, expected: str, headers: dict[str, str]) -> Any:
        """An HTTP GET from the node `expected`, as an asynchronous context manager. Raises what `explain` explains."""
        return self._session.get(
            url_of(address, path),
            ssl=self._context,
            server_hostname=expected,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=30.0),
        )

    async def close(self) -> None:
        await self._session.close()


def connected_to(connection: ssl.SSLObject | None, hive_id: str) -> str:
    """The id of the node at the other end of a finished TLS handshake. Raises Refused without a certificate of the
    hive."""
    certificate = connection.getpeercert(True) if connection is not None else None
    if certificate is None:
        raise Refused(
            "The other side showed no certificate.", fix="Only members of the hive may do this: join it first."
        )
    return peer_id(certificate, hive_id)


def explain(error: BaseException) -> DialError:
    """What a failed connection attempt says about the other side."""
    match error:
        case DialError():
            return error
        case InvalidInput():
            return DialError(LinkEnd.unreachable, str(error))
        case aiohttp.ClientConnectorCertificateError():
            return DialError(LinkEnd.identity, certificate_trouble(error.certificate_error))
        case aiohttp.ClientConnectorSSLError():
            return DialError(LinkEnd.identity, f"no TLS handshake: {error.os_error}")
        case aiohttp.ClientConnectorDNSError():
            return DialError(LinkEnd.unreachable, f"the name {error.host} is not known")
        case aiohttp.ClientConnectorError():
            return _explain_os(error.os_error)
        case aiohttp.WSServerHandshakeError():
            return _explain_status(error.status, error.headers.get("X-Hive-Reason", "") if error.headers else "")
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


def _explain_status(status: int, reason: str) -> DialError:
    if status in (401, 403):
        return DialError(LinkEnd.identity, reason or "refused by the other side")
    if status == 503:
        return DialError(LinkEnd.reset, reason or "the other side has no room for another link")
    return DialError(LinkEnd.protocol, reason or f"unexpected HTTP status {status}")


async def _no_redirects(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise DialError(LinkEnd.protocol, "the other side answered with a redirect")
    return response
