"""What a process that reads a file for a job can still do, and that all kinds of files are read all the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hivenode import walls
from hivenode.data import preparing
from hivenode.data.manifest import Manifest
from hivenode.data.preparing import prepared
from hivenode.data.reading import read
from hivenode.data.shards import write
from hivenode.errors import Exhausted, HiveError, InvalidInput
from hivenode.spec.data import DataSpec

MEMORY = 1 << 30

# The reader of CSV files is what the file has made of it: it does as it likes, within the process that reads.
TAKEN_OVER = """
import os, socket, sys
from pathlib import Path
from hivenode.data.readers import csv_file
from hivenode.worker import prepare

room, pieces = sys.argv[1:]
ATTEMPTS = {
    "read the node's key": lambda: open(f"{room}/secret").read(),
    "list the home": lambda: os.listdir(room),
    "write elsewhere": lambda: open(f"{room}/mark", "w"),
    "write over what is read": lambda: open(f"{room}/rows.csv", "a"),
    "write into /tmp": lambda: open("/tmp/mark-of-hivenode", "w"),
    "read through a link": lambda: (os.symlink(f"{room}/secret", f"{pieces}/link"), open(f"{pieces}/link").read()),
    "its parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
    "its parent's environment": lambda: open(f"/proc/{os.getppid()}/environ", "rb"),
    "a signal to its parent": lambda: os.kill(os.getppid(), 0),
    "run a program": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "fork": lambda: os.fork() or os._exit(0),
    "the network": lambda: socket.create_connection(("127.0.0.1", 1)),
    "listen": lambda: socket.create_server(("127.0.0.1", 0)),
    "more memory": lambda: bytearray(8 << 30),
}
ALLOWED = {
    "read the file": lambda: open(f"{room}/rows.csv").read(),
    "write pieces": lambda: open(f"{pieces}/piece", "w"),
}

def taken_over(path, spec):
    said = []
    for attempts, wanted in ((ATTEMPTS, False), (ALLOWED, True)):
        for name, attempt in attempts.items():
            try:
                attempt()
                done = True
            except (OSError, MemoryError) as error:
                done = isinstance(error, ConnectionRefusedError)
            said.append(("" if done is wanted else "WRONG: ") + name)
    from hivenode.errors import InvalidInput
    raise InvalidInput("; ".join(said), fix="")

csv_file.read = taken_over
sys.exit(prepare.main(1 << 30, Path(pieces)))
"""


@pytest.mark.skipif(walls.landlock() < 1, reason="this kernel has no Landlock")
def test_a_reader_that_a_file_took_over_reaches_that_file_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    (tmp_path / "secret").write_text("there")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    done = subprocess.run(
        [sys.executable, "-c", TAKEN_OVER, str(tmp_path), str(tmp_path / "pieces")],
        input=DataSpec(source=f"csv:{tmp_path}/rows.csv").model_dump_json().encode(), capture_output=True, check=False,
    )  # fmt: skip
    said = json.loads(done.stdout)["error"]["message"].split("; ")
    assert len(said) == 16
    assert [line for line in said if line.startswith("WRONG")] == []
    assert not (tmp_path / "mark").exists()


# It goes on writing, little by little, until it is stopped.
HOARDING = """#!{python}
import os, sys
from pathlib import Path
from hivenode.data.readers import csv_file
from hivenode.worker import prepare

memory, pieces = sys.argv[-2:]

def hoard(path, spec):
    number = 0
    while True:
        number += 1
        with open(f"{{pieces}}/{{number}}", "wb") as file:
            file.write(bytes({size}))
            os.fsync(file.fileno())

csv_file.read = hoard
sys.exit(prepare.main(int(memory), Path(pieces)))
"""


@pytest.mark.parametrize(("size", "room"), [(1 << 20, 16 << 20), (0, 1 << 30)], ids=["bytes", "files"])
def test_what_cuts_a_file_into_pieces_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, room: int
) -> None:
    (tmp_path / "pieces").mkdir()
    reader = tmp_path / "reader"
    reader.write_text(HOARDING.format(python=sys.executable, size=size))
    reader.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(reader))
    monkeypatch.setattr(preparing, "MORE_BYTES", room - MEMORY)
    monkeypatch.setattr(preparing, "MOST_FILES", 200)
    with pytest.raises(Exhausted, match=f"{room >> 20} MiB of disk or the 200 files") as raised:
        prepared(DataSpec(source=f"csv:{_rows(tmp_path / 'a.csv')}"), tmp_path / "pieces", MEMORY)
    assert "Free some space" in raised.value.fix


# It writes where the path is too long for whoever counts it; a folder without the right to be read is as good.
HIDING = """#!{python}
import os, sys
from pathlib import Path
from hivenode.data.readers import csv_file
from hivenode.worker import prepare

