from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivenode.errors import Corrupted, Exhausted, InvalidInput, NotFound, Unavailable
from hivenode.spec.values import BlobRef
from hivenode.store.blobs import FileBlobs, _Incoming

DATA = bytes(range(256)) * 20_000  # 5 MB


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data))


async def stream(data: bytes, chunk: int = 300_000, *, then: BaseException | None = None) -> AsyncIterator[bytes]:
    for place in range(0, len(data), chunk):
        yield data[place : place + chunk]
        await asyncio.sleep(0)
    if then is not None:
        raise then


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.fixture
async def blobs(tmp_path: Path) -> FileBlobs:
    return FileBlobs(tmp_path / "blobs")


async def test_bytes_put_in_are_held_under_their_hash(blobs: FileBlobs, tmp_path: Path) -> None:
    ref = await blobs.put_bytes(DATA)
    assert ref == ref_of(DATA)
    assert blobs.has(ref.digest)
    path = blobs.path(ref.digest)
    assert path == tmp_path / "blobs" / ref.digest[:2] / ref.digest
    assert path.read_bytes() == DATA
    assert await blobs.read(ref.digest, limit=len(DATA)) == DATA
    assert list(blobs.digests()) == [ref]
    assert await blobs.put_bytes(DATA) == ref
    assert len(files(tmp_path / "blobs")) == 1
    assert await blobs.put_bytes(b"") == ref_of(b"")


@pytest.mark.parametrize("move", [False, True])
async def test_a_file_put_in_stays_or_goes_as_asked(blobs: FileBlobs, tmp_path: Path, move: bool) -> None:
    for _ in range(2):  # the second time the blob is there already
        source = tmp_path / "model.bin"
        source.write_bytes(DATA)
        ref = await blobs.put_file(source, move=move)
        assert ref == ref_of(DATA)
        assert source.exists() is not move
        assert await blobs.read(ref.digest, limit=1 << 30) == DATA
    assert files(tmp_path / "blobs") == [f"{ref.digest[:2]}/{ref.digest}"]


