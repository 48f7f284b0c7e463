"""Blobs that nobody names are collected, slowly; all others stay."""

from __future__ import annotations

from pathlib import Path

from hivenode.jobs.leftovers import UNNAMED_SECONDS, Leftovers
from hivenode.store.blobs import FileBlobs


async def test_what_nobody_names_for_an_hour_is_deleted(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    model, orphan = await blobs.put_bytes(b"model"), await blobs.put_bytes(b"orphan")
    named = {model.digest}
    leftovers = Leftovers(blobs, lambda digest: digest in named)
    assert await leftovers.collect(0.0) == 0
    assert await leftovers.collect(UNNAMED_SECONDS - 1) == 0
    assert await leftovers.collect(UNNAMED_SECONDS) == 1
    assert blobs.has(model.digest)
    assert not blobs.has(orphan.digest)
    assert not [path for path in tmp_path.rglob("*") if path.name == orphan.digest]


async def test_what_is_named_in_between_gets_its_hour_again(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    ref = await blobs.put_bytes(b"checkpoint")
    named: set[str] = set()
    leftovers = Leftovers(blobs, lambda digest: digest in named)
    await leftovers.collect(0.0)
    named.add(ref.digest)
    await leftovers.collect(UNNAMED_SECONDS)
    named.clear()
    assert await leftovers.collect(2 * UNNAMED_SECONDS) == 0
    assert await leftovers.collect(3 * UNNAMED_SECONDS) == 1


async def test_what_comes_to_be_named_while_others_are_deleted_stays(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    refs = [await blobs.put_bytes(bytes([number])) for number in range(3)]
    asked: list[str] = []

    def named(digest: str) -> bool:
        asked.append(digest)
        return len(asked) > 6 and digest == refs[2].digest

    leftovers = Leftovers(blobs, named)
    await leftovers.collect(0.0)
    assert await leftovers.collect(UNNAMED_SECONDS) == 2
    assert blobs.has(refs[2].digest)
