"""A TLS connection between two workers, by way of OpenSSL's memory buffers: whole windows are taken from the system and
given to it, and what is in them is decrypted and encrypted record by record. `SSLSocket` asks the system twice for each
record of 16 KiB and gives it each one alone, which costs half as much again."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

from hivenode.training.exchange.clock import now

WINDOW = 256 * 1024
"""Bytes taken from the system or given to it at a time."""


class LinkBroken(Exception):
    """The connection ended."""


class Channel:
    """Shakes hands on construction. `sever` is safe from any thread; the rest is for one, after the greeting in one
    direction only.

    Args:
        raw: connected; closed with this.
        until: by `clock.now`; when the other side has to have been heard out, however little it says at a time.

    Raises:
        OSError: the other side does not speak TLS 1.3, is not trusted or too slow; the socket is closed.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, *, server_side: bool, until: float) -> None:
        self._raw, self._until = raw, float("inf")
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=server_side)
        self._window = memoryview(bytearray(0))
        try:
            self.wait_until(until)
            while not self._shaken():
                self._take()
        except (OSError, LinkBroken) as error:
            raw.close()
            if isinstance(error, LinkBroken):
                raise ssl.SSLEOFError("the connection ended") from error
            raise

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._give()
        return True

    def wait_until(self, moment: float) -> None:
        """How long to wait for the other side from now on; infinity: for ever."""
        self._until = moment
        self._raw.settimeout(None if moment == float("inf") else max(0.001, moment - now()))

    @property
    def certificate(self) -> bytes:
        """The other side's, in DER; empty when there is none."""
        return self._tls.getpeercert(binary_form=True) or b""

    # --- reading ---------------------------------------------------------------------------------------------

    def fill(self, target: memoryview, heard: Callable[[], None] | None = None) -> None:
        """Read exactly so many bytes. `heard` is called whenever something has come.

        Raises:
            LinkBroken: the stream ended.
            OSError: something else is wrong with it.
        """
        read, left = self._tls.read, len(target)
        while left:
            try:
                count: int = read(left, target)  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                self._give()
                self._take()
                if heard is not None:
                    heard()
                continue
            except ssl.SSLZeroReturnError:
                raise LinkBroken from None
            left -= count
            if left:
                target = target[count:]

    def _take(self) -> None:
        if not self._window:
            self._window = memoryview(bytearray(WINDOW))
        if self._until != float("inf"):
            self.wait_until(self._until)
        count = self._raw.recv_into(self._window)
        if count == 0:
            raise LinkBroken
        self._received.write(self._window[:count])

    # --- writing ---------------------------------------------------------------------------------------------

    def send(self, *parts: bytes | memoryview) -> None:
        """All of it, one after the other. Raises OSError."""
        write, held = self._tls.write, 0
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                count = write(view)
                view, held = view[count:], held + count
                if held >= WINDOW:
                    self._give()
                    held = 0
        self._give()

    def _give(self) -> None:
        if self._to_send.pending:
            self._raw.sendall(self._to_send.read())

    # --- ending ----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Nothing more will be sent: the other side reads the end."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_WR)

    def sever(self) -> None:
        """End it at once: a thread that reads gets the end of the stream, one that writes an error."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._raw.close()