async def test_moving_a_link_takes_the_content_and_not_the_link(blobs: FileBlobs, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(DATA)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    ref = await blobs.put_file(tmp_path / "link", move=True)
    path = blobs.path(ref.digest)
    assert path is not None
    assert not path.is_symlink()
    assert (tmp_path / "real").read_bytes() == DATA


async def test_what_is_not_there_is_named(blobs: FileBlobs, tmp_path: Path) -> None:
    digest = ref_of(b"nothing").digest
    assert not blobs.has(digest)
    assert blobs.path(digest) is None
    assert blobs.partial_size(digest) == 0
    await blobs.delete(digest)
    with pytest.raises(NotFound, match=digest[:12]):
        await blobs.read(digest, limit=10)
    with pytest.raises(NotFound, match=r"none\.bin"):
        await blobs.put_file(tmp_path / "none.bin")


async def test_reading_is_bounded(blobs: FileBlobs) -> None:
    ref = await blobs.put_bytes(b"12345")
    assert await blobs.read(ref.digest, limit=5) == b"12345"
    with pytest.raises(Exhausted):
        await blobs.read(ref.digest, limit=4)


async def test_a_deleted_blob_is_gone(blobs: FileBlobs, tmp_path: Path) -> None:
    ref = await blobs.put_bytes(b"x")
    await blobs.delete(ref.digest)
    assert not blobs.has(ref.digest)
    assert files(tmp_path / "blobs") == []


async def test_a_new_start_knows_what_is_held_and_clears_what_a_crash_left(blobs: FileBlobs, tmp_path: Path) -> None:
    first, second = await blobs.put_bytes(b"1"), await blobs.put_bytes(b"22")
    rubbish = tmp_path / "blobs" / "partial" / "put-00112233"
    rubbish.write_bytes(b"half")
    (tmp_path / "blobs" / first.digest[:2] / "not-a-digest").write_bytes(b"")
    again = FileBlobs(tmp_path / "blobs")
    assert list(again.digests()) == sorted([first, second], key=lambda ref: ref.digest)
    assert not rubbish.exists()


async def test_a_stream_becomes_a_blob(blobs: FileBlobs, tmp_path: Path) -> None:
    ref = ref_of(DATA)
    await blobs.receive(ref, stream(DATA))
    assert await blobs.read(ref.digest, limit=1 << 30) == DATA
    assert files(tmp_path / "blobs") == [f"{ref.digest[:2]}/{ref.digest}"]
    await blobs.receive(ref, stream(b"not even looked at"))


async def test_a_broken_stream_is_resumed_where_it_broke_also_after_a_restart(blobs: FileBlobs, tmp_path: Path) -> None:
    ref = ref_of(DATA)
    with pytest.raises(ConnectionResetError):
        await blobs.receive(ref, stream(DATA[:1_234_567], then=ConnectionResetError()))
    assert blobs.partial_size(ref.digest) == 1_234_567
    assert not blobs.has(ref.digest)
    with pytest.raises(Unavailable, match="2000000 of"):
        await blobs.receive(ref, stream(DATA[1_234_567:2_000_000]))
    again = FileBlobs(tmp_path / "blobs")
    place = again.partial_size(ref.digest)
    assert place == 2_000_000
    await again.receive(ref, stream(DATA[place:]))
    assert await again.read(ref.digest, limit=1 << 30) == DATA
    assert again.partial_size(ref.digest) == 0


async def test_a_cancelled_transfer_can_be_resumed(blobs: FileBlobs) -> None:
    ref, arrived = ref_of(DATA), asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield DATA[:1_500_000]
        yield DATA[1_500_000:3_000_000]
        arrived.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(blobs.receive(ref, stalling()))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blobs.partial_size(ref.digest) == 3_000_000
    await blobs.receive(ref, stream(DATA[3_000_000:]))
    assert blobs.has(ref.digest)


async def test_a_cancelled_transfer_does_not_leave_its_file_to_a_thread(
    blobs: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next transfer of the same blob would write into it at the same time."""
    ref, writing, go_on = ref_of(DATA), threading.Event(), threading.Event()
    write = _Incoming.write

    def slow(incoming: _Incoming, chunks: list[bytes]) -> None:
        writing.set()
        assert go_on.wait(10)
        write(incoming, chunks)

    monkeypatch.setattr(_Incoming, "write", slow)
    task = asyncio.create_task(blobs.receive(ref, stream(DATA, 2_000_000)))
    await asyncio.to_thread(writing.wait, 10)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
        task.cancel()
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blobs.partial_size(ref.digest) == 2_000_000
    await blobs.receive(ref, stream(DATA[2_000_000:]))
    assert await blobs.read(ref.digest, limit=1 << 30) == DATA


@pytest.mark.parametrize("wrong", [b"!" + DATA[1:], DATA + b"!", DATA[:-1] + b"!!"])
async def test_wrong_bytes_are_refused_and_nothing_of_them_kept(blobs: FileBlobs, tmp_path: Path, wrong: bytes) -> None:
    ref = ref_of(DATA)
    with pytest.raises(Corrupted, match=ref.digest[:12]):
        await blobs.receive(ref, stream(wrong))
    assert files(tmp_path / "blobs") == []
    await blobs.receive(ref, stream(DATA))
    assert blobs.has(ref.digest)


async def test_an_endless_stream_is_cut_off_at_the_size_announced(blobs: FileBlobs, tmp_path: Path) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 65536
            yield bytes(65536)

    with pytest.raises(Corrupted, match="More than"):
        await blobs.receive(BlobRef("0" * 64, 1_000_000), endless())
    assert given < 4_000_000
    assert files(tmp_path / "blobs") == []


async def test_two_transfers_of_one_blob_are_one(blobs: FileBlobs) -> None:
    ref = ref_of(DATA)
    await asyncio.gather(blobs.receive(ref, stream(DATA)), blobs.receive(ref, stream(b"")))
    assert await blobs.read(ref.digest, limit=1 << 30) == DATA


async def test_who_waits_for_a_transfer_that_breaks_is_told(blobs: FileBlobs) -> None:
    ref = ref_of(DATA)
    first, second = await asyncio.gather(
        blobs.receive(ref, stream(DATA[:10], then=ConnectionResetError())),
        blobs.receive(ref, stream(DATA)),
        return_exceptions=True,
    )
    assert isinstance(first, ConnectionResetError)
    assert isinstance(second, Unavailable)


async def test_a_blob_that_changed_on_disk_is_not_given_out(blobs: FileBlobs, tmp_path: Path) -> None:
    ref = await blobs.put_bytes(DATA)
    path = blobs.path(ref.digest)
    assert path is not None
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(Corrupted, match="changed on disk"):
        await blobs.read(ref.digest, limit=1 << 30)
    assert not blobs.has(ref.digest)
    assert files(tmp_path / "blobs") == []


async def test_a_digest_is_never_a_path(blobs: FileBlobs, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("../../secret", "/etc/passwd", "A" * 64, "../" * 20 + "0" * 4):
        assert not blobs.has(name)
        assert blobs.path(name) is None
        assert blobs.partial_size(name) == 0
        with pytest.raises(InvalidInput):
            await blobs.delete(name)
        with pytest.raises(InvalidInput):
            await blobs.receive(BlobRef(name, 6), stream(b"secret"))
    assert (tmp_path / "secret").exists()


async def test_old_broken_transfers_do_not_pile_up(blobs: FileBlobs, tmp_path: Path) -> None:
    for age in range(4):
        path = tmp_path / "blobs" / "partial" / (str(age) * 64)
        path.write_bytes(bytes(1000))
        os.utime(path, (1000 - age, 1000 - age))
    again = FileBlobs(tmp_path / "blobs", partial_bytes=2500)
    assert [again.partial_size(str(age) * 64) for age in range(4)] == [1000, 1000, 0, 0]


async def test_the_event_loop_goes_on_meanwhile(blobs: FileBlobs) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await blobs.put_bytes(DATA)
    assert turns > 5
    counter.cancel()


FILLING = """
import asyncio, hashlib, sys
from pathlib import Path
from hivenode.errors import Exhausted
from hivenode.spec.values import BlobRef
from hivenode.store.blobs import FileBlobs

async def stream(data):
    for place in range(0, len(data), 100_000):
        yield data[place : place + 100_000]

async def main():
    home = Path(sys.argv[1])
    blobs = FileBlobs(home / "blobs")
    data = bytes(3_000_000)
    ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data))
    for work in (blobs.put_bytes(data), blobs.put_file(Path(sys.argv[2])), blobs.receive(ref, stream(data))):
        try:
            await work
        except Exhausted as error:
            print(error.sentence)
        print(sorted(p.name for p in home.rglob("*") if p.is_file()), blobs.partial_size(ref.digest))
    await blobs.delete(ref.digest)
    await blobs.put_bytes(b"small")
    print(len(list(blobs.digests())))

