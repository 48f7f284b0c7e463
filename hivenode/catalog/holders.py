"""Who keeps which bytes: bringing blobs here, and seeing to it that others keep a copy of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hivenode.errors import Corrupted, Exhausted, HiveError, Refused, Unavailable
from hivenode.logs import get_logger
from hivenode.net.messages import Having, Held, Hold, Request, Response
from hivenode.net.transport import Transport
from hivenode.spec.events import BlobHeld, Body
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore

HOLD_SECONDS = 120.0
TOUCHED_SECONDS = 120.0
HOLDS_PER_PEER = 2
"""Blobs fetched at one time because one peer wishes it."""
FREE_BYTES = 1 << 30
"""Of the disk, left free by what others want kept here."""

log = get_logger("holders")


class Keeper:
    """Moves blobs between this node and others.

    Args:
        call: asks another node and awaits the answer (peer, request, timeout in seconds).
        append: states facts in our own feed.
        room_bytes: of all blobs here, above which nothing more is kept for others.
        free: bytes left on the disk that they are on.
        concerns: concerns(peer, digest): whether somebody's bytes are any business of the hive: the peer works on a job
            that is open, or the bytes are named by a job or a model.
    """

    def __init__(
        self,
        *,
        me: str,
        transport: Transport,
        call: Callable[[str, Request, float], Awaitable[Response]],
        blobs: BlobStore,
        append: Callable[[Body], Awaitable[None]],
        room_bytes: int,
        free: Callable[[], int],
        concerns: Callable[[str, str], bool],
    ) -> None:
        self._me = me
        self._room_bytes = room_bytes
        self._free = free
        self._concerns = concerns
        self._coming: dict[str, dict[str, int]] = {}
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

    async def having(self, digests: Sequence[str]) -> Having:
        """Which of these are here, by their bytes, and which were until they were looked at."""
        whole: list[str] = []
        damaged: list[str] = []
        for digest in digests:
            try:
                if await self._blobs.verify(digest):
                    whole.append(digest)
            except Corrupted as error:
                log.error("damaged bytes", blob=digest[:12], reason=error.sentence, fix=error.fix)
                damaged.append(digest)
        return Having(tuple(whole), tuple(damaged))

    def touch(self, digest: str) -> None:
        """Somebody is about to state that this is kept here: not to be tidied away meanwhile."""
        now = asyncio.get_running_loop().time()
        self._touched = {d: at for d, at in self._touched.items() if now - at < TOUCHED_SECONDS} | {digest: now}

    def touched(self, digest: str) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._touched.get(digest, -TOUCHED_SECONDS) < TOUCHED_SECONDS

    async def hold(self, peer: str, request: Hold) -> Held:
        """Serve another node's wish that we keep its bytes.

        Raises:
            Refused: they are no business of the hive.
            Exhausted: there is no room, or this peer has asked for too much at once.
        """
        ref = request.blob
        if not self._blobs.has(ref.digest):
            if not self._concerns(peer, ref.digest):
                raise Refused(
                    f"Blob {ref.digest[:12]} belongs to no job or model that this node knows of.",
                    fix="Only what an open job makes, and models, are kept for others.",
                )
            self.touch(ref.digest)
            await self._take_in(peer, ref)
        self.touch(ref.digest)
        if request.announce:
            await self._append(BlobHeld(digest=ref.digest, size=ref.size))
        return Held(digest=ref.digest)

    async def _take_in(self, peer: str, ref: BlobRef) -> None:
        coming = self._coming.setdefault(peer, {})
        if ref.digest not in coming and len(coming) >= HOLDS_PER_PEER:
            raise Exhausted(f"{len(coming)} blobs of yours are being fetched already.", fix="Ask again when they are.")
        expected = sum(size for sizes in self._coming.values() for size in sizes.values())
        held = sum(blob.size for blob in self._blobs.digests())
        if held + expected + ref.size > self._room_bytes:
            raise Exhausted(
                f"Blobs take {held >> 20} MB here, and {ref.size >> 20} MB more are over the limit.",
                fix="Raise jobs.hold_gb there, or keep the copy on another node.",
            )
        if self._free() - expected - ref.size < FREE_BYTES:
            raise Exhausted(
                f"The disk has no room for {ref.size >> 20} MB of others.", fix="Free some space on that machine."
            )
        coming[ref.digest] = ref.size
        try:
            await self._transport.fetch(peer, ref, self._blobs)
        finally:
            coming.pop(ref.digest, None)
            if not coming:
                self._coming.pop(peer, None)
