"""What the channel needs of pyOpenSSL and cryptography beyond what they promise: an update that moves it ends here."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version

import pytest
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from hivenode.training.exchange import WorkerKey
from hivenode.training.exchange.channel import SENT, WINDOW, Channel
from hivenode.training.exchange.clock import now

VERSIONS = f"cryptography {version('cryptography')}, pyOpenSSL {version('pyOpenSSL')}"


@pytest.mark.parametrize("name", ["SSL_read", "BIO_read", "SSL_MODE_ENABLE_PARTIAL_WRITE"])
def test_openssl_has_what_the_channel_calls(name: str) -> None:
    assert hasattr(Binding.lib, name), f"{VERSIONS}: no {name} any more; adapt channel.py and keys.py"


def test_a_connection_shows_its_openssl_objects() -> None:
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    for name, kind in {"_ssl": "SSL *", "_from_ssl": "BIO *"}.items():
        found = getattr(connection, name, None)
        assert found is not None, f"{VERSIONS}: no {name} any more; adapt channel.py"
        assert Binding.ffi.typeof(found) is Binding.ffi.typeof(kind), f"{VERSIONS}: {name} is something else"


def test_numbers_come_as_they_were_sent() -> None:
    """More than a window, and across its edges, with a suite that is meant."""
    keys = [WorkerKey.create(), WorkerKey.create()]
    contexts = [keys[0].context([keys[1].certificate]), keys[1].context([keys[0].certificate])]
    data = memoryview(bytes(range(251)) * ((2 * WINDOW + SENT) // 251))
    with ThreadPoolExecutor(1) as pool:
        a, b = socket.socketpair()
        server = pool.submit(Channel, a, contexts[0], server_side=True, until=now() + 10)
        client = Channel(b, contexts[1], server_side=False, until=now() + 10)
        with closing(client), closing(server.result()) as other:
            sent = pool.submit(client.send, data[:1], data[1:])
            got = memoryview(bytearray(len(data)))
            other.fill(got[:1])
            other.fill(got[1:])
            sent.result()
            assert got == data
            assert other._tls.get_cipher_version() == "TLSv1.3"
            assert other._tls.get_cipher_name() == "TLS_AES_128_GCM_SHA256"
