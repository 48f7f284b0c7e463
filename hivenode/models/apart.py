"""Work on a file nobody vouches for, done in a process set apart: what is asked, what comes back, and the asking.

The process is `python -m hivenode.worker.apart`; nothing it answers is trusted further than its type and its bounds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Annotated

import msgspec

from hivenode.errors import Exhausted, HiveError, JobFailed, from_dict
from hivenode.models.identify.report import Report, Trouble

LONGEST_ANSWER = 8 << 20
LONGEST_COMPLAINT = 2_000
LAST_WORDS_S = 10
"""How long its pipes may stay open once it has ended: nothing it started is waited for longer."""
WATCH_S = 0.25
"""How often its time and its disk are looked at; nothing tells when a folder grows."""
INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "KERAS_BACKEND")
"""Of the environment; the rest may hold secrets."""
DEFECT = 70
"""Exit status of a process that ended by an exception nothing caught (EX_SOFTWARE)."""

Text = Annotated[str, msgspec.Meta(max_length=4_000)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the process: private memory, wall-clock and processor time, what it may write."""

    memory_bytes: int
    wall_s: int
    cpu_s: int
    file_bytes: int = 16 << 20


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="load"):
    """Load a model and say what it took."""

    path: str
    only: list[str]
    model: bool


class Convert(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="convert"):
    """Write what a model holds into the directory `out`.

    Attributes:
        run: have the framework's own loader load it, whatever that runs; else only our readers are used.
        code: directories with modules that the pickles need.
    """

    path: str
    out: str
    run: bool
    code: list[str]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process set apart reads first."""

    work: Load | Convert
    limits: Limits
    reads: list[str]
    writes: list[str]


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One loaded tensor."""

    name: Text
    dtype: Text
    shape: list[int]
    nbytes: int


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process set apart says.

    Attributes:
        layers: of the walls around it, that held.
        model: the class of what predicts; "" for weights alone.
        own_bytes: private memory that loading took; mapped pages are not in it.
        seconds: that the work took, without the start of the process.
        notes: of a conversion, what was done and what was not carried over.
    """

    layers: list[Text]
    error: Trouble | None = None
    tensors: list[Held] = []
    model: Text = ""
    left_out: list[Text] = []
    own_bytes: int = 0
    seconds: float = 0.0
    notes: list[Text] = []


def run(work: Load | Convert, limits: Limits, reads: Iterable[Path], writes: Iterable[Path] = ()) -> Answer:
    """Have the work done in a process of its own, which has ended when this returns.

    Args:
        reads, writes: what it may touch, besides Python's own files and a temporary folder.

    Raises:
        HiveError: what the process reported.
        Exhausted: it took more time or memory than it may.
        JobFailed: it ended without an answer.
    """
    room = Path(tempfile.mkdtemp(prefix="hivenode-apart-"))
    try:
        order = Order(work, limits, [str(path) for path in reads], [str(path) for path in (*writes, room)])
        status, answer, complaint = _process(order, room)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    if status is None:
        raise Exhausted(
            f"It took more than {limits.wall_s} s, or {limits.file_bytes >> 20} MiB of disk, and was ended.",
            fix="Allow more: --timeout, --memory.",
        )
    try:
        found = msgspec.json.decode(answer, type=Answer)
    except msgspec.DecodeError:
        raise _unanswered(status, complaint, limits) from None
    if found.error is not None:
        raise _said(found.error)
    return found


def places(path: Path, report: Report) -> list[Path]:
    """What has to be read to load a model: the file or directory, and the files it points at."""
    base = path if path.is_dir() else path.parent
    named = {tensor.file for tensor in report.listing if tensor.file}
    found = [path, *(base / file for file in sorted(named) if not os.path.isabs(file) and ".." not in Path(file).parts)]
    if path.is_dir():
        blobs = path.resolve().parent.parent / "blobs"  # where the links of a cache lead; others may lead anywhere
        found += [link for link in path.iterdir() if link.is_symlink() and link.resolve().parent == blobs]
    return list(dict.fromkeys(part.resolve() for part in found if part.exists()))


def _process(order: Order, room: Path) -> tuple[int | None, bytes, str]:
    """Exit status (None: ended for its time), what it wrote to its answer, and the end of what it said."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {
        "HOME": str(room), "TMPDIR": str(room), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3",
        "OPENBLAS_NUM_THREADS": "1", "MPLCONFIGDIR": str(room), "PYTHONWARNINGS": "ignore",
        "JOBLIB_MULTIPROCESSING": "0",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "hivenode.worker.apart"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=room,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        answer, complaint = _Tail(process.stdout, LONGEST_ANSWER), _Tail(process.stderr, LONGEST_COMPLAINT)
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already; its status says why
                process.stdin.write(msgspec.json.encode(order))
                process.stdin.close()
            status = _watched(process, order)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return status, answer.end(), complaint.end().decode("utf-8", "replace")


def _watched(process: subprocess.Popen[bytes], order: Order) -> int | None:
    """The exit status; None where the time or the disk it may take ran out, and it is to be ended."""
    deadline = time.monotonic() + order.limits.wall_s
    while time.monotonic() < deadline:
        try:
            return process.wait(WATCH_S)
        except subprocess.TimeoutExpired:
            if sum(map(_disk, order.writes)) > order.limits.file_bytes:
                return None
    return None


def _disk(folder: str) -> int:
    """Bytes on disk below a folder that somebody else writes in."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone again
                total += os.lstat(os.path.join(below, name)).st_blocks * 512
    return total


class _Tail:
    """Reads a pipe to its end in a thread of its own, and keeps the last bytes."""

    def __init__(self, pipe: IO[bytes], most: int) -> None:
        self._pipe = pipe
        self._most = most
        self._kept = b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def end(self) -> bytes:
        self._thread.join(LAST_WORDS_S)
        return self._kept

    def _drain(self) -> None:
        while part := self._pipe.read1(64 << 10):  # type: ignore[attr-defined]
            self._kept = (self._kept + part)[-self._most :]


def _said(trouble: Trouble) -> HiveError:
    return from_dict({"code": trouble.code, "message": trouble.message[:4_000], "fix": trouble.fix[:1_000]})


def _unanswered(status: int, complaint: str, limits: Limits) -> HiveError:
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        return Exhausted(
            f"It was ended for taking more than {limits.cpu_s} s of processor time, or by the system for its memory.",
            fix="Allow more: --timeout, --memory.",
        )
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    last = complaint.strip().splitlines()[-1][:300] if complaint.strip() else "it said nothing"
    return JobFailed(
        f"The process ended without an answer ({how}): {last}",
        fix="The file may be made to break its library; get it from somewhere else.",
    )
