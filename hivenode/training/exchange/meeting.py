"""How workers get connected: the lower rank dials the higher, once for each direction."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Sequence

from hivenode.errors import Conflict
from hivenode.net.local import Peer
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.effects import Malformed
from hivenode.training.exchange.incoming import Incoming
from hivenode.training.exchange.keys import WorkerKey, der
from hivenode.training.exchange.link import LinkBroken, read_control, sever, write_control
from hivenode.training.exchange.messages import PROTOCOL, Hello

MAX_GREETING = 16
"""Connections that are being greeted at once; later ones wait in the listen queue."""

UPWARD, DOWNWARD = b"\x01", b"\x00"
"""First byte of a connection, before TLS: whether the dialling side will send on it. It only says how to read what
follows; the greeting says it again."""

Linked = Callable[[int, ssl.SSLSocket, Incoming], None]
"""Rank, connection to write to, connection to read from."""


def listen(host: str, ports: tuple[int, int]) -> socket.socket:
    """A listening socket on the first free port of the inclusive range; (0, 0) lets the system choose.

    Raises:
        Conflict: none is free, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    for port in range(ports[0], ports[1] + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(256)
        except OSError as error:
            listener.close()
            reason = error
            continue
        return listener
    raise Conflict(
        f"A worker cannot listen on {host} ports {ports[0]}-{ports[1]}: {reason}.",
        fix="Widen the worker port range, or correct the node's address.",
    )


class Meeting:
    """Connects one worker to its peers, and goes on greeting those that come late.

    Args:
        rank: this worker's.
        key: its key.
        listener: bound and listening.
        peers: the others; exactly their certificates are trusted.
        linked: called from internal threads, once for each peer whose connections both stand.
        deadline: by `clock.now`; no peer is dialled after it.
        greeting_seconds: for the handshake and greeting of one connection.
    """

    def __init__(
        self,
        rank: int,
        key: WorkerKey,
        listener: socket.socket,
        peers: Sequence[Peer],
        linked: Linked,
        deadline: float,
        *,
        greeting_seconds: float = 5.0,
    ) -> None:
        self._rank, self._listener, self._linked = rank, listener, linked
        self._key, self._deadline, self._greeting = key, deadline, greeting_seconds
        self._higher = [(peer, key.dialling(peer.certificate)) for peer in peers if peer.rank > rank]
        lower = [peer for peer in peers if peer.rank < rank]
        self._lower = {der(peer.certificate): peer.rank for peer in lower}
        self._accepting = key.accepting([peer.certificate for peer in lower]) if lower else None
        self._lock = threading.Lock()
        self._halves: dict[int, tuple[Hello, ssl.SSLSocket | Incoming]] = {}
        self._known: set[int] = set()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._slots = threading.BoundedSemaphore(MAX_GREETING)

    def start(self) -> None:
        if self._accepting is None:
            self._listener.close()  # nobody is to dial the lowest rank
        else:
            self._threads.append(_spawn("exchange-accept", self._accept_all, self._accepting))
        for peer, context in self._higher:
            self._threads.append(_spawn(f"exchange-dial-{peer.rank}", self._dial, peer, context, self._deadline))

    def admit(self, peer: Peer, deadline: float) -> None:
        """Dial one more, of a higher rank. Raises ValueError, ssl.SSLError when its certificate cannot be read."""
        context = self._key.dialling(peer.certificate)
        self._threads.append(_spawn(f"exchange-dial-{peer.rank}", self._dial, peer, context, deadline))

    def close(self) -> None:
        """Stop listening and dialling. Links already handed over stay; a greeting under way ends by its timeout."""
        self._over.set()
        sever(self._listener)
        self._listener.close()
        deadline = now() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - now()))

    # --- accepting -------------------------------------------------------------------------------------------

    def _accept_all(self, context: ssl.SSLContext) -> None:
        while not self._over.is_set():
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._slots.release()
                # Out of descriptors, or the dialler is gone again; a closed listener ends the loop.
                self._over.wait(0.05)
                continue
            _spawn("exchange-greet", self._greet, context, connection)

    def _greet(self, context: ssl.SSLContext, raw: socket.socket) -> None:
        connection: ssl.SSLSocket | Incoming
        try:
            raw.settimeout(self._greeting)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if raw.recv(1) == UPWARD:
                connection = Incoming(raw, context, server_side=True)
            else:
                connection = context.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()  # a stranger, or somebody who does not speak TLS 1.3
            self._slots.release()
            return
        kept = False
        try:
            rank = self._lower.get(_certificate(connection))
            hello = read_control(connection)
            if isinstance(hello, Hello) and rank == hello.rank and hello.protocol == PROTOCOL:
                kept = hello.upward == isinstance(connection, Incoming) and self._pair(hello, connection)
        except (OSError, LinkBroken, Malformed):
            kept = False
        finally:
            if not kept:
                connection.close()
            self._slots.release()

    def _pair(self, hello: Hello, connection: ssl.SSLSocket | Incoming) -> bool:
        """Keep a greeted connection until its other half is there."""
        with self._lock:
            if self._over.is_set() or hello.rank in self._known:
                return False
            waiting = self._halves.pop(hello.rank, None)
            if waiting is None or waiting[0].token != hello.token or waiting[0].upward == hello.upward:
                if waiting is not None:
                    waiting[1].close()
                self._halves[hello.rank] = (hello, connection)
                return True
            self._known.add(hello.rank)
        incoming, outgoing = (connection, waiting[1]) if hello.upward else (waiting[1], connection)
        assert isinstance(incoming, Incoming)
        assert isinstance(outgoing, ssl.SSLSocket)
        try:
            outgoing.sendall(write_control(Hello(PROTOCOL, self._rank, upward=False, token=hello.token)))
        except OSError:
            waiting[1].close()
            return False
        self._hand_over(hello.rank, outgoing, incoming)
        return True

    # --- dialling --------------------------------------------------------------------------------------------

    def _dial(self, peer: Peer, context: ssl.SSLContext, deadline: float) -> None:
        pause = 0.05
        while not self._over.is_set() and now() < deadline:
            connections: list[ssl.SSLSocket | Incoming] = []
            try:
                token = secrets.randbits(63)
                outgoing = context.wrap_socket(self._connect(peer, UPWARD, deadline))
                connections.append(outgoing)
                incoming = Incoming(self._connect(peer, DOWNWARD, deadline), context, server_side=False)
                connections.append(incoming)
                for connection, upward in ((outgoing, True), (incoming, False)):
                    if _certificate(connection) != der(peer.certificate):
                        raise Malformed("another certificate than the one given")
                    connection.sendall(write_control(Hello(PROTOCOL, self._rank, upward, token)))
                # From here on the other side counts the link as made: wait for it as long as there is time.
                incoming.settimeout(max(0.1, deadline - now()))
                answer = read_control(incoming)
                if isinstance(answer, Hello) and answer.token == token and answer.rank == peer.rank:
                    self._hand_over(peer.rank, outgoing, incoming)
                    return
            except (OSError, LinkBroken, Malformed):
                pass  # not there yet, or not the one: the loop tries again until the deadline
            for connection in connections:
                connection.close()
            self._over.wait(pause)
            pause = min(1.0, pause * 2)

    def _connect(self, peer: Peer, direction: bytes, deadline: float) -> socket.socket:
        seconds = max(0.1, min(self._greeting, deadline - now()))
        raw = socket.create_connection((peer.host, peer.port), seconds)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.sendall(direction)
        except OSError:
            raw.close()
            raise
        return raw

    def _hand_over(self, rank: int, outgoing: ssl.SSLSocket, incoming: Incoming) -> None:
        outgoing.settimeout(None)
        incoming.settimeout(None)
        self._linked(rank, outgoing, incoming)


def _certificate(connection: ssl.SSLSocket | Incoming) -> bytes:
    if isinstance(connection, Incoming):
        return connection.getpeercert()
    return connection.getpeercert(binary_form=True) or b""


def _spawn(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread
