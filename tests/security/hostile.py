"""Clients and servers that do not keep to the rules."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from hivenode.net.link import Hello, encode_hello
from hivenode.net.messages import PROTOCOL
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from tests.net.nodes import AUTHORITY, PATIENCE, Node


@asynccontextmanager
async def http(context: ssl.SSLContext) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def anonymous() -> ssl.SSLContext:
    """Without a certificate, and without looking at the server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def raw_link(
    credentials: Credentials, target: Node, hello: dict[str, Any] | None = None
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A websocket of a member that says hello (with some fields changed) and then whatever the test wants. `hello`
    None says nothing."""
    async with http(credentials.client_context()) as session:
        socket = await session.ws_connect(
            f"https://{target.address}/link", protocols=(PROTOCOL,), autoclose=False, max_msg_size=0
        )
        try:
            if hello is not None:
                proper = Hello(
                    node=credentials.identity.node_id,
                    hive=credentials.hive_id,
                    oldest=1,
                    newest=1,
                    build="hostile",
                    instance=b"hostile.",
                    link=b"a link..",
                )
                await socket.send_bytes(encode_hello(msgspec.structs.replace(proper, **hello)))
            yield socket
        finally:
            await socket.close()


async def closed_by_the_other_side(socket: aiohttp.ClientWebSocketResponse) -> int:
    """Read until the end; the close code, 0 if there was none."""
    async with asyncio.timeout(PATIENCE):
        while True:
            received = await socket.receive()
            if received.type is aiohttp.WSMsgType.CLOSE:
                return int(received.data)
            if received.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                return 0


def certificate(
    key: Ed25519PrivateKey,
    names: list[str],
    *,
    authority: Authority = AUTHORITY,
    signer: Ed25519PrivateKey | None = None,
) -> str:
    """A leaf with these URIs, issued by `authority`, and signed by it unless another signer is given."""
    authority_key = signer or authority._key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_pem_x509_certificate(authority.certificate_pem.encode()).subject)
        .public_key(key.public_key())
        .serial_number(4711)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names]),
            critical=True,
        )
    )
    return builder.sign(authority_key, None).public_bytes(Encoding.PEM).decode()


def key_of(credentials: Credentials) -> Ed25519PrivateKey:
    key = load_pem_private_key(credentials.identity.private_pem(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


@asynccontextmanager
async def listening_tls(context: ssl.SSLContext) -> AsyncIterator[tuple[str, bytearray, list[int]]]:
    """A TLS server that answers nothing: its address, what it was sent, and a list that grows with every connection
    that ended."""
    heard = bytearray()
    ended: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                heard.extend(data)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()
            ended.append(len(heard))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard, ended
    finally:
        server.close()
