"""The rules of who keeps which link, driven through every interleaving of two nodes that dial at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from hivenode.net.link import Hello
from hivenode.net.pairing import Pairing, Verdict

SMALL, LARGE = "a" * 32, "b" * 32


def hello(node: str, link: bytes, ended: tuple[bytes, ...] = (), instance: bytes = b"instance") -> Hello:
    return Hello(node=node, hive="h" * 32, oldest=1, newest=1, build="", instance=instance, link=link, ended=ended)


class Side:
    """One node: its dial steps in order, and the links it believes in."""

    def __init__(self, me: str, other: str) -> None:
        self.me, self.other = me, other
        self.pairing = Pairing(me)
        self.live: bytes | None = None
        self.stalled: bytes | None = None
        """A live link that its dial is to replace."""
        self.nonce = f"dial-of-{me[0]}"[:8].encode().ljust(8, b".")
        self.said: Hello | None = None
        self.gave_way = False
        self.ups = 0

    def speak(self) -> None:
        ended = self.pairing.begin(self.other, self.nonce, self.stalled)
        if ended is not None:
            self.said = hello(self.me, self.nonce, ended)

    def up(self, link: bytes) -> None:
        if self.live is not None:
            self.pairing.down(self.other, self.live)
        self.pairing.up(self.other, link, b"instance")
        self.live = link
        self.ups += 1


def dial(dialler: Side, acceptor: Side) -> Iterator[None]:
    """The steps of one dial; each may happen at any time after the one before."""
    dialler.speak()
    yield
    if dialler.said is None:
        return
    verdict = acceptor.pairing.heard(dialler.me, dialler.said)
    if verdict is not Verdict.decline:
        assert (verdict is Verdict.replace) is (acceptor.live is not None)
        if acceptor.said is not None and acceptor.live == acceptor.stalled and not acceptor.gave_way:
            acceptor.gave_way = True  # its own dial is cancelled
            acceptor.pairing.failed(dialler.me, acceptor.nonce)
        acceptor.up(dialler.nonce)
    yield
    if dialler.gave_way:
        return
    if verdict is not Verdict.decline:
        dialler.up(dialler.nonce)
    else:
        dialler.pairing.failed(acceptor.me, dialler.nonce)
    yield


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AAABBB"))), ids="".join)
def test_two_dials_at_once_leave_one_link_that_both_agree_on(order: tuple[str, ...]) -> None:
    small, large = Side(SMALL, LARGE), Side(LARGE, SMALL)
    steps = {"A": dial(small, large), "B": dial(large, small)}
    for turn in order:
        next(steps[turn], None)
    assert small.live == large.live is not None
    assert small.ups == large.ups == 1
    if small.said is not None and large.said is not None:
        assert small.live == small.nonce


@pytest.mark.parametrize("order", sorted(set(itertools.permutations("AAABBB"))), ids="".join)
def test_two_that_find_their_link_stalled_leave_one_fresh_one_in_its_place(order: tuple[str, ...]) -> None:
    small, large = Side(SMALL, LARGE), Side(LARGE, SMALL)
    for side in (small, large):
        side.up(b"stalled.")
        side.stalled = b"stalled."
    steps = {"A": dial(small, large), "B": dial(large, small)}
    for turn in order:
        next(steps[turn], None)
    assert small.live == large.live not in (None, b"stalled.")


def test_a_dial_that_is_to_replace_a_link_replaces_no_other() -> None:
    pairing = Pairing(SMALL)
    pairing.up(LARGE, b"another.", b"instance")
    assert pairing.begin(LARGE, b"second..", b"stalled.") is None


def test_a_peer_that_lost_the_link_replaces_it() -> None:
    pairing = Pairing(SMALL)
    pairing.up(LARGE, b"first...", b"instance")
    assert pairing.heard(LARGE, hello(LARGE, b"second..")) is Verdict.decline
    assert pairing.heard(LARGE, hello(LARGE, b"second..", ended=(b"first...",))) is Verdict.replace


def test_a_restarted_peer_replaces_its_old_link() -> None:
    pairing = Pairing(SMALL)
    pairing.up(LARGE, b"first...", b"instance")
    assert pairing.heard(LARGE, hello(LARGE, b"second..", instance=b"another.")) is Verdict.replace


def test_an_ended_link_is_named_in_the_next_hello() -> None:
    pairing = Pairing(SMALL)
    pairing.up(LARGE, b"first...", b"instance")
    assert pairing.begin(LARGE, b"second..") is None
    pairing.down(LARGE, b"first...")
    assert pairing.begin(LARGE, b"second..") == (b"first...",)
    assert pairing.begin(LARGE, b"third...") is None
    pairing.failed(LARGE, b"second..")
    assert pairing.begin(LARGE, b"third...") == (b"first...", b"second..")
