"""Dialling an address to find out what is wrong with it, step by step, without making a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp

from hivenode.errors import InvalidInput
from hivenode.net.addresses import split_address
from hivenode.net.dialing import LINK_PATH, REASON_HEADER, Dialer, DialError, explain, refused_by, skew_of
from hivenode.net.transport import LinkEnd, Refusing

BUILD_HEADER = "X-Hive-Build"
PROTOCOLS_HEADER = "X-Hive-Protocols"
FORBIDDEN = 403
UPGRADE_REQUIRED = 426
STEP_SECONDS = 4.0


@dataclass(frozen=True)
class Probe:
    """What came of it.

    Args:
        tcp: a connection could be opened.
        identity: TLS was made and the expected node answered.
        build, protocols: what it says of itself, "" if nothing.
        skew_seconds: how far its clock is ahead of ours, to about a second; None if it did not say.
        why, error: what went wrong, None and "" if nothing.
    """

    address: str
    tcp: bool = False
    identity: bool = False
    build: str = ""
    protocols: str = ""
    skew_seconds: float | None = None
    why: LinkEnd | None = None
    error: str = ""
    fault: Refusing | None = None
    """Of an `identity` failure, what is the matter, if that is known."""
    refused: bool = False
    """It is the other side that finds fault with us."""


async def probe(
    dialer: Dialer, address: str, expected: str, wall: Callable[[], float], *, step_seconds: float = STEP_SECONDS
) -> Probe:
    """Try an address where the node `expected` should be.

    Args:
        wall: seconds since 1970.
        step_seconds: for TCP, and then for TLS and the answer.
    """
    try:
        async with asyncio.timeout(step_seconds):
            _, writer = await asyncio.open_connection(*split_address(address))
            writer.close()
    except (OSError, TimeoutError, InvalidInput) as error:
        return _failed(address, explain(error))
    try:
        async with asyncio.timeout(step_seconds):
            began = wall()
            async with dialer.get(address, LINK_PATH, expected, {}) as response:
                ended = wall()
                headers, status = response.headers, response.status
    except (aiohttp.ClientError, OSError, TimeoutError, DialError) as error:
        failure = await dialer.explain(error, address, expected)
        return _failed(address, failure, tcp=True, identity=failure.why is not LinkEnd.identity)
    skew = _skew(headers, (began + ended) / 2)
    build, protocols = headers.get(BUILD_HEADER, "")[:64], headers.get(PROTOCOLS_HEADER, "")[:16]
    if status == UPGRADE_REQUIRED:
        return Probe(address, True, True, build, protocols, skew)
    if status == FORBIDDEN:
        refusal = refused_by(headers, (began + ended) / 2)
        return Probe(
            address, True, True, build, protocols, skew, refusal.why, str(refusal), refusal.fault, refusal.refused
        )
    reason = headers.get(REASON_HEADER, "")[:500] or f"unexpected HTTP status {status}"
    return Probe(address, True, True, build, protocols, skew, LinkEnd.protocol, reason)


def _failed(address: str, failure: DialError, *, tcp: bool = False, identity: bool = False) -> Probe:
    return Probe(
        address,
        tcp,
        identity,
        skew_seconds=failure.skew,
        why=failure.why,
        error=str(failure),
        fault=failure.fault,
        refused=failure.refused,
    )


def _skew(headers: Mapping[str, str], ours: float) -> float | None:
    """An older build has only the Date header, which tells whole seconds, rounded down: half a second is what it
    lacks on average."""
    if (told := skew_of(headers, ours)) is not None:
        return told
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp() + 0.5 - ours
    except (TypeError, ValueError):
        return None
