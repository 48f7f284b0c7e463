"""The simulated disk keeps what it has acknowledged and may lose the rest, as a real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivenode.errors import Corrupted, Exhausted, NotFound, Unavailable
from hivenode.spec.values import BlobRef
from hivenode.store.ports import Record
from hivenode.store.simulated import SimulatedBlobs, SimulatedDisk, SimulatedJournal
from tests.simulation.loop import Process, VirtualLoop, run


def record(author: str, number: int, data: bytes = b"event") -> Record:
    return Record(author, number, data)


def new_process() -> Process:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.process("node")


def numbers(disk: SimulatedDisk, author: str = "a") -> list[int]:
    return [r.number for r in SimulatedJournal(disk).records() if r.author == author]


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_what_was_acknowledged_survives_a_crash_and_the_rest_is_a_prefix(seed: int, torn: bool) -> None:
    async def main(rng: random.Random) -> None:
        disk = SimulatedDisk(rng, torn=torn)
        acknowledged = voted = voting = 0
        for _ in range(5):
            journal, process = SimulatedJournal(disk), new_process()

            async def write(journal: SimulatedJournal = journal) -> None:
                nonlocal acknowledged, voted, voting
                number = len(list(journal.records()))
                assert number >= acknowledged
                while True:
                    number += 2
                    await journal.append([record("a", number - 1), record("a", number)])
                    acknowledged = number
                    voting = number
                    await journal.set_cell("vote", str(number).encode())
                    voted = number

            process.spawn(write())
            await asyncio.sleep(rng.uniform(0, 0.05))
            process.kill()
            disk.crash()
            held = numbers(disk)
            assert held == list(range(1, len(held) + 1))
            assert len(held) - acknowledged in (0, 2), "all or nothing of the append that was under way"
            found = int(SimulatedJournal(disk).cell("vote") or 0)
            assert found in (voted, voting)
            voted = found

    run(main, seed=seed)


def test_both_fates_of_a_write_under_way_occur() -> None:
    fates = set()

    async def main(rng: random.Random) -> None:
        disk, process = SimulatedDisk(rng), new_process()
        process.spawn(SimulatedJournal(disk).append([record("a", 1)]))
        await asyncio.sleep(0.0001)
        process.kill()
        disk.crash()
        fates.add(len(numbers(disk)))

    for seed in range(30):
        run(main, seed=seed)
    assert fates == {0, 1}


def test_a_gap_and_a_fork_are_refused_and_a_repetition_is_nothing() -> None:
    async def main(rng: random.Random) -> None:
        disk = SimulatedDisk(rng)
        journal = SimulatedJournal(disk)
        await journal.append([record("b", 1), record("a", 1), record("a", 2)])
        await journal.append([record("a", 2), record("a", 3)])
        with pytest.raises(Corrupted):
            await journal.append([record("b", 2), record("a", 5)])
        with pytest.raises(Corrupted):
            await journal.append([record("a", 2, b"another")])
        assert [(r.author, r.number) for r in SimulatedJournal(disk).records()] == [
            ("a", 1), ("a", 2), ("a", 3), ("b", 1),
        ]  # fmt: skip

    run(main)


def test_a_full_disk_says_so_and_what_was_there_stays() -> None:
    async def main(rng: random.Random) -> None:
        disk = SimulatedDisk(rng)
        journal, blobs = SimulatedJournal(disk), SimulatedBlobs(disk)
        await journal.append([record("a", 1)])
        disk.full = True
        for write in (journal.append([record("a", 2)]), journal.set_cell("x", b""), blobs.put_bytes(b"x")):
            with pytest.raises(Exhausted):
                await write
        assert numbers(disk) == [1]
        disk.full = False
        await journal.append([record("a", 2)])
        assert numbers(disk) == [1, 2]

    run(main)


def test_a_cancelled_write_is_written_all_the_same_and_known_to_be() -> None:
    async def main(rng: random.Random) -> None:
        disk = SimulatedDisk(rng)
        journal = SimulatedJournal(disk)
        writing = asyncio.ensure_future(journal.append([record("a", 1)]))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await journal.append([record("a", 2)])
        assert numbers(disk) == [1, 2]

    run(main)


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_blobs_are_kept_by_their_hash_and_files_are_taken_in() -> None:
    async def main(rng: random.Random) -> None:
        disk = SimulatedDisk(rng)
        blobs = SimulatedBlobs(disk)
        disk.files["/simulated/model"] = b"weights"
        ref = await blobs.put_file(Path("/simulated/model"), move=True)
        assert await blobs.read(ref.digest, limit=7) == b"weights"
        assert list(blobs.digests()) == [ref]
        with pytest.raises(NotFound):
            await blobs.put_file(Path("/simulated/model"))
        with pytest.raises(Exhausted):
            await blobs.read(ref.digest, limit=6)
        disk.crash()
        assert SimulatedBlobs(disk).has(ref.digest)
        await blobs.delete(ref.digest)
        assert not blobs.has(ref.digest)

    run(main)


def test_a_transfer_that_breaks_off_is_resumed_and_the_wrong_bytes_are_refused() -> None:
    async def main(rng: random.Random) -> None:
        other = SimulatedBlobs(SimulatedDisk(rng))
        ref = await other.put_bytes(b"onetwo")
        blobs = SimulatedBlobs(SimulatedDisk(rng))
        with pytest.raises(Unavailable):
            await blobs.receive(ref, stream(b"one"))
        assert blobs.partial_size(ref.digest) == 3
        await blobs.receive(ref, stream(b"two"))
        assert await blobs.read(ref.digest, limit=6) == b"onetwo"
        for wrong in (b"onetwx", b"onetwothree"):
            fresh = SimulatedBlobs(SimulatedDisk(rng))
            with pytest.raises(Corrupted):
                await fresh.receive(BlobRef(ref.digest, 6), stream(wrong))
            assert fresh.partial_size(ref.digest) == 0

    run(main)
