"""The event stream of the admin endpoint: server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import web

from hivenode.admin.answers import HEADERS
from hivenode.errors import Exhausted
from hivenode.spec.status import MISSED, NodeService, Notice

KEEP_ALIVE_SECONDS = 10.0
MAX_READERS = 64
RETRY_MS = 500
MAX_ID = 64


class Streams:
    """All open streams of one endpoint.

    Args:
        keep_alive_seconds: how often a silent stream carries a comment, which also finds readers that are gone.
    """

    def __init__(self, service: NodeService, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._service = service
        self._keep_alive = keep_alive_seconds
        self._open: dict[asyncio.Task[Any], None] = {}

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One stream, until its reader or the endpoint goes. Raises Exhausted when too many are open.

        `GET /v1/events?kind=job&kind=progress` gives only those kinds, `?job=ID` only what concerns that job (and
        what concerns none). A reader that comes back names the last `id` it has seen in the header `Last-Event-ID`.
        """
        if len(self._open) >= MAX_READERS:
            raise Exhausted(f"{MAX_READERS} readers follow the events already.", fix="Close some and try again.")
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = None
        notices = self._service.notices(request.headers.get("Last-Event-ID", "")[:MAX_ID])
        following = asyncio.ensure_future(_next(notices))
        try:
            await asyncio.sleep(0)  # subscribed from here on: what the reader asks after the header is not a gap
            return await self._pump(request, notices, following)
        finally:
            del self._open[task]

    async def _pump(
        self, request: web.Request, notices: AsyncIterator[Notice], following: asyncio.Future[Notice | None]
    ) -> web.StreamResponse:
        kinds, job = request.query.getall("kind", []), request.query.get("job", "")
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        try:
            await response.prepare(request)
            await response.write(f"retry: {RETRY_MS}\n: following\n\n".encode())
            while True:
                done, _ = await asyncio.wait({following}, timeout=self._keep_alive)
                if not done:
                    await response.write(b": keep-alive\n\n")
                    continue
                notice = following.result()
                if notice is None:
                    break
                following = asyncio.ensure_future(_next(notices))
                if _wanted(notice, kinds, job):
                    await response.write(_encode(notice))
        except ConnectionError:  # lost while it waited to be read, reset when written to
            return response  # the reader went away
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            if (close := getattr(notices, "aclose", None)) is not None:
                await close()
        return response

    def close(self) -> None:
        """End every stream, so that the endpoint can stop."""
        for task in self._open:
            task.cancel()


async def _next(notices: AsyncIterator[Notice]) -> Notice | None:
    return await anext(notices, None)


def _wanted(notice: Notice, kinds: list[str], job: str) -> bool:
    about = notice.data.get("job", "")
    return notice.kind == MISSED or ((not kinds or notice.kind in kinds) and (not job or not about or about == job))


def _encode(notice: Notice) -> bytes:
    kind = notice.kind.replace("\n", " ")
    return f"id: {notice.id}\nevent: {kind}\ndata: ".encode() + msgspec.json.encode(notice) + b"\n\n"
