"""One daemon to a home."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from hivenode.errors import Conflict, InvalidInput


class HomeLock:
    """A lock on a home directory, held while the process lives (flock): a killed daemon leaves nothing behind.

    Use it as a context manager, or `acquire` and `release`.

    Args:
        home: an existing directory; the lock file in it is `daemon.lock` and holds the pid.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            Conflict: another process holds it; home and pid are named.
            InvalidInput: the home is not there or cannot be written.
        """
        path = self._home / "daemon.lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput(
                f"The home {self._home} cannot be used: {error.strerror}.",
                fix="Give a directory that this user can write.",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            pid = os.pread(file, 32, 0).decode("ascii", "replace").strip()
            os.close(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InvalidInput(
                    f"The home {self._home} cannot be locked: {error.strerror}.",
                    fix="Use a home on a local disk with some free space.",
                ) from error
            who = f"process {pid}" if pid.isdecimal() else "another process"
            raise Conflict(
                f"A daemon already runs in {self._home}: {who} holds it.",
                fix="Use that one (hivenode status), stop it, or give this one its own --home.",
            ) from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> HomeLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
