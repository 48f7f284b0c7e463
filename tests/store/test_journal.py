from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hivenode.errors import Conflict, Corrupted, InvalidInput, Unavailable
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record

A, B = "a" * 32, "b" * 32


def made(author: str, first: int, last: int, size: int = 100) -> list[Record]:
    return [Record(author, n, f"<{author[0]} record {n}>".encode().ljust(size, b".")) for n in range(first, last + 1)]


def held(path: Path) -> list[Record]:
    journal = SqliteJournal.open(path)
    try:
        return list(journal.records())
    finally:
        journal._db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


async def filled(path: Path, *batches: Sequence[Record]) -> None:
    journal = SqliteJournal.open(path)
    for batch in batches:
        await journal.append(batch)
    await journal.close()


async def test_records_come_back_by_author_and_number(path: Path) -> None:
    await filled(path, made(B, 1, 2), made(A, 1, 1), [*made(A, 2, 12), *made(B, 3, 3)])
    assert held(path) == [*made(A, 1, 12), *made(B, 1, 3)]


async def test_a_gap_is_refused_and_nothing_of_that_append_stays(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 2))
    for wrong in (made(A, 4, 4), [*made(B, 1, 3), *made(A, 3, 3), *made(A, 5, 5)], made(B, 2, 2), [Record(A, 0, b"x")]):
        with pytest.raises(Corrupted):
            await journal.append(wrong)
    await journal.append(made(A, 3, 3))
    await journal.close()
    assert held(path) == made(A, 1, 3)


async def test_the_same_record_again_is_passed_over_and_another_under_its_number_refused(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 3))
    await journal.append(made(A, 2, 4))
    await journal.append([*made(A, 5, 5), *made(A, 5, 6)])
    with pytest.raises(Corrupted, match=f"Another record 3 of {A}"):
        await journal.append([Record(A, 3, b"a different past")])
    with pytest.raises(Corrupted, match="Another record 7"):
        await journal.append([*made(A, 7, 7), Record(A, 7, b"fork")])
    await journal.close()
    assert held(path) == made(A, 1, 6)


async def test_cells_are_read_at_once_and_kept(path: Path) -> None:
    journal = SqliteJournal.open(path)
    assert journal.cell("vote") is None
    await journal.set_cell("vote", b"1")
    await journal.set_cell("vote", b"2")
    await journal.set_cell("empty", b"")
    assert journal.cell("vote") == b"2"
    await journal.close()
    again = SqliteJournal.open(path)
    assert (again.cell("vote"), again.cell("empty"), again.cell("other")) == (b"2", b"", None)
    await again.close()


async def test_many_at_once_each_get_their_own_answer(path: Path) -> None:
    journal = SqliteJournal.open(path)
    calls = [journal.append(made(f"{n:032}", 1, 3) if n % 5 else made(f"{n:032}", 2, 3)) for n in range(400)]
    cells = [journal.set_cell(f"cell {n}", b"%d" % n) for n in range(100)]
    answers = await asyncio.gather(*calls, *cells, return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if answer is not None] == list(range(0, 400, 5))
    assert all(isinstance(answers[n], Corrupted) for n in range(0, 400, 5))
    assert journal.cell("cell 99") == b"99"
    await journal.close()
    assert len(held(path)) == 320 * 3


