"""What a worker may not do: outlive its parent, gain privileges, hold other descriptors, use more than its share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hivenode import dumpable
from hivenode.net.local import WorkerLimits
from hivenode.worker import capabilities, landlock, seccomp

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
# linux/sched.h
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

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
    beyond it fails cleanly. On top of it, `nice`, no core dumps, no new privileges, and few of those that root has.
    Unlike its parent it may be looked into by its user.
    """
    dumpable.allow()
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
    capabilities.shed()


@dataclass(frozen=True)
class Apart:
    """What a process that handles a file nobody vouches for is left with.

    Attributes:
        reads: files and directories it may read, besides Python's own.
        writes: directories it may write in.
        memory_bytes, cpu_s, file_bytes: limits of private memory, processor time, and each file it writes.
    """

    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    memory_bytes: int
    cpu_s: int
    file_bytes: int


def set_apart(left: Apart) -> list[str]:
    """Take everything else away from the calling process, which must have one thread, for good.

    Returns:
        the layers that hold, in words; a kernel without one of them leaves it out.
    """
    holding = [f"private memory: {left.memory_bytes >> 20} MiB", f"processor time: {left.cpu_s} s"]
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, left.memory_bytes),
        (resource.RLIMIT_CPU, left.cpu_s),
        (resource.RLIMIT_FSIZE, left.file_bytes),
    ):
        _, hard = resource.getrlimit(kind)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (bound, bound))
    os.umask(0o077)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    holding.append("no new privileges")
    if _leave_network():
        holding.append("network: a namespace of its own, with nothing in it")
    capabilities.shed()
    return [*holding, *landlock.restrict((*_interpreter(), *left.reads), left.writes), *seccomp.restrict()]


def keep_to(reads: Iterable[Path], own: Path | None = None, *, network: bool = False) -> list[str]:
    """Leave a confined process these files, Python's own, and what is open already: no others, and no programs.

    Args:
        own: a folder to write in, temporary files too; None: nothing can be written.
        network: it reaches other members; one that answers over its channel alone does not.

    Returns:
        the layers that hold, in words.
    """
    if own is None:
        tempfile.gettempdir()  # libraries ask for it when they are imported; from here on nothing can be written there
    else:
        tempfile.tempdir = str(own)
    writes = () if own is None else (own, Path(os.devnull))
    holding = landlock.restrict((*_interpreter(), *reads), writes, network=network)
    return [*holding, *seccomp.restrict(network=network)]


def _leave_network() -> bool:
    """Enter a user and a network namespace of one's own; False where the system does not let its users."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):  # unmapped, the process is nobody: files go by the user it was all the same
            Path("/proc/self", name).write_text(text, "ascii")
    return True


def _interpreter() -> list[Path]:
    """What Python and the packages installed for it need to be read."""
    here = Path(__file__).resolve().parents[1]  # an editable installation is not on the path
    own = [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.realpath(sys.executable), *sys.path, str(here)]
    own += [path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))]
    system = (
        "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime",
        "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory",
        "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/fs/cgroup",
        "/dev/null", "/dev/zero", "/dev/urandom",
    )  # fmt: skip
    return [Path(path) for path in dict.fromkeys([*own, *system]) if path and os.path.isabs(path) and path != "/"]


def _prctl(option: int, value: int | ctypes.c_char_p) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
