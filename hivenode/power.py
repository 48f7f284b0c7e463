"""Whether this machine runs on battery."""

from __future__ import annotations

import asyncio

import psutil

from hivenode.logs import get_logger

LOOK_SECONDS = 10.0

log = get_logger("power")


class Power:
    """What the machine was last seen to run on. A machine without a battery, or of which nothing can be known (no
    /sys/class/power_supply), runs on mains."""

    def __init__(self) -> None:
        self.on_battery = False

    async def watch(self) -> None:
        """Look every `LOOK_SECONDS`."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """In a thread: asking a battery can take the firmware a while."""
        self.on_battery = await asyncio.to_thread(_on_battery)


def _on_battery() -> bool:
    try:
        battery = psutil.sensors_battery()
    except (
        OSError,
        RuntimeError,
        ValueError,
        AttributeError,
    ) as error:  # firmware lies, or the platform has no such thing
        log.debug("the battery cannot be read", reason=repr(error))
        return False
    return battery is not None and battery.power_plugged is False
