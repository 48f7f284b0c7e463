"""How workers get connected, once for each direction: the lower rank dials the higher, and the higher the lower where
that does not come through, as behind an address translation. The lower rank decides which try it is to be."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Sequence

from OpenSSL import SSL

from hivenode.errors import Conflict
from hivenode.net.local import Peer
from hivenode.training.exchange.channel import Channel, LinkBroken
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.effects import Malformed
from hivenode.training.exchange.keys import WorkerKey, der
from hivenode.training.exchange.link import read_control, write_control
from hivenode.training.exchange.messages import PROTOCOL, Hello

MAX_GREETING = 16
"""Connections that are being greeted at once; later ones wait in the listen queue."""

COURTESY_SECONDS = 1.0
"""How long a higher rank waits to be dialled before it dials as well."""

Linked = Callable[[int, Channel, Channel], None]
"""Rank, what to write to, what to read from."""


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

    Raises:
        ValueError: a certificate cannot be read.
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
        self._dials = [(peer, key.context([peer.certificate])) for peer in peers]
        self._ranks = {der(peer.certificate): peer.rank for peer in peers}
        self._trusted = [peer.certificate for peer in peers]
        self._accepting = key.context(self._trusted)
        self._lock = threading.Lock()
        self._halves: dict[int, tuple[Hello, Channel]] = {}
        self._known: set[int] = set()
        """Peers with which a link is made."""
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._slots = threading.BoundedSemaphore(MAX_GREETING)

    def start(self) -> None:
        self._threads.append(_spawn("exchange-accept", self._accept_all))
        for dial in self._dials:
            self._threads.append(_spawn(f"exchange-dial-{dial[0].rank}", self._dial, *dial, self._deadline))

    def admit(self, peer: Peer, deadline: float) -> None:
        """One more. Raises ValueError when its certificate cannot be read."""
        context = self._key.context([peer.certificate])
        with self._lock:
            self._trusted.append(peer.certificate)
            self._accepting = self._key.context(self._trusted)
            self._ranks[der(peer.certificate)] = peer.rank
        self._threads.append(_spawn(f"exchange-dial-{peer.rank}", self._dial, peer, context, deadline))

    def close(self) -> None:
        """Stop listening and dialling. Links already handed over stay; a greeting under way ends by its timeout."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        deadline = now() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - now()))

    # --- accepting -------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        while not self._over.is_set():
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                self._slots.release()
                # Out of descriptors, or the dialler is gone again; a closed listener ends the loop.
                self._over.wait(0.05)
                continue
            _spawn("exchange-greet", self._greet, connection)

    def _greet(self, raw: socket.socket) -> None:
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel(raw, self._accepting, server_side=True, until=now() + self._greeting)
        except OSError:
            raw.close()  # a stranger, or somebody who does not speak TLS 1.3
            self._slots.release()
            return
        kept = False
        try:
            with self._lock:
                rank = self._ranks.get(channel.certificate)
            hello = read_control(channel)
            if isinstance(hello, Hello) and rank == hello.rank and hello.protocol == PROTOCOL:
                kept = self._pair(hello, channel)
        except (OSError, LinkBroken, Malformed):
            kept = False
        finally:
            if not kept:
                channel.close()
            self._slots.release()

    def _pair(self, hello: Hello, channel: Channel) -> bool:
        """Keep a greeted connection until its other half is there."""
        with self._lock:
            if self._over.is_set() or hello.rank in self._known:
                return False
            waiting = self._halves.pop(hello.rank, None)
            if waiting is None or waiting[0].token != hello.token or waiting[0].upward == hello.upward:
                if waiting is not None:
                    waiting[1].close()
                self._halves[hello.rank] = (hello, channel)
                return True
        incoming, outgoing = (channel, waiting[1]) if hello.upward else (waiting[1], channel)
        try:
            # The lower rank's word is the last: here with the answer, else it is waited for.
            if hello.rank > self._rank and not self._claim(hello.rank):
                raise LinkBroken
            outgoing.send(write_control(self._hello(hello.token, upward=False)))
            if hello.rank < self._rank:
                incoming.wait_until(max(self._deadline, now() + self._greeting))
                if not self._confirmed(incoming, hello.rank, hello.token) or not self._claim(hello.rank):
                    raise LinkBroken
        except (OSError, LinkBroken, Malformed):
            waiting[1].close()
            return False
        self._hand_over(hello.rank, outgoing, incoming)
        return True

    # --- dialling --------------------------------------------------------------------------------------------

    def _dial(self, peer: Peer, context: SSL.Context, deadline: float) -> None:
        pause = 0.05
        if peer.rank < self._rank:
            self._over.wait(COURTESY_SECONDS)
        while not self._over.is_set() and peer.rank not in self._known and now() < deadline:
            channels: list[Channel] = []
            try:
                token = secrets.randbits(63)
                for upward in (True, False):
                    channels.append(self._connect(peer, context, deadline))
                    if channels[-1].certificate != der(peer.certificate):
                        raise Malformed("another certificate than the one given")
                    channels[-1].send(write_control(self._hello(token, upward=upward)))
                outgoing, incoming = channels
                incoming.wait_until(deadline)
                if self._confirmed(incoming, peer.rank, token) and self._claim(peer.rank):
                    if peer.rank > self._rank:
                        outgoing.send(write_control(self._hello(token, upward=True)))
                    self._hand_over(peer.rank, outgoing, incoming)
                    return
            except (OSError, LinkBroken, Malformed):
                pass  # not there yet, or not the one: the loop tries again until the deadline
            for channel in channels:
                channel.close()
            self._over.wait(pause)
            pause = min(1.0, pause * 2)

    def _connect(self, peer: Peer, context: SSL.Context, deadline: float) -> Channel:
        until = min(now() + self._greeting, deadline)
        raw = socket.create_connection((peer.host, peer.port), max(0.1, until - now()))
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            raw.close()
            raise
        return Channel(raw, context, server_side=False, until=until)

    # --- both ------------------------------------------------------------------------------------------------

    def _hello(self, token: int, *, upward: bool) -> Hello:
        return Hello(PROTOCOL, self._rank, upward, token)

    def _claim(self, rank: int) -> bool:
        """Whether the link that is about to stand is the first with that peer."""
        with self._lock:
            if rank in self._known or self._over.is_set():
                return False
            self._known.add(rank)
            return True

    @staticmethod
    def _confirmed(channel: Channel, rank: int, token: int) -> bool:
        answer = read_control(channel)
        return isinstance(answer, Hello) and (answer.rank, answer.token) == (rank, token)

    def _hand_over(self, rank: int, outgoing: Channel, incoming: Channel) -> None:
        outgoing.wait_until(float("inf"))
        incoming.wait_until(float("inf"))
        self._linked(rank, outgoing, incoming)


def _spawn(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread
