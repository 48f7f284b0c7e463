"""Data sets in pieces: nothing is lost, a range needs only its own pieces, and wrong pieces are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hivenode.data import shards
from hivenode.data.manifest import Manifest, Shard, overlapping, read_manifest
from hivenode.data.partition import Batches, Ranged
from hivenode.data.reading import read
from hivenode.errors import Corrupted
from hivenode.spec.data import DataSpec
from hivenode.spec.split import member_range

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


class Folder:
    """Files of pieces, and which were asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[str] = []

    def __call__(self, wanted: Sequence[Shard]) -> dict[str, Path]:
        self.asked += [shard.digest for shard in wanted]
        return {shard.digest: self.path / shard.digest for shard in wanted}


def cut(tmp_path: Path, source: str = "sklearn:digits") -> Manifest:
    dataset = read(DataSpec(source=source))
    return shards.write(dataset, tmp_path)


@pytest.mark.parametrize("source", ["sklearn:digits", "sklearn:diabetes", "sklearn:descriptions", "sklearn:topics"])
def test_what_was_cut_comes_back_to_the_bit(tmp_path: Path, source: str) -> None:
    manifest = read_manifest(msgspec.json.encode(cut(tmp_path, source)))
    whole, back = read(DataSpec(source=source)), shards.opened(manifest, Folder(tmp_path))
    for one, other in ((whole.train, back.train), (whole.test, back.test)):
        places = np.arange(len(one))[::-1]
        assert len(one) == len(other)
        for mine, theirs in zip(one.take(places), other.take(places), strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.tobytes() == theirs.tobytes()
    assert (back.normalisation, back.targets, back.tokenizer) == (whole.normalisation, whole.targets, whole.tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {shard.digest for shard in manifest.shards}


def test_a_member_needs_only_the_pieces_of_its_range(tmp_path: Path) -> None:
    manifest = cut(tmp_path)
    total = sum(shard.rows for shard in manifest.train)
    for me in WEIGHTS:
        folder = Folder(tmp_path)
        dataset = shards.opened(manifest, folder)
        order = Ranged(Batches(total, 64, seed=1))
        for step in range(2 * order.steps_per_epoch):
            dataset.train.take(order.part(step, tuple(WEIGHTS), WEIGHTS, me)[0])
        mine = overlapping(manifest.train, member_range(total, tuple(WEIGHTS), WEIGHTS, me))
        assert set(folder.asked) == {shard.digest for shard in mine}
        assert len(mine) <= WEIGHTS[me] * len(manifest.train) + 2
        assert len(folder.asked) == len(set(folder.asked)), "nothing is opened twice"


def test_ranges_move_with_the_speeds_and_only_what_is_new_is_needed(tmp_path: Path) -> None:
    manifest = cut(tmp_path)
    total = sum(shard.rows for shard in manifest.train)
    folder = Folder(tmp_path)
    dataset = shards.opened(manifest, folder)
    order = Ranged(Batches(total, 64, seed=1))
    for weights in ({"a": 0.5, "b": 0.5}, {"a": 0.8, "b": 0.2}):
        for step in range(order.steps_per_epoch):
            dataset.train.take(order.part(step, ("a", "b"), weights, "a")[0])
    assert len(folder.asked) == len(overlapping(manifest.train, range(round(total * 0.8))))


@pytest.mark.parametrize("samples", [7, 64, 1000, 1001])
@pytest.mark.parametrize("members", [("a",), ("a", "b"), ("a", "b", "c")])
def test_an_epoch_takes_every_sample_once(samples: int, members: tuple[str, ...]) -> None:
    order = Ranged(Batches(samples, 16, seed=3))
    for epoch in range(2):
        seen: list[int] = []
        for place in range(order.steps_per_epoch):
            parts = [order.part(epoch * order.steps_per_epoch + place, members, WEIGHTS, me) for me in members]
            assert {size for _, size in parts} == {sum(len(part) for part, _ in parts)}
            assert sum(len(part) for part, _ in parts) <= 16 + len(members)
            seen += [int(n) for part, _ in parts for n in part]
        assert sorted(seen) == list(range(samples))
    first = order.part(0, members, WEIGHTS, "a")[0]
    assert samples < 64 or first.tolist() != sorted(first.tolist())


def test_pieces_that_are_not_what_the_manifest_says_are_refused(tmp_path: Path) -> None:
    manifest = cut(tmp_path, "sklearn:topics")
    shard = manifest.train[0]
    good = (tmp_path / shard.digest).read_bytes()
    length = int.from_bytes(good[:8], "little")
    for bad in (
        b"",
        good[:-1],
        good + b"\0",
        (2**60).to_bytes(8, "little") + good[8:],
        good.replace(b"<i4", b"|O8"),
        good[: 8 + length] + b"\xff" * 4 + good[12 + length :],
        good[:-4] + (99).to_bytes(4, "little"),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(Corrupted):
            shards.read_shard(tmp_path / "bad", shard, manifest.info)
    with pytest.raises(Corrupted):
        shards.read_shard(tmp_path / shard.digest, msgspec.structs.replace(shard, rows=99), manifest.info)
    with pytest.raises(Corrupted):
        read_manifest(b"{}")


@pytest.mark.parametrize("source", ["sklearn:digits", "sklearn:diabetes", "sklearn:topics", "sklearn:descriptions"])
def test_no_samples_are_of_the_kind_of_some(tmp_path: Path, source: str) -> None:
    manifest = cut(tmp_path, source)
    some = shards.opened(manifest, Folder(tmp_path)).train.take(np.arange(3))
    none = shards.opened(manifest, Folder(tmp_path)).train.take(np.arange(0))
    for few, nothing in zip(some, none, strict=True):
        assert (nothing.dtype, nothing.shape) == (few.dtype, (0, *few.shape[1:]))