memory, pieces = sys.argv[-2:]

def hide(path, spec):
    os.chdir(pieces)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    Path("hidden").write_bytes(bytes(1 << 20))
    os._exit(1)

csv_file.read = hide
sys.exit(prepare.main(int(memory), Path(pieces)))
"""


def test_what_it_hides_is_taken_for_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pieces").mkdir()
    reader = tmp_path / "reader"
    reader.write_text(HIDING.format(python=sys.executable))
    reader.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(reader))
    with pytest.raises(Exhausted, match="cannot be measured: File name too long"):
        prepared(DataSpec(source=f"csv:{_rows(tmp_path / 'a.csv')}"), tmp_path / "pieces", MEMORY)
    shutil.rmtree(tmp_path / "pieces")


def _rows(path: Path) -> Path:
    path.write_text("a,b,kind\n" + "1,2,x\n3,4,y\n5,7,x\n" * 8)
    return path


def _jsonl(path: Path) -> Path:
    path.write_text('{"v": [1, 2], "y": 0}\n{"v": [3, 1], "y": 1}\n' * 8)
    return path


def _npz(path: Path) -> Path:
    np.savez(path, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
    return path


def _npy(path: Path) -> Path:
    np.save(path, np.random.default_rng(0).normal(size=(40, 3)))
    return path


def _parquet(path: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": [1.0, 2.0] * 9, "y": ["p", "q"] * 9}), path)
    return path


def _text(path: Path) -> Path:
    path.write_text("das Ei und die Henne " * 60)
    return path


def _images(path: Path) -> Path:
    from PIL import Image

    (path.parent / "store").mkdir()
    for name, colour in (("cat", 10), ("dog", 200)):
        (path / name).mkdir(parents=True)
        for n in range(4):
            Image.new("RGB", (9, 9), (colour, n, n)).save(path / name / f"{n}.png")
    Image.new("RGB", (9, 9)).save(path.parent / "store" / "far.png")
    (path / "cat" / "far.png").symlink_to(path.parent / "store" / "far.png")  # as a cache's folders are made
    return path


def _arrow(path: Path) -> Path:
    import pyarrow

    path.mkdir()
    table = pyarrow.table({"a": [1.0, 2.0] * 9, "y": [0, 1] * 9})
    with pyarrow.OSFile(str(path / "data.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (path / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return path


@pytest.mark.parametrize(("kind", "make"), [
    ("csv", _rows), ("jsonl", _jsonl), ("npz", _npz), ("npy", _npy), ("parquet", _parquet), ("text", _text),
    ("images", _images), ("arrow", _arrow),
])  # fmt: skip
def test_within_the_walls_a_file_gives_the_same_pieces(tmp_path: Path, kind: str, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path / f"data.{kind}")
    spec = DataSpec(source=f"{kind}:{source}", size=8, length=16)
    manifests: list[Manifest] = []
    for name, cut in (
        ("within", lambda place: prepared(spec, place, MEMORY)),
        ("without", lambda place: write(read(spec), place)),
    ):
        (tmp_path / name).mkdir()
        manifests.append(cut(tmp_path / name))
    assert manifests[0] == manifests[1]
    assert sorted(os.listdir(tmp_path / "within")) == sorted({shard.digest for shard in manifests[0].shards})


def test_a_tokenizer_of_one_s_own_is_within_reach(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "das": 1, "Ei": 2, "?": 3}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    spec = DataSpec(source=f"text:{_text(tmp_path / 'a.txt')}", length=4, tokenizer=str(tmp_path / "tokenizer.json"))
    assert prepared(spec, None, MEMORY).info.vocabulary == 4


def test_what_the_system_says_of_a_file_is_not_taken_for_a_full_disk() -> None:
    with pytest.raises(InvalidInput, match="File name too long") as raised:
        prepared(DataSpec(source=f"csv:/{'a' * 300}"), None, MEMORY)
    assert "permissions" in raised.value.fix


def test_a_file_that_needs_more_memory_than_may_be_taken_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12 << 20, 2)))
    with pytest.raises(HiveError) as raised:
        prepared(DataSpec(source=f"npy:{tmp_path}/a.npy"), None, 256 << 20)
    assert raised.value.code == "exhausted"
