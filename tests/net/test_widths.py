"""What lines carry, from what was moved over them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hivenode.errors import Conflict, Unavailable
from hivenode.net import bulk
from hivenode.net.listener import Gate
from hivenode.net.sounding import Sounder
from hivenode.net.widths import (
    LASTING_SECONDS,
    LEAST_BANDWIDTH,
    MOST_BANDWIDTH,
    PEERS,
    STALE_SECONDS,
    Meter,
    Widths,
    believable,
)
from tests.net.nodes import linked, node
from tests.net.test_bulk import content

NOW = 1.8e9
KIB = 1024


def of(widths: Widths, peer: str, now: float = NOW) -> float | None:
    known = widths.known(now)
    return known[peer][0] if peer in known else None


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, 0.0, -5.0])
def test_what_is_no_figure_is_not_believed(figure: float) -> None:
    assert believable(figure) is None
    widths = Widths()
    widths.note("a", figure, NOW)
    assert widths.known(NOW) == {}


def test_a_figure_is_kept_within_bounds() -> None:
    assert believable(1e-300) == LEAST_BANDWIDTH
    assert believable(1e300) == MOST_BANDWIDTH
    assert believable(12.5e6) == 12.5e6


def test_a_meter_leaves_out_the_slow_start() -> None:
    meter = Meter(skipped=256 * KIB)
    assert meter.bandwidth == 0.0
    for number in range(4):
        meter.add(64 * KIB, 10.0 + number)  # slow
    for number in range(1, 9):
        meter.add(64 * KIB, 13.0 + number / 100)
    assert meter.counted == 512 * KIB
    assert meter.bandwidth == pytest.approx(512 * KIB / 0.08)


def test_all_that_came_at_once_says_nothing() -> None:
    burst = Meter(skipped=1)
    burst.add(10, 5.0)
    burst.add(1 << 20, 5.0)
    assert burst.bandwidth == 0.0


def test_one_odd_transfer_says_little() -> None:
    widths = Widths()
    for bandwidth in (100e6, 101e6, 5e9, 1e6, 99e6):
        widths.note("a", bandwidth, NOW)
    assert of(widths, "a") == 100e6
    for _ in range(5):
        widths.note("a", 20e6, NOW)
    assert of(widths, "a") == 20e6  # the line has changed
    assert of(widths, "b") is None


def test_soundings_count_only_where_nothing_was_moved() -> None:
    widths = Widths()
    assert widths.lacking("a", NOW)
    for _ in range(3):
        widths.note("a", 10e6, NOW, sounded=True)
    assert of(widths, "a") == 10e6
    assert not widths.lacking("a", NOW)
    assert widths.lacking("a", NOW + STALE_SECONDS + 1)
    widths.note("a", 100e6, NOW)
    assert of(widths, "a") == 100e6
    assert not widths.lacking("a", NOW + STALE_SECONDS + 1)


def test_what_is_old_is_forgotten() -> None:
    widths = Widths()
    widths.note("a", 10e6, NOW)
    assert of(widths, "a", NOW + LASTING_SECONDS + 1) is None
    assert widths.lacking("a", NOW + LASTING_SECONDS + 1)


def test_what_is_remembered_is_looked_at_again() -> None:
    first, second = Widths(), Widths()
    first.note("a", 10e6, NOW)
    first.note("old", 10e6, NOW - LASTING_SECONDS - 1)
    second.recall({**first.known(NOW), "odd": (math.nan, NOW), "ahead": (1e6, NOW + 1e6)}, NOW + 60)
    assert second.known(NOW + 60) == {"a": (10e6, NOW)}
    assert second.lacking("a", NOW + 60) == 2


def test_no_more_than_so_many_lines_are_remembered() -> None:
    widths = Widths()
    for number in range(PEERS + 10):
        widths.note(str(number), 10e6, NOW)
    assert len(widths.known(NOW)) == PEERS
    assert of(widths, "0") is None


async def test_a_blob_that_is_fetched_measures_the_line(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    async with (
        node(1, tmp_path, on_moved=lambda peer, bandwidth: heard.append((peer, bandwidth))) as a,
        node(2, tmp_path) as b,
    ):
        await linked(a, b)
        small = await b.blobs.put_bytes(content(size=500_000))
        await a.transport.fetch(b.id, small, a.blobs)
        assert heard == []  # too little to tell
        refs = [await b.blobs.put_bytes(content(seed)) for seed in (1, 2)]
        await asyncio.gather(*(a.transport.fetch(b.id, ref, a.blobs) for ref in refs))
        assert 1 <= len(heard) <= 2  # together, where they shared the line
        assert all(peer == b.id and believable(bandwidth) == bandwidth for peer, bandwidth in heard)


async def test_a_line_is_sounded_with_a_little(tmp_path: Path) -> None:
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        bandwidth = await a.transport.sound(b.id)
        assert believable(bandwidth) is not None
        with pytest.raises(Unavailable, match="no address"):
            await a.transport.sound("z" * 32)


async def _rounds(sounder: Sounder, condition: Callable[[], bool]) -> None:
    task = asyncio.create_task(sounder.run())
    try:
        async with asyncio.timeout(20.0):
            while not condition():
                await asyncio.sleep(0)
    finally:
        task.cancel()


async def test_peers_are_sounded_in_turn_and_only_while_there_is_no_work() -> None:
    widths, asked, kept = Widths(), [], []
    busy = [True]

    async def sound(peer: str) -> float:
        asked.append(peer)
        if peer == "gone":
            raise Unavailable("It is gone.", fix="Wait.")
        return 7e6

    async def keep() -> None:
        kept.append(widths.known(NOW))

    sounder = Sounder(
        widths,
        links=lambda: ["gone", "near"],
        sound=sound,
        busy=lambda: busy[0],
        wall=lambda: NOW,
        keep=keep,
        rng=random.Random(1),
        pause_seconds=0.0,
    )
    await _rounds(sounder, lambda: len(kept) > 3)
    assert asked == []
    busy[0] = False
    await _rounds(sounder, lambda: len(kept) > 20)
    assert sorted(asked) == ["gone", "near", "near", "near"]
    assert kept[-1] == {"near": (7e6, NOW)}


def _sounder(widths: Widths, asked: list[str], seed: int, wall: Callable[[], float], engaged: set[str]) -> Sounder:
    async def sound(peer: str) -> float:
        asked.append(peer)
        if peer in engaged:
            raise Conflict("It sounds another line.", fix="Wait.")
        return 7e6

    async def keep() -> None:
        pass

    return Sounder(
        widths, links=lambda: ["a", "b", "c", "d"], sound=sound, busy=lambda: False, wall=wall, keep=keep,
        rng=random.Random(seed), pause_seconds=0.0,
    )  # fmt: skip


async def test_nodes_that_start_together_do_not_all_sound_the_same_line() -> None:
    first = set()
    for seed in range(20):
        asked: list[str] = []
        await _rounds(_sounder(Widths(), asked, seed, lambda: NOW, set()), lambda asked=asked: len(asked) > 0)
        first.add(asked[0])
    assert first == {"a", "b", "c", "d"}


async def test_a_peer_that_has_another_line_sounded_is_asked_again_soon() -> None:
    asked: list[str] = []
    widths, engaged = Widths(), {"a", "b", "c", "d"}
    sounder = _sounder(widths, asked, 1, lambda: NOW, engaged)
    await _rounds(sounder, lambda: len(asked) > 9)
    assert widths.known(NOW) == {}
    engaged.clear()
    await _rounds(sounder, lambda: len(widths.known(NOW)) == 4)


async def test_one_line_is_sounded_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "Gate", lambda *bounds: Gate(0, 0))  # as while another's is
    async with node(1, tmp_path) as a, node(2, tmp_path) as b:
        await linked(a, b)
        with pytest.raises(Conflict, match="has another line sounded just now"):
            await a.transport.sound(b.id)
