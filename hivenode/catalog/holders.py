"""Who keeps which bytes: bringing blobs here, and seeing to it that others keep a copy of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hivenode.errors import HiveError, Unavailable
from hivenode.logs import get_logger
from hivenode.net.messages import Held, Hold, Request, Response
from hivenode.net.transport import Transport
from hivenode.spec.events import BlobHeld, Body
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore

HOLD_SECONDS = 120.0
TOUCHED_SECONDS = 120.0

log = get_logger("holders")


class Keeper:
    """Moves blobs between this node and others.

    Args:
        call: asks another node and awaits the answer (peer, request, timeout in seconds).
        append: states facts in our own feed.
    """

    def __init__(
        self,
        *,
        me: str,
        transport: Transport,
        call: Callable[[str, Request, float], Awaitable[Response]],
        blobs: BlobStore,
        append: Callable[[Body], Awaitable[None]],
    ) -> None:
        self._me = me
        self._transport = transport
        self._call = call
        self._blobs = blobs
        self._append = append
        self._touched: dict[str, float] = {}

    async def obtain(self, ref: BlobRef, holders: Sequence[str]) -> None:
        """Have a blob here, from whichever holder can be reached. Raises Unavailable naming each failure."""
        if self._blobs.has(ref.digest):
            return
        failures: list[str] = []
        for holder in holders:
            if holder == self._me:
                continue
            if not self._transport.reaches(holder):
                failures.append(f"{holder[:8]} is not connected")
                continue
            try:
                await self._transport.fetch(holder, ref, self._blobs)
            except HiveError as error:
                failures.append(f"{holder[:8]}: {error.sentence}")
            else:
                return
        failures = failures or ["nobody else is known to hold them"]
        raise Unavailable(
            f"The bytes {ref.digest[:12]} ({ref.size} B) cannot be had: {'; '.join(failures[:8])}.",
            fix="Start one of the nodes that hold them.",
        )

    async def copy_out(
        self, ref: BlobRef, candidates: Sequence[str], copies: int, *, announce: bool
    ) -> tuple[str, ...]:
        """Have up to `copies` other nodes keep a blob that is here; returns those that do."""
        kept: list[str] = []
        for candidate in candidates:
            if len(kept) >= copies:
                break
            if candidate == self._me or not self._transport.reaches(candidate):
                continue
            try:
                answer = await self._call(candidate, Hold(blob=ref, announce=announce), HOLD_SECONDS)
            except HiveError as error:
                log.warning("a copy could not be placed", peer=candidate, blob=ref.digest[:12], reason=error.sentence)
                continue
            if isinstance(answer, Held) and answer.digest == ref.digest:
                kept.append(candidate)
        return tuple(kept)

    def having(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Which of these are here."""
        return tuple(digest for digest in digests if self._blobs.has(digest))

    def touch(self, digest: str) -> None:
        """Somebody is about to state that this is kept here: not to be tidied away meanwhile."""
        now = asyncio.get_running_loop().time()
        self._touched = {d: at for d, at in self._touched.items() if now - at < TOUCHED_SECONDS} | {digest: now}

    def touched(self, digest: str) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._touched.get(digest, -TOUCHED_SECONDS) < TOUCHED_SECONDS

    async def hold(self, peer: str, request: Hold) -> Held:
        """Serve another node's wish that we keep its bytes."""
        self.touch(request.blob.digest)
        if not self._blobs.has(request.blob.digest):
            await self._transport.fetch(peer, request.blob, self._blobs)
            self.touch(request.blob.digest)
        if request.announce:
            await self._append(BlobHeld(digest=request.blob.digest, size=request.blob.size))
        return Held(digest=request.blob.digest)
