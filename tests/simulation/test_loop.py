"""The virtual-time loop is asyncio, only faster, and lets nothing of the outside world in."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.loop import Deadlock, LimitReached, OutsideWorld, ProcessKilled, VirtualLoop, run


def the_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_a_day_passes_at_once_and_timers_ring_in_order() -> None:
    heard: list[tuple[float, str]] = []

    async def sleeper(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        heard.append((asyncio.get_running_loop().time(), name))

    async def main(rng: random.Random) -> None:
        await asyncio.gather(sleeper(86_400.0, "day"), sleeper(1.5, "soon"), sleeper(0.0, "now"))

    run(main, until=1e6)
    assert heard == [(0.0, "now"), (1.5, "soon"), (86_400.0, "day")]


def test_asyncio_s_own_tools_work() -> None:
    async def main(rng: random.Random) -> list[object]:
        seen: list[object] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.Event().wait()
        seen.append(asyncio.get_running_loop().time())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 3)
        seen.append(asyncio.get_running_loop().time())
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def produce() -> None:
            for number in range(3):
                await queue.put(number)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            group.create_task(asyncio.sleep(0.5))
            seen.extend([await queue.get() for _ in range(3)])
        with pytest.raises(ExceptionGroup):
            await _together(asyncio.sleep(100), _fail())
        done, pending = await asyncio.wait(
            [asyncio.create_task(asyncio.sleep(s)) for s in (1, 2)], return_when=asyncio.FIRST_COMPLETED
        )
        seen.append((len(done), len(pending), asyncio.get_running_loop().time()))
        return seen

    assert run(main) == [2.0, 5.0, 0, 1, 2, (1, 1, 9.0)]


async def _fail() -> None:
    raise ValueError


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def test_waiting_for_what_cannot_come_is_named() -> None:
    async def waits_for_godot() -> None:
        await asyncio.Event().wait()

    async def main(rng: random.Random) -> None:
        await asyncio.create_task(waits_for_godot(), name="vladimir")

    with pytest.raises(Deadlock, match="vladimir"):
        run(main)


def test_virtual_time_and_turns_are_bounded() -> None:
    async def main(rng: random.Random) -> None:
        await asyncio.sleep(11)

    async def spin(rng: random.Random) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LimitReached, match="10 s have passed"):
        run(main, until=10)
    with pytest.raises(LimitReached, match="turns"):
        run(spin, steps=1000)


async def _thread() -> None:
    await asyncio.to_thread(print)


async def _socket() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def _server() -> None:
    await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)


async def _process() -> None:
    await asyncio.create_subprocess_exec("true")


async def _reader() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def _other_thread() -> None:
    loop, caught = asyncio.get_running_loop(), []

    def call() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except OutsideWorld as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    raise caught[0]


@pytest.mark.parametrize("work", [_thread, _socket, _server, _process, _reader, _other_thread])
def test_the_outside_world_is_refused(work: Callable[[], Awaitable[Any]]) -> None:
    async def main(rng: random.Random) -> None:
        await work()

    with pytest.raises(OutsideWorld):
        run(main)


def test_a_failure_that_nobody_handles_fails_the_run() -> None:
    async def main(rng: random.Random) -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup):
        run(main)


def test_a_condition_is_met_the_moment_it_holds() -> None:
    async def main(rng: random.Random) -> float:
        box: list[int] = []
        loop = the_loop()
        loop.call_later(7, box.append, 1)
        await loop.until(lambda: box, 100)
        with pytest.raises(TimeoutError, match="two things"):
            await loop.until(lambda: len(box) == 2, 5, "two things")
        return loop.time()

    assert run(main) == 12.0


def test_an_invariant_that_breaks_ends_the_run() -> None:
    async def main(rng: random.Random) -> None:
        box: list[int] = []

        def check() -> None:
            assert not box, "the box must stay empty"

        the_loop().always(check)
        the_loop().call_later(3, box.append, 1)
        await asyncio.sleep(10)

    with pytest.raises(AssertionError, match="stay empty"):
        run(main)


def test_a_killed_process_runs_not_one_more_line() -> None:
    said: list[str] = []

    async def child() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                said.append("tick")
        finally:
            said.append("cleaned up")

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            asyncio.get_running_loop().call_later(2.5, said.append, "timer")

    async def main(rng: random.Random) -> list[str]:
        process = the_loop().process("victim")
        other = the_loop().process("other")
        process.spawn(parent())
        other.spawn(child())
        asked = asyncio.create_task(process.perform(asyncio.sleep(100)))
        await asyncio.sleep(1.5)
        process.kill()
        with pytest.raises(ProcessKilled):
            await asked
        with pytest.raises(ProcessKilled):
            process.spawn(child())
        await asyncio.sleep(2)
        return list(said)

    assert run(main) == ["tick", "tick", "tick", "tick"]


def test_a_frozen_process_catches_up_timers_first_and_what_was_cancelled_stays_so() -> None:
    async def main(rng: random.Random) -> list[tuple[float, str]]:
        loop, said = the_loop(), []
        process = loop.process("sleepy")

        def note(text: str) -> None:
            said.append((loop.time(), text))

        async def set_up() -> None:
            loop.call_later(2, note, "timer")
            doomed = loop.call_later(3, note, "cancelled")
            loop.call_later(2.5, doomed.cancel)

        await process.perform(set_up())
        process.freeze()
        await asyncio.sleep(1)
        process.call_soon(note, "message")
        await asyncio.sleep(9)
        assert said == []
        process.thaw()
        await asyncio.sleep(1)
        return said

    assert run(main) == [(10.0, "timer"), (10.0, "message")]


def test_what_a_process_answers_and_raises_comes_out() -> None:
    async def main(rng: random.Random) -> None:
        process = the_loop().process("p")

        async def answer() -> int:
            return 5

        assert await process.perform(answer()) == 5
        with pytest.raises(ValueError):
            await process.perform(_fail())

    run(main)


def test_sets_of_tasks_iterate_in_the_order_of_their_making() -> None:
    async def main(rng: random.Random) -> None:
        tasks = {asyncio.create_task(asyncio.sleep(1), name=str(n)) for n in range(6)}
        assert [task.get_name() for task in tasks] == list("012345")
        await asyncio.wait(tasks)

    run(main)
