"""Addresses as people write them."""

from __future__ import annotations

import ipaddress
import re


def ip_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IP address") from None
    return text


def full_address(text: str, port: int) -> str:
    """HOST, HOST:PORT, IPv6 or [IPv6]:PORT, as HOST:PORT. Raises ValueError.

    Args:
        port: where none is given; 0 if one must be.
    """
    host, given = text, ""
    if match := re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", text):
        host, given = ip_address(match[1]), match[2] or ""
    elif text.count(":") == 1:
        host, _, given = text.partition(":")
    elif ":" in text:
        ip_address(text)
    if not host or re.search(r"[\s/@\[\]]", host):
        raise ValueError(f"'{text}' is not an address; give HOST or HOST:PORT")
    if given and not (given.isdecimal() and 1 <= int(given) <= 65535):
        raise ValueError(f"'{text}' does not end in a port from 1 to 65535")
    if not given and port == 0:
        raise ValueError(f"'{text}' needs a port, since port is 0 (any)")
    joined = f"[{host}]" if ":" in host else host
    return f"{joined}:{given or port}"
