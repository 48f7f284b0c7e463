"""Addresses and the networks they are in."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def within(address: str, subnets: Iterable[str]) -> bool:
    """Whether an IP address is in one of these networks. A name, which may stand for any address, is in none."""
    try:
        ip = ipaddress.ip_address(address)
        return any(ip in ipaddress.ip_network(subnet) for subnet in subnets)
    except ValueError:
        return False
