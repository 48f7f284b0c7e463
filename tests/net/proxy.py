"""A TCP proxy on loopback that cuts connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on. `cuts`: for the n-th connection, after how many bytes towards the client it is broken off;
    connections beyond the list are whole."""

    def __init__(self, target: str, cuts: Sequence[int]) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._cuts = cuts
        self.connections = 0
        self.bytes_down = 0
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        left = self._cuts[number] if number < len(self._cuts) else 1 << 60
        server, to_server = await asyncio.open_connection(self._host, self._port)

        async def up() -> None:
            while data := await client.read(65536):
                to_server.write(data)
                await to_server.drain()

        pumping = asyncio.create_task(up())
        try:
            while left > 0 and (data := await server.read(min(65536, left))):
                left -= len(data)
                self.bytes_down += len(data)
                to_client.write(data)
                await to_client.drain()
        except ConnectionError:
            left = 0
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
            to_client.close()
            to_server.close()


@asynccontextmanager
async def proxy(target: str, cuts: Sequence[int] = (), receive_buffer: int = 0) -> AsyncIterator[Proxy]:
    """`receive_buffer`: bytes that the system takes from a client ahead of the proxy; 0 leaves it to the system."""
    one = Proxy(target, cuts)
    listening = socket.create_server(("127.0.0.1", 0))
    if receive_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(one.serve, sock=listening)
    one.port = listening.getsockname()[1]
    try:
        yield one
    finally:
        server.close()
