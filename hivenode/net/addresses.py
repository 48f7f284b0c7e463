"""`host:port` and `[v6]:port`: taking them apart and putting them together."""

from __future__ import annotations

import ipaddress

from yarl import URL

from hivenode.errors import InvalidInput


def split_address(address: str) -> tuple[str, int]:
    """Host (no brackets) and port.

    Raises:
        InvalidInput: not of the form `host:port` or `[v6]:port`.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    valid = bool(colon and bare) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not valid or (":" in bare) != bracketed or any(c.isspace() or c in "/@?#" for c in bare):
        raise InvalidInput(f"{address!r} is not an address.", fix="Write host:port, or [v6-address]:port.")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is this machine only. Names other than `localhost` count as outside ones."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(address: str, path: str) -> URL:
    """Raises InvalidInput."""
    host, port = split_address(address)
    try:
        return URL.build(scheme="https", host=host, port=port, path=path)
    except ValueError as error:
        raise InvalidInput(f"{address!r} is not an address.", fix="Write host:port, or [v6-address]:port.") from error
