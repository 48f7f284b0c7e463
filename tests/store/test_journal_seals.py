"""A snapshot in place of records: both or neither, whatever happens."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hivenode.errors import Corrupted
from hivenode.store.journal import SqliteJournal
from tests.store.test_journal import A, B, held, made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def test_records_give_way_to_a_snapshot_and_numbers_go_on(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append([*made(A, 1, 9), *made(B, 1, 3)])
    assert journal.snapshot() is None
    await journal.seal(b"first", {A: 7, "c" * 32: 5})
    await journal.append([*made(A, 3, 10), *made(B, 4, 4), *made("c" * 32, 6, 6)])
    with pytest.raises(Corrupted, match="does not follow record 6"):
        await journal.append(made("c" * 32, 8, 8))
    await journal.close()
    again = SqliteJournal.open(path)
    assert again.snapshot() == b"first"
    assert list(again.records()) == [*made(A, 8, 10), *made(B, 1, 4), *made("c" * 32, 6, 6)]
    assert again.damaged == {}
    await again.seal(b"second", {A: 9, B: 50})
    with pytest.raises(Corrupted, match="sink"):
        await again.seal(b"third", {A: 8})
    assert again.snapshot() == b"second"
    await again.append(made(B, 51, 51))
    await again.close()
    assert held(path) == [*made(A, 10, 10), *made(B, 51, 51), *made("c" * 32, 6, 6)]


async def test_the_file_becomes_smaller(path: Path) -> None:
    journal = SqliteJournal.open(path)
    for first in range(1, 4001, 500):
        await journal.append(made(A, first, first + 499, size=1000))
    before = journal.size
    await journal.seal(b"little", {A: 3990})
    await journal.set_cell("vote", b"not kept waiting")
    while journal._db.execute("PRAGMA freelist_count").fetchone()[0]:
        await journal.set_cell("vote", b"again")
    await journal.close()
    assert path.stat().st_size < before / 20


async def test_a_journal_of_the_former_format_goes_on(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 2000, size=500))
    await journal.set_cell("vote", b"1")
    await journal.close()
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE snapshots; DROP TABLE floors; PRAGMA user_version = 1;")
    db.close()
    again = SqliteJournal.open(path)
    assert list(again.records()) == made(A, 1, 2000, size=500)
    assert again.cell("vote") == b"1"
    await again.seal(b"x", {A: 1999})
    await again.close()
    assert held(path) == made(A, 2000, 2000, size=500)


@pytest.mark.parametrize("table", ["snapshots", "floors"])
async def test_a_damaged_seal_is_not_taken_for_none(path: Path, table: str) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 2))
    await journal.seal(b"snapshot", {A: 2})
    await journal.close()
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE {table} SET checksum = x'00'")
    db.close()
    with pytest.raises(Corrupted, match="damaged"):
        SqliteJournal.open(path).snapshot()


SEALING = """
import asyncio, sys
from pathlib import Path
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record

async def main():
    journal = SqliteJournal.open(Path(sys.argv[1]))
    number = 0
    while True:
        await journal.append([Record("a" * 32, n, b"x" * 400) for n in range(number + 1, number + 101)])
        number += 100
        await journal.seal(str(number - 10).encode().rjust(20000), {"a" * 32: number - 10})
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_leaves_the_old_state_or_the_new(path: Path, seed: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", SEALING, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(random.Random(seed).randint(1, 12)):
        last = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    journal = SqliteJournal.open(path)
    snapshot = journal.snapshot()
    assert snapshot is not None
    floor = int(snapshot)
    assert floor >= last - 10
    numbers = [record.number for record in journal.records()]
    assert numbers == list(range(floor + 1, floor + 1 + len(numbers)))
    assert len(numbers) in (10, 110), "ten after a seal, a hundred more if the next append was made"
    assert journal.damaged == {}
    journal._db.close()
