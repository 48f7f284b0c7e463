"""`python tests/network/relay.py PORT SECONDS`: what reaches this port is passed on, late, to where it was meant to go.

Runs inside a host's namespace, where a rule sends all that comes in to it (`Host.delay`). Both directions are delayed;
what is under way keeps its order. Stands in for netem, which not every kernel has.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

_SO_ORIGINAL_DST = 80
_CHUNK = 65536
_UNDER_WAY = 256
"""Chunks held back at most, each way."""


def meant_for(connection: socket.socket) -> tuple[str, int]:
    """Where a redirected connection was going (linux/netfilter_ipv4.h)."""
    _, port, address = struct.unpack("!HH4s8x", connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(address), port


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)

    async def take() -> None:
        while data := await source.read(_CHUNK):
            await held.put((loop.time() + seconds, data))
        await held.put((loop.time() + seconds, b""))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, data = await held.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                target.write_eof()
                return
            target.write(data)
            await target.drain()
    finally:
        taking.cancel()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    address, port = meant_for(writer.get_extra_info("socket"))
    try:
        await asyncio.sleep(seconds)
        other, to_other = await asyncio.open_connection(address, port)
    except OSError:
        writer.transport.abort()  # nobody listens: the dialler is told so
        return
    try:
        await asyncio.gather(pass_on(reader, to_other, seconds), pass_on(other, writer, seconds))
    except OSError:
        writer.transport.abort()
        to_other.transport.abort()
    finally:
        writer.close()
        to_other.close()


async def main(port: int, seconds: float) -> None:
    server = await asyncio.start_server(lambda reader, writer: serve(reader, writer, seconds), "0.0.0.0", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
