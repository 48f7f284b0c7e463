"""At most one link per pair of nodes, whoever dials whom and when. Pure.

A dialler marks its dial as pending before it says hello, and says none while it has a link to that peer, except to
take the place of a link that is stalled, which it names as ended then. Who hears a hello while its own dial is pending
gives way if its id is the larger one and declines otherwise: the dial of the smaller id wins. Who hears a hello
although it has a link knows that the peer had none when it spoke, so it lets go of its own if the hello names that
link as ended or comes from a restarted process; otherwise the hello was overtaken by the link, and is declined.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from hivenode.net.link import Hello

REMEMBERED = 8
"""Ended links named in a hello."""


class Verdict(Enum):
    accept = auto()
    replace = auto()
    """Accept, and let go of the link there is: the peer has lost it already."""
    decline = auto()


@dataclass
class _Pair:
    live: tuple[bytes, bytes] | None = None
    """Link and peer's instance."""
    pending: bytes | None = None
    ended: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Pairing:
    """Links and dials of one node.

    Args:
        me: its id.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._pairs: dict[str, _Pair] = {}

    def begin(self, peer: str, link: bytes, stalled: bytes | None = None) -> tuple[bytes, ...] | None:
        """Our dial is about to say hello: the ended links to name in it, or None if it must not.

        Args:
            stalled: the link whose place it is to take.
        """
        pair = self._pairs.setdefault(peer, _Pair())
        live = pair.live[0] if pair.live is not None else None
        if pair.pending is not None or live not in (None, stalled):
            return None
        pair.pending = link
        ended = (*pair.ended, live) if live is not None else tuple(pair.ended)
        return ended[-REMEMBERED:]

    def failed(self, peer: str, link: bytes) -> None:
        """The dial that said hello came to nothing, or gave way."""
        pair = self._pairs[peer]
        pair.ended.append(link)
        if pair.pending == link:
            pair.pending = None

    def heard(self, peer: str, hello: Hello) -> Verdict:
        """What to do about a peer that dialled us. Changes nothing; follow it with `up` unless declined."""
        pair = self._pairs.setdefault(peer, _Pair())
        if pair.live is not None:
            link, instance = pair.live
            lost = link in hello.ended or instance != hello.instance
            if not lost:
                return Verdict.decline
        if pair.pending is not None and self._me < peer:
            return Verdict.decline
        return Verdict.accept if pair.live is None else Verdict.replace

    def up(self, peer: str, link: bytes, instance: bytes) -> None:
        pair = self._pairs.setdefault(peer, _Pair())
        pair.live = (link, instance)
        pair.pending = None

    def down(self, peer: str, link: bytes) -> None:
        pair = self._pairs[peer]
        pair.ended.append(link)
        if pair.live is not None and pair.live[0] == link:
            pair.live = None
