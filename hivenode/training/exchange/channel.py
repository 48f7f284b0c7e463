"""A TLS connection between two workers, by the OpenSSL that comes with `cryptography`: its AES is more than twice as
fast as that of the OpenSSL 3.0 that many Pythons have. It goes by way of memory buffers, so that whole windows are
taken from the system and given to it. Numbers are decrypted into the caller's arrays by OpenSSL's own calls, as
pyOpenSSL's would copy them once more.

For that, five names are used that neither package promises to keep: `Binding.lib.SSL_read` and `BIO_read`,
`Binding.ffi`, and `_ssl` and `_from_ssl` of `SSL.Connection`. There is no second way without them: it would be a slower
one that nobody tries. `tests/training/exchange/test_channel.py` looks at each, and is to be run before the versions in
`constraints.txt` are raised.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from hivenode.training.exchange.clock import now

WINDOW = 256 * 1024
"""Bytes taken from the system at a time."""
SENT = 128 * 1024
"""Bytes encrypted, and given to the system, at a time."""
ENVELOPE = 4 * 1024
"""Bytes by which so many grow at most when they are encrypted, in records of 16 KiB."""
UNREAD = 64 * 1024
"""Bytes that are looked for when a connection that was only written to is closed."""

_read, _take_encrypted, _pointer = Binding.lib.SSL_read, Binding.lib.BIO_read, Binding.ffi.from_buffer


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

    def __init__(self, raw: socket.socket, context: SSL.Context, *, server_side: bool, until: float) -> None:
        self._raw, self._until = raw, float("inf")
        self._tls = SSL.Connection(context, None)
        if server_side:
            self._tls.set_accept_state()
        else:
            self._tls.set_connect_state()
        self._window, self._encrypted = memoryview(b""), memoryview(bytearray(ENVELOPE))
        try:
            self.wait_until(until)
            while not self._shaken():
                self._take()
        except (OSError, LinkBroken, SSL.Error) as error:
            raw.close()
            if isinstance(error, OSError):
                raise
            raise ConnectionError("the connection ended" if isinstance(error, LinkBroken) else str(error)) from error

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
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
        found = self._tls.get_peer_certificate(as_cryptography=True)
        return b"" if found is None else found.public_bytes(Encoding.DER)

    # --- reading ---------------------------------------------------------------------------------------------

    def fill(self, target: memoryview, heard: Callable[[], None] | None = None) -> None:
        """Read exactly so many bytes. `heard` is called whenever something has come.

        Raises:
            LinkBroken: the stream ended.
            OSError: something else is wrong with it.
        """
        connection, start, at, size = self._tls._ssl, _pointer(target), 0, len(target)
        while at < size:
            count = _read(connection, start + at, size - at)
            if count > 0:
                at += count
            else:
                at += self._await(target[at:])
                if heard is not None:
                    heard()

    def _await(self, target: memoryview) -> int:
        """Nothing to read was at hand: why, or more of it. Returns bytes read nevertheless."""
        try:
            return self._tls.recv_into(target)
        except SSL.WantReadError:
            self._give()
            self._take()
            return 0
        except SSL.ZeroReturnError:
            raise LinkBroken from None
        except SSL.Error as error:
            raise ConnectionError(str(error)) from error

    def _take(self) -> None:
        if not self._window:
            self._window = memoryview(bytearray(WINDOW))
        if self._until != float("inf"):
            self.wait_until(self._until)
        count = self._raw.recv_into(self._window)
        if count == 0:
            raise LinkBroken
        self._tls.bio_write(self._window[:count])

    # --- writing ---------------------------------------------------------------------------------------------

    def send(self, *parts: bytes | memoryview) -> None:
        """All of it, one after the other. Raises OSError."""
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                if len(view) >= len(self._encrypted):
                    self._encrypted = memoryview(bytearray(SENT + ENVELOPE))
                for at in range(0, len(view), SENT):
                    self._tls.send(view[at : at + SENT])
                    self._give()
        except SSL.Error as error:
            raise ConnectionError(str(error)) from error

    def _give(self) -> None:
        target = _pointer(self._encrypted)
        while (count := _take_encrypted(self._tls._from_ssl, target, len(self._encrypted))) > 0:
            self._raw.sendall(self._encrypted[:count])

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
        # Unread bytes, such as the other side's session tickets, would turn this into a reset, which destroys what
        # is still under way.
        with contextlib.suppress(OSError):
            self._raw.setblocking(False)
            self._raw.recv(UNREAD)
        self._raw.close()
