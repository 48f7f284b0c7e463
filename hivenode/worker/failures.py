"""Exceptions of a worker as sentences for people."""

from __future__ import annotations

from hivenode.errors import Conflict, Exhausted, HiveError, Unavailable
from hivenode.net.local import Failed, WorkerLimits

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
        elsewhere = isinstance(error, Unavailable | Conflict | Exhausted)
        return Failed(error.code, error.sentence[:2000], error.fix[:2000], elsewhere, request)
    if is_allocation(error):
        return Failed(
            code=Exhausted.code,
            message=f"The worker ran out of memory; its limit is {limits.memory_bytes / 2**20:.0f} MiB.",
            fix="Use a smaller model or batch, or raise worker.memory_bytes on that node.",
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


def is_allocation(error: Exception) -> bool:
    """Whether memory has run out."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _ALLOCATION)
