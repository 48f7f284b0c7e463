"""Whether other processes of the same user may look into this one's memory: PR_SET_DUMPABLE of prctl(2)."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid() -> None:
    """No other process without CAP_SYS_PTRACE reads or writes this one's memory, environment or descriptors, by
    /proc or by ptrace, and it leaves no core file. Children inherit that until they run a program.

    Most of what is in /proc/self belongs to root from then on; what everybody may read there stays readable.
    """
    _set(0)


def allow() -> None:
    """The opposite, as of a program that has just been started."""
    _set(1)


def _set(value: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"PR_SET_DUMPABLE: {os.strerror(number)}")