async def test_a_call_cancelled_before_its_turn_writes_nothing_and_harms_nobody(path: Path) -> None:
    journal = SqliteJournal.open(path)
    blocked = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Hold the writer until the call behind it has been cancelled.
    journal._writer.submit(lambda: asyncio.run_coroutine_threadsafe(blocked.wait(), loop).result())
    task = asyncio.create_task(journal.append(made(A, 1, 1)))
    other = asyncio.create_task(journal.append(made(B, 1, 1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    blocked.set()
    await other
    await journal.close()
    assert held(path) == made(B, 1, 1)


async def test_a_closed_journal_says_so(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.close()
    await journal.close()
    with pytest.raises(Unavailable, match="closed"):
        await journal.set_cell("x", b"")


def garble(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


async def test_a_garbled_record_cuts_its_authors_tail_and_nobody_elses(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(path, made(A, 1, 20), made(B, 1, 20))
    garble(path, b"<a record 13>", b"<a record 1_>")
    with caplog.at_level("ERROR"):
        journal = SqliteJournal.open(path)
    assert dict(journal.damaged) == {A: 13}
    assert list(journal.records()) == [*made(A, 1, 12), *made(B, 1, 20)]
    assert "journal damaged" in caplog.text
    # It goes on where it was cut, also with what was lost, coming from elsewhere.
    await journal.append(made(A, 13, 25))
    await journal.close()
    with sqlite3.connect(path) as db:
        aside = db.execute("SELECT number, data, reason FROM damaged ORDER BY number").fetchall()
    assert [number for number, _, _ in aside] == list(range(13, 21))
    assert aside[0][1].startswith(b"<a record 1_>")
    assert "checksum" in aside[0][2]
    again = SqliteJournal.open(path)
    assert not again.damaged
    assert list(again.records()) == [*made(A, 1, 25), *made(B, 1, 20)]
    await again.close()


async def test_a_record_whose_key_is_garbled_is_found_too(path: Path) -> None:
    """The row is then out of order in the table, where a search by key would not find it."""
    await filled(path, made(A, 1, 10), made("d" * 32, 1, 4))
    content = path.read_bytes()
    place = content.index(b"<a record 5>") - 40
    assert A.encode() in content[place : place + 41]
    start = content.index(A.encode(), place)
    path.write_bytes(content[:start] + b"z" + content[start + 1 :])
    journal = SqliteJournal.open(path)
    assert list(journal.records()) == [*made(A, 1, 4), *made("d" * 32, 1, 4)]
    await journal.append(made(A, 5, 12))
    await journal.close()
    assert held(path) == [*made(A, 1, 12), *made("d" * 32, 1, 4)]


async def test_a_record_lost_from_the_middle_cuts_what_follows(path: Path) -> None:
    await filled(path, made(A, 1, 6))
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM records WHERE number = 4")
    journal = SqliteJournal.open(path)
    assert dict(journal.damaged) == {A: 4}
    assert list(journal.records()) == made(A, 1, 3)
    await journal.close()


async def test_a_torn_write_ahead_log_loses_only_what_was_not_committed_whole(path: Path, tmp_path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 3))
    size = (tmp_path / "journal.db-wal").stat().st_size
    await journal.append(made(A, 4, 40))
    # What a power cut in the middle of the second append leaves: the log up to some place in it.
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    wal = (tmp_path / "journal.db-wal").read_bytes()
    (crashed / "journal.db").write_bytes(path.read_bytes())
    for end in (size, size + 1000, len(wal) - 1):
        (crashed / "journal.db-wal").write_bytes(wal[:end] + b"\0" * 500)
        assert held(crashed / "journal.db") == made(A, 1, 3)
        (crashed / "journal.db").write_bytes(path.read_bytes())
    (crashed / "journal.db-wal").write_bytes(wal)
    assert held(crashed / "journal.db") == made(A, 1, 40)
    await journal.close()


async def test_a_damaged_cell_stops_the_node(path: Path) -> None:
    """A vote that cannot be read must not count as never given."""
    journal = SqliteJournal.open(path)
    await journal.set_cell("vote", b"epoch seventeen")
    await journal.close()
    garble(path, b"epoch seventeen", b"epoch sixteen!!")
    with pytest.raises(Corrupted, match="'vote'") as caught:
        SqliteJournal.open(path)
    assert str(path) in caught.value.sentence


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one" * 200, b"\0" * 100])
def test_a_file_that_is_no_journal_is_named_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Corrupted) as caught:
        SqliteJournal.open(path)
    assert str(path) in caught.value.sentence
    assert "backup" in caught.value.fix
    assert path.read_bytes() == content


async def test_a_journal_with_overwritten_pages_is_named(path: Path) -> None:
    await filled(path, made(A, 1, 500))
    content = bytearray(path.read_bytes())
    content[4096:20480] = b"\xa5" * 16384
    path.write_bytes(bytes(content))
    with pytest.raises(Corrupted, match=r"journal\.db"):
        SqliteJournal.open(path)


async def test_the_journal_of_a_newer_version_is_refused_untouched(path: Path) -> None:
    await filled(path, made(A, 1, 1))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(Conflict, match="format 99"):
        SqliteJournal.open(path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        SqliteJournal.open(tmp_path / "nowhere" / "journal.db")


async def test_commits_are_synced(path: Path) -> None:
    journal = SqliteJournal.open(path)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await journal.close()


async def test_the_journal_is_private(path: Path) -> None:
    journal = SqliteJournal.open(path)
    await journal.append(made(A, 1, 1))
    assert {entry.stat().st_mode & 0o077 for entry in path.parent.iterdir()} == {0}
    await journal.close()


APPENDING = """
import asyncio, sys
from pathlib import Path
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record

async def main():
    journal = SqliteJournal.open(Path(sys.argv[1]))
    number = 0
    while True:
        batch = [Record("a" * 32, number + n, b"%d" % (number + n) * 50) for n in range(1, 8)]
        await journal.append(batch)
        number += 7
        print(number, flush=True)

asyncio.run(main())
"""


def test_what_was_answered_survives_kill_9(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", APPENDING, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(30):
        assert child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    answered = [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    numbers = [record.number for record in held(path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= max([30 * 7, *answered])
    assert len(numbers) % 7 == 0, "an append is all there or not at all"


FILLING = """
import asyncio, sys, time
from pathlib import Path
from hivenode.errors import Exhausted
from hivenode.store.journal import SqliteJournal
from hivenode.store.ports import Record

async def main():
    journal = SqliteJournal.open(Path(sys.argv[1]))
    record = lambda n, size: Record("a" * 32, n, b"x" * size)
    await journal.append([record(1, 100)])
    journal._writer.submit(time.sleep, 0.2)  # so that the two below go into one commit
    vote, big = await asyncio.gather(
        journal.set_cell("vote", b"1"),
        journal.append([record(2, 4_000_000)]),
        return_exceptions=True,
    )
    assert vote is None, vote
    assert isinstance(big, Exhausted), big
    print(big.sentence)
    await journal.append([record(2, 50)])
    await journal.set_cell("vote", b"2")
    await journal.close()

asyncio.run(main())
"""


def test_a_full_disk_is_named_and_the_journal_works_on(path: Path) -> None:
    """The limit on file size makes writes fail as a quota does."""
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode == 0, done.stderr
    assert f"{path.parent} is full" in done.stdout
    assert [(record.number, len(record.data)) for record in held(path)] == [(1, 100), (2, 50)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    directory = tmp_path / "disk"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting needs root")
    yield directory  # type: ignore[misc]
    subprocess.run(["umount", str(directory)], check=True)


def test_a_truly_full_disk_is_named_and_the_journal_works_on(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    done = subprocess.run([sys.executable, "-c", FILLING, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{small_disk} is full" in done.stdout
    assert [(record.number, len(record.data)) for record in held(path)] == [(1, 100), (2, 50)]
