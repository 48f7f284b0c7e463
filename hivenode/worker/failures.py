"""Exceptions of a worker as sentences for people."""

from __future__ import annotations

import errno
import re
from math import prod
from pathlib import Path

from hivenode.errors import Conflict, Corrupted, Exhausted, HiveError, Unavailable
from hivenode.net.local import Failed, WorkerLimits

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ALLOCATION = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "out of memory",
    "could not create a primitive",
    "can't start new thread",
)
"""How PyTorch (a plain RuntimeError), oneDNN within it and the threading module say that memory has run out."""


def failed(error: Exception, limits: WorkerLimits, request: int | None = None) -> Failed:
    """What to report of an exception that ended the work, or one prediction."""
    if isinstance(error, HiveError):
        elsewhere = isinstance(error, Unavailable | Conflict | Exhausted | Corrupted)
        return Failed(error.code, error.sentence[:2000], error.fix[:2000], elsewhere, request)
    if is_allocation(error):
        held, asked = _held(), _asked(error)
        more = f", asked for {asked / 2**20:.0f} MiB more" if asked else ""
        limit = limits.memory_bytes
        return Failed(
            code=Exhausted.code,
            message=f"The worker ran out of memory: it held {held / 2**20:.0f} MiB{more}, "
            f"and its limit is {limit / 2**20:.0f} MiB.",
            fix="Use a smaller model or batch, or raise worker.memory_bytes on that node.",
            retry=True,
            request=request,
            needed_bytes=max(held + asked, limit + 1),
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return Failed(
            code=Exhausted.code,
            message=f"The worker could not write a file: {error.strerror}.",
            fix="Free space on the disk that holds that node's home.",
            retry=True,
            request=request,
        )
    return Failed(
        code="error",
        message=f"The worker failed: {type(error).__name__}: {error}"[:2000],
        fix="The job's log has the traceback.",
        retry=False,
        request=request,
    )


def _held() -> int:
    """Private memory of this process, bytes, as its limit counts it (proc(5), VmData)."""
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _asked(error: Exception) -> int:
    """Bytes that could not be had, where the error says so: numpy's in its attributes, PyTorch's in its text."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is not None and dtype is not None:
        return int(prod(shape)) * int(dtype.itemsize)
    found = re.search(r"tried to allocate (\d+) bytes", str(error))
    return int(found[1]) if found else 0


def is_allocation(error: Exception) -> bool:
    """Whether memory has run out."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    if "primitive descriptor" in text:  # oneDNN has no such operation here, with however much memory
        return False
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _ALLOCATION)
