"""Which of the walls around workers this system has: Landlock and seccomp, asked without putting any up."""

from __future__ import annotations

import ctypes
import errno
import platform
import sys

ARCHITECTURES = ("x86_64", "aarch64")
"""Whose numbers of system calls the filter knows."""
_CREATE_RULESET, _VERSION = 444, 1 << 0  # landlock_create_ruleset(2); the same on every architecture
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def landlock() -> int:
    """Version of the kernel's Landlock; 0 without."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return max(0, int(found))


def seccomp() -> bool:
    """Whether system calls can be filtered: seccomp(2) has a kernel that can complain of the missing program alone."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), None, 0, 0) != 0
    return refused and ctypes.get_errno() == errno.EFAULT


def found() -> str:
    """What there is, in words; "" if nothing."""
    version = landlock()
    return " and ".join(filter(None, (f"Landlock (version {version})" if version else "", "seccomp" * seccomp())))


def lacking() -> tuple[str, ...]:
    """What is missing, each as a sentence on what that means."""
    told = []
    if not landlock():
        told.append("This kernel has no Landlock: a job's worker can read every file that the daemon's user can.")
    if not seccomp():
        told.append("System calls cannot be filtered here (seccomp): a job's worker can start programs.")
    return tuple(told)


REMEDY = (
    "Run Linux 5.13 or later, on x86-64 or 64-bit Arm; `cat /sys/kernel/security/lsm` should name landlock, and a "
    "container has to allow both. Until then let only those submit whom you trust with this machine's files."
)
