"""Who may ask what of the admin endpoint. Pure.

It listens on loopback, but a browser on this machine will fetch loopback addresses for any page it shows. So the Host
header must name this machine (or a page could rebind its own name to 127.0.0.1), an Origin must be local, and whatever
changes something, or shows more than how the node is, needs the token that only the node's owner can read.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from hivenode.errors import InvalidInput, Refused

OPEN = frozenset({("GET", "/health"), ("GET", "/v1/status"), ("GET", "/metrics")})
"""Answered without a token: how the node is, and nothing else."""


class Unauthorized(Refused):
    """The token is missing or wrong."""

    http_status = 401


def check(method: str, path: str, *, host: str, origin: str | None, authorization: str, token: str) -> None:
    """Let a request through or say why not.

    Args:
        host: the Host header, "" if absent.
        origin: the Origin header, None if absent.
        authorization: the Authorization header, "" if absent.

    Raises:
        Refused: Host or Origin is not this machine.
        Unauthorized: the token is missing or wrong.
    """
    if not is_local(host):
        raise Refused(
            f"The Host header {host[:100]!r} does not name this machine.",
            fix="Use http://127.0.0.1 or http://localhost; from elsewhere, tunnel with ssh -L.",
        )
    if origin is not None and not _local_origin(origin):
        raise Refused(
            f"Pages of {origin[:100]!r} may not use this endpoint.", fix="Only pages of this machine itself may."
        )
    if (method, path) in OPEN:
        return
    if not shows(authorization, token):
        raise Unauthorized(
            "This needs the node's admin token." if not authorization else "That is not this node's admin token.",
            fix='Send the content of admin.token in the node\'s home as "Authorization: Bearer TOKEN".',
        )


def shows(authorization: str, token: str) -> bool:
    """Whether an Authorization header brings the token."""
    scheme, _, given = authorization.partition(" ")
    return bool(token) and scheme.lower() == "bearer" and hmac.compare_digest(_bytes(given.strip()), _bytes(token))


def _bytes(header: str) -> bytes:
    """As they came: what is no UTF-8 stands in a header as surrogates."""
    return header.encode("utf-8", "surrogateescape")


def is_local(host: str) -> bool:
    """Whether a `host` or `host:port` is localhost, 127.0.0.1 or [::1] (the port does not matter)."""
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not name:
        name, port = host, ""
    return name.lower() in ("localhost", "127.0.0.1", "[::1]") and (not port or port.isdecimal())


def _local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_local(parts.netloc)


def check_loopback(host: str) -> None:
    """Raises InvalidInput if an address to listen on is reachable from other machines."""
    if host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidInput(
            f"The admin endpoint may only listen on this machine, not on {host}.",
            fix="Set admin.host to 127.0.0.1 or ::1; from elsewhere, tunnel with ssh -L.",
        )
