"""Keeping at it: dialling a wanted node, or a seed, for as long as there is no link."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DialLimits:
    """Timing of dials, seconds."""

    attempt_seconds: float = 5.0
    """TCP, TLS and hello together."""
    backoff_seconds: float = 0.5
    backoff_cap_seconds: float = 30.0
    breath_seconds: float = 0.05
    """Between attempts at least, however urgent."""
    stable_seconds: float = 30.0
    """A link that held this long makes the backoff start again."""
    young_seconds: float = 2.0
    """A link is not replaced before it is so old."""
    seed_quiet_seconds: float = 60.0
    """Between dials of a seed while some link is up."""


class Backoff:
    """Full-jitter exponential backoff (Brooker, "Exponential Backoff and Jitter", 2015): waits are uniform in
    [0, min(cap, base * 2^n)]."""

    def __init__(self, limits: DialLimits, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._attempt = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        limit = min(self._limits.backoff_cap_seconds, self._limits.backoff_seconds * 2.0**self._attempt)
        if limit < self._limits.backoff_cap_seconds:
            self._attempt += 1
        return self._rng.uniform(0.0, limit)

    def reset(self) -> None:
        self._attempt = 0


class Wanted:
    """Dials one node until there is a link, and again whenever the link is gone.

    Args:
        dial: one attempt at an address; reports its failure itself.
        linked: whether there is a link now.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        *,
        dial: Callable[[str], Awaitable[None]],
        linked: Callable[[], bool],
        limits: DialLimits,
        rng: random.Random,
    ) -> None:
        self.addresses = self._given = addresses
        self._dial = dial
        self._linked = linked
        self._limits = limits
        self._backoff = Backoff(limits, rng)
        self._wake = asyncio.Event()
        self._now = False
        self._up_since = 0.0

    def hurry(self) -> None:
        """Do not wait for the backoff, unless it was just tried: two that throw each other out must not spin."""
        self._now = True
        self._wake.set()

    def move(self, addresses: tuple[str, ...]) -> None:
        """Dial these from here on, and at once if there is no link."""
        if addresses == self._given:
            return
        self.addresses = self._given = addresses
        self._backoff.reset()
        if not self._linked():
            self.hurry()

    def link_up(self, now: float, address: str) -> None:
        """`address` goes first from here on, if it is one of ours."""
        self._up_since = now
        if address in self.addresses:
            self.addresses = tuple(dict.fromkeys((address, *self.addresses)))

    def link_down(self, now: float) -> None:
        if now - self._up_since >= self._limits.stable_seconds:
            self._backoff.reset()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for address in self.addresses:
                if not self._linked():
                    await self._dial(address)
            while self._linked():
                self._now = False
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(self._limits.breath_seconds)
            await self._pause()

    async def _pause(self) -> None:
        self._wake.clear()
        if not self._now:
            try:
                async with asyncio.timeout(self._backoff.next()):
                    while not self._now:
                        await self._wake.wait()
                        self._wake.clear()
            except TimeoutError:
                pass
        self._now = False


async def keep_seed(
    dial: Callable[[], Awaitable[bool]],
    *,
    lonely: asyncio.Event,
    reached: Callable[[], bool],
    limits: DialLimits,
    rng: random.Random,
) -> None:
    """Dial a seed until any link is up, then rarely. Returns only when the seed turns out to be this node.

    Args:
        dial: one attempt; False when it led to ourselves.
        lonely: set while there is no link at all.
        reached: whether the node that last answered there need not be dialled there.
    """
    backoff = Backoff(limits, rng)
    while True:
        if not reached() and not await dial():
            return
        if lonely.is_set():
            await asyncio.sleep(backoff.next())
            continue
        backoff.reset()
        try:
            async with asyncio.timeout(limits.seed_quiet_seconds * rng.uniform(0.5, 1.5)):
                await lonely.wait()
        except TimeoutError:
            pass
