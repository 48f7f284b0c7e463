"""Which of the links that nobody here wants gives way to a newcomer."""

from __future__ import annotations

import asyncio
import random

from hivenode.net.pool import Pool, PoolLimits
from hivenode.net.transport import Use
from tests.simulation.loop import run


class Desk:
    """A pool and the links it sees."""

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self.uses: dict[str, Use] = {}
        self.closed: list[str] = []
        self.pool = Pool(
            PoolLimits(busy_seconds=1.0),
            use_of=lambda: self.uses,
            wanted=lambda peer: peer in wanted,
            dial=self._dial,
            send=lambda peer, message: True,
            close=self._close,
            tell=lambda peer, up, soon: None,
            spawn=lambda work, name: asyncio.get_running_loop().create_task(work, name=name),
        )

    async def _dial(self, peer: str, address: str) -> None:
        raise AssertionError(f"{peer} was dialled")

    def _close(self, peer: str) -> None:
        self.closed.append(peer)
        del self.uses[peer]

    def link(self, peer: str, at: float, *, theirs: bool = False, since: float = 0.0) -> None:
        self.uses[peer] = Use(dialled=False, theirs=theirs, held=False, announced=theirs, since=since, at=at, heard=at)


def given_room(desk: Desk, times: int) -> list[str]:
    async def main(rng: random.Random) -> list[str]:
        await asyncio.sleep(10.0)
        for _ in range(times):
            desk.pool.make_room()
        return desk.closed

    return run(main)


def test_the_link_unused_for_longest_gives_way_first() -> None:
    desk = Desk()
    for peer, at in (("ann", 3.0), ("bob", 1.0), ("cid", 2.0)):
        desk.link(peer, at)
    assert given_room(desk, 2) == ["bob", "cid"]


def test_one_that_the_other_end_wants_gives_way_only_after_those_that_nobody_wants() -> None:
    desk = Desk()
    desk.link("ann", 1.0, theirs=True)
    desk.link("bob", 5.0)
    desk.link("cid", 2.0, theirs=True)
    assert given_room(desk, 3) == ["bob", "ann", "cid"]


def test_what_we_want_stays_and_what_the_other_end_wants_while_it_is_in_use() -> None:
    desk = Desk(wanted=("ann",))
    desk.link("ann", 1.0)
    desk.link("bob", 9.5, theirs=True)

    async def main(rng: random.Random) -> None:
        await asyncio.sleep(10.0)
        assert not desk.pool.make_room()
        await asyncio.sleep(1.0)
        assert desk.pool.make_room()
        assert not desk.pool.make_room()

    run(main)
    assert desk.closed == ["bob"]


def test_what_nobody_wants_gives_way_although_it_is_in_use_but_not_at_once() -> None:
    desk = Desk()
    desk.link("ann", 10.0, since=9.5)

    async def main(rng: random.Random) -> None:
        await asyncio.sleep(10.0)
        assert not desk.pool.make_room(), "it has only just come"
        await asyncio.sleep(1.0)
        desk.uses["ann"].at = 11.0
        assert desk.pool.make_room()

    run(main)
    assert desk.closed == ["ann"]
