"""A filter on system calls: no new process or program, no socket, no memory that escapes the limit, no kernel doors.

A classic BPF program for `prctl(PR_SET_SECCOMP)`, after seccomp(2). Threads can still be started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import NamedTuple

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x10000
_SHARED_ANONYMOUS = 0x01 | 0x20
_X32 = 0x40000000


class _Table(NamedTuple):
    """System call numbers of one architecture."""

    audit: int
    clone: int
    mmap: int
    denied: tuple[int, ...]


_COMMON = (
    425, 426, 427,  # io_uring: sockets by another door
    428, 429, 430, 431, 432, 433, 442,  # mounts
    434, 438, 440,  # other processes by descriptor
)  # fmt: skip
_TABLES = {
    "x86_64": _Table(
        0xC000003E, 56, 9,
        (
            41,  # socket
            57, 58, 59, 322,  # fork, vfork, execve, execveat
            29, 319, 447,  # shmget, memfd_create, memfd_secret
            101, 310, 311, 312,  # ptrace, process_vm_readv, process_vm_writev, kcmp
            155, 161, 165, 166, 272, 308,  # pivot_root, chroot, mount, umount2, unshare, setns
            169, 175, 176, 246, 313, 320,  # reboot, modules, kexec
            248, 249, 250, 298, 321, 323, 304,  # keys, perf_event_open, bpf, userfaultfd, open_by_handle_at
            *_COMMON,
        ),
    ),
    "aarch64": _Table(
        0xC00000B7, 220, 222,
        (
            198, 221, 281, 194, 279, 447, 117, 270, 271, 272, 41, 51, 40, 39, 97, 268, 142, 105, 106, 104, 273, 294,
            217, 218, 219, 241, 280, 282, 265, *_COMMON,
        ),
    ),
}  # fmt: skip
_CLONE3 = 435
"""Its flags lie in memory, where a filter cannot look; without it the C library takes clone."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def restrict() -> list[str]:
    """Filter the system calls of this thread and those it starts, for good. `no_new_privs` has to be set.

    Returns:
        what now holds, in words; empty on an architecture whose numbers are not known.

    Raises:
        OSError: the kernel refused.
    """
    table = _TABLES.get(platform.machine())
    if table is None:
        return []
    code = _program(table)
    program = _Program(len(code), (_Instruction * len(code))(*code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return ["processes and programs: seccomp", "sockets: seccomp", "shared memory: seccomp"]


def _program(table: _Table) -> list[_Instruction]:
    """The filter. Jumps count the instructions that are skipped."""
    refused = _Instruction(_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        _Instruction(_EQUAL, 1, 0, table.audit),
        _Instruction(_RETURN, 0, 0, _KILL),
        _Instruction(_LOAD, 0, 0, _NUMBER),
        _Instruction(_AT_LEAST, 0, 1, _X32),
        refused,
        _Instruction(_EQUAL, 0, 1, _CLONE3),
        _Instruction(_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        _Instruction(_EQUAL, 0, 4, table.clone),
        _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT),
        _Instruction(_ANY_BIT, 0, 1, _CLONE_THREAD),
        _Instruction(_RETURN, 0, 0, _ALLOW),
        refused,
        _Instruction(_EQUAL, 0, 5, table.mmap),
        _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT + 3 * 8),
        _Instruction(_AND, 0, 0, _SHARED_ANONYMOUS),
        _Instruction(_EQUAL, 0, 1, _SHARED_ANONYMOUS),
        refused,
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]
    for number in table.denied:
        code += [_Instruction(_EQUAL, 0, 1, number), refused]
    code.append(_Instruction(_RETURN, 0, 0, _ALLOW))
    return code
