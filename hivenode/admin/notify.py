"""Telling the service manager how we are: sd_notify(3) over the datagram socket in NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

SEND_SECONDS = 1.0


def notify(state: str) -> bool:
    """Send `READY=1`, `STOPPING=1`, `STATUS=...`, `WATCHDOG=1` (lines may be joined by newlines).

    Returns:
        False when nobody asked to be told, or the service manager does not take it: a daemon runs on without it.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(SEND_SECONDS)
            channel.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """How often to send `WATCHDOG=1`: half of what the service manager set (WATCHDOG_USEC), None if it set nothing
    for this process."""
    wanted = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    with contextlib.suppress(ValueError):
        if int(wanted) == os.getpid() and (period := int(os.environ.get("WATCHDOG_USEC", "0"))) > 0:
            return period / 2_000_000
    return None


async def keep_watchdog() -> None:
    """Feed the watchdog from the event loop for as long as it turns; returns at once when there is none."""
    period = watchdog_seconds()
    while period is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period)
