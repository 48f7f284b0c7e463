"""The reading end of a TLS connection: whole windows are taken from the system at once, then decrypted record by
record. `SSLSocket` asks the system twice for each record of 16 KiB, which costs half as much again."""

from __future__ import annotations

import contextlib
import socket
import ssl

WINDOW = 256 * 1024
"""Bytes taken at a time."""


class Incoming:
    """Shakes hands on construction, within the timeout set on the socket. `sever` is safe from any thread, the rest
    is for one.

    Raises:
        OSError: the other side does not speak TLS 1.3 or is not trusted; the socket is closed.
    """

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._raw = raw
        self._encrypted, self._answers = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._encrypted, self._answers, server_side=server_side)
        self._window = memoryview(bytearray(WINDOW))
        try:
            while not self._shaken():
                self._take()
        except OSError:
            raw.close()
            raise

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._answer()
        return True

    def _take(self) -> None:
        count = self._raw.recv_into(self._window)
        if count == 0:
            raise ssl.SSLEOFError("the connection ended")
        self._encrypted.write(self._window[:count])

    def _answer(self) -> None:
        if self._answers.pending:
            self._raw.sendall(self._answers.read())

    def recv_into(self, target: memoryview) -> int:
        """Some bytes, at least one; 0 at the end of the stream. Raises OSError."""
        while True:
            try:
                count: int = self._tls.read(len(target), target)  # type: ignore[assignment]
                return count
            except ssl.SSLWantReadError:
                self._answer()
                try:
                    self._take()
                except ssl.SSLEOFError:
                    return 0
            except ssl.SSLZeroReturnError:
                return 0

    def sendall(self, data: bytes) -> None:
        """For greetings. Raises OSError."""
        self._tls.write(data)
        self._answer()

    def getpeercert(self) -> bytes:
        """In DER; empty when there is none."""
        return self._tls.getpeercert(binary_form=True) or b""

    def settimeout(self, seconds: float | None) -> None:
        self._raw.settimeout(seconds)

    def sever(self) -> None:
        """Make a thread that reads get the end of the stream."""
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._raw.close()
