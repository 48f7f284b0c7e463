"""The journal on disk: SQLite in WAL mode, synced at every commit, written by one thread of its own.

SQLite makes a commit whole or not at all; what it does not notice is a bit that turned over, a block that came back
as zeros, or a file put together from two backups. So every record carries a checksum, and each author's numbers are
counted, when the journal is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hivenode.errors import Conflict, Corrupted, Exhausted, HiveError, InvalidInput, Unavailable
from hivenode.logs import get_logger
from hivenode.store.ports import Record

SCHEMA = 2
WAL_BYTES = 16 << 20
PAGES_AT_ONCE = 2048
"""Freed between two commits."""
BATCH = 256
"""Most calls that share one commit."""

_RECORDS = """
CREATE TABLE {} (
    author TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (author, number)
) WITHOUT ROWID;
"""
_TABLES = f"""
{_RECORDS.format("records")}
CREATE TABLE cells (name TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE damaged (
    author TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, checksum BLOB NOT NULL,
    reason TEXT NOT NULL, moved_at REAL NOT NULL
);
"""
_SEALS = """
CREATE TABLE snapshots (id INTEGER PRIMARY KEY, data BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE floors (author TEXT PRIMARY KEY, number INTEGER NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
"""

_Row = tuple[str, int, bytes, bytes]

log = get_logger("journal")


@dataclass(frozen=True)
class _Append:
    records: tuple[Record, ...]


@dataclass(frozen=True)
class _SetCell:
    name: str
    value: bytes


@dataclass(frozen=True)
class _Seal:
    snapshot: bytes
    floors: Mapping[str, int]


_What = _Append | _SetCell | _Seal


@dataclass
class _Work:
    """One awaited call on its way to the disk."""

    what: _What
    done: Future[None] = field(default_factory=Future)


class SqliteJournal:
    """`store.ports.Journal` on one SQLite file. Made by `open`; used from one event loop.

    Calls that wait at the same time share a commit. A call that is cancelled before its turn writes nothing; after
    that it is written all the same, so do not cancel what you have to know.

    Attributes:
        damaged: for each author that lost records when this journal was opened, the first number cut off. If that
            author is this node, take the records back from other nodes before stating anything new.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: deque[_Work] = deque()
        self._heads: dict[str, int] = {}
        self._floors: dict[str, int] = {}
        self._cells: dict[str, bytes] = {}
        self._closed = False
        self.damaged: Mapping[str, int] = {}
        self._db = self._connect()
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._db.close()
            raise self._meaning(error) from error
        except BaseException:
            self._db.close()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")

    @classmethod
    def open(cls, path: Path) -> SqliteJournal:
        """Open or create a journal, reading all of it once.

        Raises:
            Corrupted: the file is not a journal, or is beyond what can be cut off safely.
            Conflict: it was written by a newer version.
            Exhausted: it is new, and the disk is full.
            InvalidInput: the directory cannot be written.
        """
        return cls(path)

    # --- reading ------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        rows = self._db.execute("SELECT author, number, data FROM records ORDER BY author, number")
        for author, number, data in rows:
            yield Record(author, number, data)

    def snapshot(self) -> bytes | None:
        try:
            row: tuple[bytes, bytes] | None = self._db.execute("SELECT data, checksum FROM snapshots").fetchone()
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        if row is None:
            return None
        if row[1] != _checksum("snapshot", 0, row[0]):
            raise Corrupted(
                f"The snapshot in the journal {self._path} is damaged.",
                fix="Move journal.db aside; what it held comes back from the other members.",
            )
        return row[0]

    @property
    def size(self) -> int:
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def cell(self, name: str) -> bytes | None:
        return self._cells.get(name)

    # --- writing ------------------------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record]) -> None:
        """Durable on return, all or nothing. Records that are there already, the same, are passed over.

        Raises:
            Exhausted: the disk is full; the journal can be used further.
            Corrupted: a number is missing before one of these, or is taken by another record.
        """
        if records:
            await self._write(_Append(tuple(records)))

    async def seal(self, snapshot: bytes, floors: Mapping[str, int]) -> None:
        """Keep a snapshot in place of the records up to these numbers: both or neither, durable on return.

        Raises:
            Exhausted: the disk is full; nothing has changed.
            Corrupted: a floor lies below an earlier one.
        """
        await self._write(_Seal(snapshot, dict(floors)))

    async def set_cell(self, name: str, value: bytes) -> None:
        """Durable on return. Raises Exhausted."""
        await self._write(_SetCell(name, bytes(value)))

    async def close(self) -> None:
        """Finish what is queued and close the file. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._writer, self._db.close)
        self._writer.shutdown(wait=False)

    async def _write(self, what: _What) -> None:
        if self._closed:
            raise Unavailable(f"The journal {self._path} is closed.", fix="The daemon is stopping; start it again.")
        work = _Work(what)
        self._pending.append(work)
        self._writer.submit(self._drain)
        await asyncio.wrap_future(work.done)

    # --- in the writer thread -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Commit what waits. There is one call of this for each piece of work, so most find nothing left."""
        batch: list[_Work] = []
        while self._pending and len(batch) < BATCH:
            work = self._pending.popleft()
            if work.done.set_running_or_notify_cancel():
                batch.append(work)
        try:
            answers = self._answers(batch)
        except BaseException as defect:
            for work in batch:
                work.done.set_exception(defect)
            raise
        for work, error in zip(batch, answers, strict=True):
            if error is None:
                work.done.set_result(None)
            else:
                work.done.set_exception(error)

    def _answers(self, batch: Sequence[_Work]) -> list[HiveError | None]:
        try:
            return self._commit(batch)
        except sqlite3.Error:
            # One large call must not take the others down with it, a vote least of all.
            return [self._commit_alone(work) for work in batch]

    def _commit_alone(self, work: _Work) -> HiveError | None:
        try:
            return self._commit([work])[0]
        except sqlite3.Error as error:
            return self._meaning(error)

    def _commit(self, batch: Sequence[_Work]) -> list[HiveError | None]:
        """Write a batch in one transaction; what is wrong in itself is left out of it and answered."""
        if not batch:
            return []
        heads, cells, floors = dict[str, int](), dict[str, bytes](), dict[str, int]()
        answers: list[HiveError | None] = []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for work in batch:
                try:
                    self._apply(work.what, heads, cells, floors)
                except HiveError as error:
                    answers.append(error)
                else:
                    answers.append(None)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends it by itself after some errors
                self._db.execute("ROLLBACK")
            raise
        self._heads.update(heads)
        self._cells.update(cells)
        self._floors.update(floors)
        if floors:
            self._writer.submit(self._give_back)
        return answers

    def _apply(self, what: _What, heads: dict[str, int], cells: dict[str, bytes], floors: dict[str, int]) -> None:
        if isinstance(what, _SetCell):
            seal = _checksum(what.name, 0, what.value)
            self._db.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", (what.name, what.value, seal))
            cells[what.name] = what.value
            return
        if isinstance(what, _Seal):
            self._apply_seal(what, heads, floors)
            return
        fresh = self._fresh(what.records, heads)
        rows = [(r.author, r.number, r.data, _checksum(r.author, r.number, r.data)) for r in fresh.values()]
        self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
        heads.update(list(fresh))  # pairs in order: an author's last number stays

    def _apply_seal(self, what: _Seal, heads: dict[str, int], floors: dict[str, int]) -> None:
        for author, number in what.floors.items():
            if number < floors.get(author, self._floors.get(author, 0)):
                raise Corrupted(f"The floor of {author} in {self._path} would sink.", fix="Restart the daemon.")
        row = (1, what.snapshot, _checksum("snapshot", 0, what.snapshot))
        self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)", row)
        rows = [(author, number, _checksum(author, number, b"floor")) for author, number in what.floors.items()]
        self._db.executemany("INSERT OR REPLACE INTO floors VALUES (?, ?, ?)", rows)
        self._db.executemany("DELETE FROM records WHERE author = ? AND number <= ?", what.floors.items())
        for author, number in what.floors.items():
            heads[author] = max(number, heads.get(author, self._heads.get(author, 0)))
            floors[author] = number

    def _give_back(self) -> None:
        """Return to the file system what sealed records took, some of it at a time so that no vote waits for long. Not
        being able to is no loss."""
        try:
            # Not `execute`, which takes only the first step, and each step frees one page.
            self._db.executescript(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            left = self._db.execute("PRAGMA freelist_count").fetchone()[0]
        except sqlite3.Error as error:
            log.warning("the journal could not be made smaller", path=self._path, reason=str(error))
            return
        if left and not self._closed:
            with contextlib.suppress(RuntimeError):  # it is being closed just now
                self._writer.submit(self._give_back)

    def _fresh(self, records: Iterable[Record], heads: Mapping[str, int]) -> dict[tuple[str, int], Record]:
        """Those of `records` that are new, in order. Raises Corrupted before anything is written."""
        fresh: dict[tuple[str, int], Record] = {}
        ends: dict[str, int] = {}
        for record in records:
            author, number = record.author, record.number
            head = ends.get(author, heads.get(author, self._heads.get(author, 0)))
            if number == head + 1:
                fresh[author, number] = record
                ends[author] = number
            elif number > head or number < 1:
                raise Corrupted(
                    f"Record {number} of {author} does not follow record {head}, the last in {self._path}.",
                    fix="Send the records between them first.",
                )
            elif number > self._floors.get(author, 0) and self._stored(author, number, fresh) != record.data:
                raise Corrupted(
                    f"Another record {number} of {author} is in {self._path} already.",
                    fix="The author's key is in use twice, or its home was restored from a backup: give it a new home.",
                )
        return fresh

    def _stored(self, author: str, number: int, fresh: Mapping[tuple[str, int], Record]) -> bytes:
        if (author, number) in fresh:
            return fresh[author, number].data
        query = "SELECT data FROM records WHERE author = ? AND number = ?"
        row: tuple[bytes] = self._db.execute(query, (author, number)).fetchone()
        return row[0]

    # --- opening ------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # The thread that opens is not the one that writes; they never use the connection at the same time.
            return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        except OSError as error:
            raise InvalidInput(
                f"The journal {self._path} cannot be opened: {error.strerror}.",
                fix=f"Make {self._path.parent} a directory this user can write.",
            ) from error
        except sqlite3.Error as error:
            raise self._meaning(error) from error

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version < SCHEMA:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # set before anything is written, or by a VACUUM
            if version:
                self._db.execute("VACUUM")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if version > SCHEMA:
            raise Conflict(
                f"The journal {self._path} has format {version}; this version of hivenode knows up to {SCHEMA}.",
                fix="Run the newer hivenode that wrote it, or use another home.",
            )
        tables = {0: _TABLES + _SEALS, 1: _SEALS}.get(version)
        if tables is not None:
            self._db.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {SCHEMA}; COMMIT;")
        self._check_cells()
        self._check_floors()
        self.damaged = self._check_records()

    def _check_cells(self) -> None:
        for name, value, seal in self._db.execute("SELECT name, value, checksum FROM cells"):
            if not isinstance(value, bytes) or _checksum(name, 0, value) != seal:
                # A vote or a fence that cannot be read must not count as never given: that would break a promise.
                raise Corrupted(
                    f"The cell '{name}' in the journal {self._path} is damaged.",
                    fix=f"Restore {self._path} from a backup, or start with a new home and join the hive again.",
                )
            self._cells[name] = value

    def _check_floors(self) -> None:
        for author, number, seal in self._db.execute("SELECT author, number, checksum FROM floors"):
            if _checksum(author, number, b"floor") != seal:
                raise Corrupted(
                    f"What the journal {self._path} says of sealed records is damaged.",
                    fix="Move journal.db aside; what it held comes back from the other members.",
                )
            self._floors[author] = number

    def _check_records(self) -> dict[str, int]:
        """Count heads. For an author with a record that is not what was written, or not in line, that one and all
        after it are cut off: what follows a bad one cannot be trusted to follow."""
        if all(reason is None for _, reason in self._judged()):
            return {}
        self._db.execute("BEGIN IMMEDIATE")
        # Into a table of its own: in a garbled one, rows may be out of order and not be found by their key.
        self._db.execute(_RECORDS.format("sound"))
        cut: dict[str, list[str]] = {}
        for row, reason in self._judged():
            if reason is None:
                self._db.execute("INSERT INTO sound VALUES (?, ?, ?, ?)", row)
            else:
                self._db.execute("INSERT INTO damaged VALUES (?, ?, ?, ?, ?, ?)", (*row, reason, time.time()))
                cut.setdefault(row[0], []).append(reason)
        self._db.execute("DROP TABLE records")
        self._db.execute("ALTER TABLE sound RENAME TO records")
        self._db.execute("COMMIT")
        for author, reasons in cut.items():
            log.error(
                "journal damaged: records moved aside, they come back from other nodes",
                path=self._path, author=author, kept=self._heads.get(author, 0), moved=len(reasons), reason=reasons[0],
            )  # fmt: skip
        return {author: self._heads.get(author, 0) + 1 for author in cut}

    def _judged(self) -> Iterator[tuple[_Row, str | None]]:
        """All rows with None, or the reason why they are cut off. Afterwards `_heads` counts the sound ones."""
        self._heads = dict(self._floors)
        cut: dict[str, str] = {}
        for row in self._db.execute("SELECT author, number, data, checksum FROM records ORDER BY author, number"):
            author, number, data, seal = row
            head = self._heads.get(author, 0)
            if author in cut:
                pass
            elif number != head + 1:
                cut[author] = f"record {head + 1} is missing"
            elif not isinstance(data, bytes) or _checksum(author, number, data) != seal:
                cut[author] = f"record {number} does not match its checksum"
            else:
                self._heads[author] = number
            yield row, cut.get(author)

    def _meaning(self, error: sqlite3.Error) -> HiveError:
        """What an error of SQLite is to a person."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
            # A quota or a file size limit shows as a failed write, not as a full disk.
            return Exhausted(
                f"The disk that holds {self._path.parent} is full: the journal could not be written ({error}).",
                fix="Free some space there (or raise the quota); nothing was lost.",
            )
        if code & 0xFF in _BUSY:
            return Conflict(
                f"The journal {self._path} is in use by another program ({error}).", fix="End that program."
            )
        if code & 0xFF in _FORBIDDEN:
            return InvalidInput(
                f"The journal {self._path} cannot be written ({error}).",
                fix=f"Make {self._path.parent} and the files in it writable for this user.",
            )
        return Corrupted(
            f"The journal {self._path} is damaged ({error}).",
            fix=f"Check the disk; restore {self._path} from a backup, or join the hive again from a new home.",
        )


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_FORBIDDEN = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


def _checksum(author: str, number: int, data: bytes) -> bytes:
    """8 bytes over a record or a cell and its place."""
    head = f"{author}\0{number}\0".encode()
    return hashlib.blake2b(head + data, digest_size=8).digest()
