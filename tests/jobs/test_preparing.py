"""What the submitting node takes in of what a process that read a file has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from hivenode.data.preparing import prepared
from hivenode.errors import Corrupted, InvalidInput
from hivenode.jobs import preparing
from hivenode.jobs.workspace import WorkDirectories
from hivenode.spec.job import parse_job
from hivenode.store.blobs import FileBlobs


class Untouched:
    def touch(self, digest: str) -> None:
        pass


async def stated(body: Any) -> None:
    pass


def preparer_in(folder: Path) -> tuple[preparing.Preparer, WorkDirectories]:
    rooms, blobs = WorkDirectories(folder / "work", folder / "owed"), FileBlobs(folder / "blobs")
    given: Any = {"rooms": rooms, "keeper": Untouched(), "catalogue": None, "holders": None, "append": stated}
    return preparing.Preparer(blobs=blobs, memory_bytes=lambda: 1 << 30, copies=1, candidates=tuple, **given), rooms


def linked(piece: Path, secret: Path) -> None:
    piece.unlink()
    piece.symlink_to(secret)


def replaced(piece: Path, secret: Path) -> None:
    piece.write_bytes(bytes(piece.stat().st_size))


@pytest.mark.parametrize("tamper", [linked, replaced, lambda piece, secret: piece.unlink()])
async def test_a_piece_that_is_something_else_is_refused_and_nothing_of_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "rows.csv").write_text("a,kind\n" + "1,x\n2,y\n" * 9)
    (tmp_path / "secret").write_text("the key of the node")

    async def prepare(spec: Any, directory: str, memory_bytes: int) -> Any:
        manifest = prepared(spec, Path(directory), memory_bytes)
        piece = Path(directory, manifest.shards[0].digest)
        tamper(piece, tmp_path / "secret")
        size = piece.stat().st_size if piece.exists() else manifest.shards[0].size
        told = msgspec.structs.replace(manifest.train[0], size=size)
        return msgspec.structs.replace(manifest, train=(told, *manifest.train[1:]))

    monkeypatch.setattr(preparing, "prepare", prepare)
    preparer, rooms = preparer_in(tmp_path)
    with pytest.raises(Corrupted, match="is not what its list says"):
        await preparer.resolve(parse_job({"name": "x", "data": {"source": f"csv:{tmp_path}/rows.csv"}}))
    await rooms.close()
    kept = [path.read_bytes() for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert b"the key of the node" not in kept
    assert list((tmp_path / "work").iterdir()) == []


async def test_pieces_that_are_equal_are_one(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("ab" * 8000)
    preparer, rooms = preparer_in(tmp_path)
    data = {"source": f"text:{tmp_path}/same.txt", "length": 16}
    spec = await preparer.resolve(parse_job({"name": "x", "model": {"source": "zoo:gpt"}, "data": data}))
    assert spec.data.shared is not None
    assert spec.data.shared.samples == 999
    await rooms.close()


@pytest.mark.parametrize("keep", [True, False], ids=["submitted", "planned"])
async def test_weights_cut_short_are_refused_before_anybody_works_with_them(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"output.weight": np.zeros((10, 64), np.float32)}, path)
    preparer, rooms = preparer_in(tmp_path)
    job = parse_job({"name": "x", "model": {"source": "zoo:logistic", "weights": f"file:{path}"}})
    weights = (await preparer.resolve(job, keep=keep)).model.weights
    assert weights.startswith("blob:") == keep
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidInput, match=r"some\.safetensors holds no usable weights: "):
        await preparer.resolve(job, keep=keep)
    await rooms.close()
