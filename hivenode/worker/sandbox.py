"""What a worker may not do: outlive its parent, gain privileges, hold other descriptors, use more than its share."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from hivenode.net.local import WorkerLimits

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38

OOM_SCORE = 500
"""Under memory pressure the kernel ends a worker before the daemon."""


class ParentGone(Exception):
    """The parent died before this process could ask to die with it."""


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL when the thread that forked this process ends.

    Args:
        parent: pid of the parent as it was before the fork.

    Raises:
        ParentGone: it is no longer our parent.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ParentGone


def hold_only(channel: int, log: int) -> int:
    """Close every descriptor but these two; stdin becomes empty, stdout and stderr go to `log`.

    Returns:
        the channel's new number.
    """
    keep = os.dup(channel)
    os.dup2(log, 1)
    os.dup2(log, 2)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(keep, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(3, False)
    return 3


def confine(kind: str, limits: WorkerLimits) -> None:
    """Apply limits to the calling process for good.

    Memory is limited by RLIMIT_DATA: private writable memory, so shared libraries do not count and an allocation
    beyond it fails cleanly. On top of it, `nice`, no core dumps, no new privileges.
    """
    _prctl(_PR_SET_NAME, ctypes.c_char_p(f"hive-{kind}"[:15].encode()))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    ceiling = limits.memory_bytes if hard == resource.RLIM_INFINITY else min(limits.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    os.nice(limits.nice)
    os.umask(0o077)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))


def _prctl(option: int, value: int | ctypes.c_char_p) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
