"""Starting daemons as processes of their own, and waiting until they are ready or have said why not."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hivenode.errors import BY_CODE, HiveError, Unavailable
from hivenode.spec.status import Status

MAX_LOG_BYTES = 16 << 20
TAIL_BYTES = 2000


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a starting daemon writes to the pipe it was given: one of the two."""

    ready: Status | None = None
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class Daemon:
    """A daemon that was started here, in a session of its own."""

    home: Path
    process: subprocess.Popen[bytes]
    log: Path
    _pipe: int

    def wait_ready(self) -> Status:
        """Until it is ready.

        Raises:
            HiveError: why it could not start.
            Unavailable: it ended without a word.
        """
        with open(self._pipe, "rb") as pipe:
            said = pipe.read()  # until it closes the pipe, or dies
        try:
            report = msgspec.json.decode(said, type=Report)
        except msgspec.DecodeError:
            self.process.wait()
            raise Unavailable(
                f"The daemon for {self.home} ended (exit code {self.process.returncode}) before it was ready: "
                f"{_tail(self.log)}",
                fix=f"See {self.log}.",
            ) from None
        if report.ready is not None:
            return report.ready
        self.process.wait()
        told = report.error or {}
        raise BY_CODE.get(told.get("code", ""), HiveError)(
            told.get("message", "The daemon could not start."), fix=told.get("fix", f"See {self.log}.")
        )


def start(home: Path, arguments: Sequence[str]) -> Daemon:
    """Start `hivenode up` for a home; its log goes to daemon.log there. Returns at once: see `Daemon.wait_ready`."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = home / "daemon.log"
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    read, write = os.pipe()
    try:
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as sink:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # not what lies in the directory that this happens to be started in
                    "-m",
                    "hivenode.cli.main",
                    "--home",
                    str(home),
                    "up",
                    "--ready-fd",
                    str(write),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(write,),
                start_new_session=True,
            )
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    return Daemon(home, process, log, read)


def tell(descriptor: int, report: Report) -> None:
    """The daemon's side of the pipe: say it once, and close. Whoever waited may have gone meanwhile."""
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as pipe:
        pipe.write(msgspec.json.encode(report))


def wait_end(pid: int, seconds: float) -> bool:
    """Whether a process has ended within `seconds`, be it that nobody has buried it yet (as in a container whose first
    process does not)."""
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([handle], [], [], seconds)[0])
        finally:
            os.close(handle)
    import psutil

    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _tail(log: Path) -> str:
    data = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    return data.splitlines()[-1] if data else "it said nothing"