asyncio.run(main())
"""


def filled(home: Path, limit: int | None) -> list[str]:
    source = home.parent / "source.bin"
    source.write_bytes(os.urandom(3_000_000))
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(home), str(source)],
        capture_output=True,
        text=True,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def expect_exhausted(home: Path, lines: list[str]) -> None:
    digest = ref_of(bytes(3_000_000)).digest
    sentence = f"The disk that holds {home / 'blobs'} is full."
    assert lines[0] == lines[2] == lines[4] == sentence
    assert lines[1] == lines[3] == "[] 0", "a put that fails leaves nothing"
    assert lines[5].startswith(f"['{digest}'] "), "a transfer keeps what arrived"
    assert int(lines[5].split()[-1]) > 100_000
    assert lines[6] == "1"


def test_a_quota_that_is_used_up_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    expect_exhausted(home, filled(home, 1 << 20))


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(home)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        expect_exhausted(home, filled(home, None))
    finally:
        subprocess.run(["umount", str(home)], check=True)


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
async def test_what_is_held_can_be_checked_and_what_is_damaged_is_given_up(
    blobs: FileBlobs, tmp_path: Path, damage: str
) -> None:
    ref, other = await blobs.put_bytes(DATA), await blobs.put_bytes(b"other")
    assert await blobs.verify(ref.digest)
    assert not await blobs.verify("0" * 64)
    path = blobs.path(ref.digest)
    assert path is not None
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(DATA[:-1] + b"?" if damage == "flipped" else DATA[:-1])
    with pytest.raises(Corrupted):
        await blobs.verify(ref.digest)
    assert not blobs.has(ref.digest)
    assert not await blobs.verify(ref.digest)
    assert files(tmp_path / "blobs") == [str(Path(other.digest[:2]) / other.digest)]
