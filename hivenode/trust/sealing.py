"""Files that must be whole, durable and private: keys and credentials."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from hivenode.errors import Exhausted, InvalidInput, NotFound, Refused

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_sealed(path: Path, data: bytes) -> None:
    """Write a file readable by its owner only. After a crash at any point the old content or the new one is
    there, never a mixture, and on return the new one survives power loss.

    Raises:
        Exhausted: the disk is full; the old content is untouched.
        InvalidInput: the directory cannot be written.
    """
    scratch = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise Exhausted(f"The disk that holds {path.parent} is full.", fix="Free some space there.") from error
        raise InvalidInput(
            f"{path} cannot be written: {error.strerror}.", fix=f"Make {path.parent} writable for this user."
        ) from error


def read_sealed(path: Path) -> bytes:
    """Read a private file.

    Raises:
        NotFound: there is none.
        Refused: group or others have access to it, so it may be known to someone else.
        InvalidInput: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise Refused(
                    f"The key file {path} is open to others on this machine (mode {mode:o}).",
                    fix=f"Run: chmod 600 {path}",
                )
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", fix="Check the home directory.") from None
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}.", fix="Run the daemon as the user who owns that file."
        ) from error


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
