"""Connections that have not shown the node's token: any user of the machine can open them, and keep them open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from hivenode.net.listener import Watched


@dataclass(frozen=True)
class Bounds:
    """Of the admin endpoint.

    Attributes:
        head_seconds: for a request's line and headers, from the connection's beginning or the answer before.
        strangers: connections without the token; the oldest makes room for another, so that they shut nobody out.
        line_bytes, headers: of a request, each line of it, and how many there are.
    """

    head_seconds: float = 10.0
    strangers: int = 128
    line_bytes: int = 4096
    headers: int = 64


class Doorstep:
    """Who stands there.

    Args:
        most: connections without the token.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._strangers: dict[_Visitor, None] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._strangers)

    def watched(self, inner: asyncio.Protocol) -> asyncio.Protocol:
        """The web server's protocol for one connection."""
        return _Visitor(inner, self)

    def known(self, request: web.Request) -> None:
        """A request has shown the token: its connection is the owner's."""
        visitor = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(visitor, _Visitor):
            self.gone(visitor)

    def arrived(self, visitor: _Visitor) -> None:
        if len(self._strangers) >= self._most:
            oldest = next(iter(self._strangers))
            self.gone(oldest)
            oldest.end()
        self._strangers[visitor] = None

    def gone(self, visitor: _Visitor) -> None:
        self._strangers.pop(visitor, None)


class _Visitor(Watched):
    def __init__(self, inner: asyncio.Protocol, doorstep: Doorstep) -> None:
        super().__init__(inner, lambda: doorstep.gone(self))
        self._doorstep = doorstep

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._doorstep.arrived(self)
        super().connection_made(transport)

    def end(self) -> None:
        self._transport.abort()
