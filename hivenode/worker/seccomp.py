"""A filter on system calls: no new process or program, no socket but those of the network where that is needed, no
memory that escapes the limit, no kernel doors, and no hand on other processes, which have the same user.

A classic BPF program for `prctl(PR_SET_SECCOMP)`, after seccomp(2). Threads can still be started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import NamedTuple

from hivenode import walls

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x10000
_SHARED_ANONYMOUS = 0x01 | 0x20
_X32 = 0x40000000
_NETWORK = (2, 10, 16)
"""AF_INET, AF_INET6, and AF_NETLINK, by which the C library asks for this machine's addresses. Not AF_UNIX: what
listens on such sockets (Docker, D-Bus, an agent with keys) goes by the user, who is the same."""
_PAIRED, _KIND = (1, 5), 0xF
"""SOCK_STREAM, SOCK_SEQPACKET: a pair of datagram sockets could still send to any other."""
_F_SETOWN, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 15, 0x8901, 0x8902
"""Name a process that is to get a signal when something can be read; unasked for, SIGIO ends it."""


class _Table(NamedTuple):
    """System call numbers of one architecture.

    Attributes:
        to_itself: whose first argument is a process, which has to be the caller, or 0 for it.
        socket: refused altogether to whoever does not use the network.
    """

    audit: int
    clone: int
    mmap: int
    fcntl: int
    ioctl: int
    kill: int
    socket: int
    socketpair: int
    to_itself: tuple[int, ...]
    denied: tuple[int, ...]


_COMMON = (
    425, 426, 427,  # io_uring: sockets by another door
    428, 429, 430, 431, 432, 433, 442,  # mounts
    424, 434, 438, 440, 448,  # other processes by descriptor
)  # fmt: skip
_TABLES = {
    "x86_64": _Table(
        0xC000003E, 56, 9, 72, 16, 62, 41, 53,
        (234, 302, 203),  # tgkill, prlimit64, sched_setaffinity
        (
            57, 58, 59, 322,  # fork, vfork, execve, execveat
            29, 319, 447,  # shmget, memfd_create, memfd_secret
            200, 129, 297,  # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo
            141, 142, 144, 314, 251, 256, 279,  # setpriority, sched_set*, ioprio_set, migrate_pages, move_pages
            101, 310, 311, 312,  # ptrace, process_vm_readv, process_vm_writev, kcmp
            155, 161, 165, 166, 272, 308,  # pivot_root, chroot, mount, umount2, unshare, setns
            169, 175, 176, 246, 313, 320,  # reboot, modules, kexec
            248, 249, 250, 298, 321, 323, 304,  # keys, perf_event_open, bpf, userfaultfd, open_by_handle_at
            *_COMMON,
        ),
    ),
    "aarch64": _Table(
        0xC00000B7, 220, 222, 25, 29, 129, 198, 199,
        (131, 261, 122),
        (
            221, 281, 194, 279, 447, 130, 138, 240, 140, 118, 119, 274, 30, 238, 239, 117, 270, 271, 272, 41, 51, 40,
            39, 97, 268, 142, 105, 106, 104, 273, 294, 217, 218, 219, 241, 280, 282, 265, *_COMMON,
        ),
    ),
}  # fmt: skip
_CLONE3 = 435
"""Its flags lie in memory, where a filter cannot look; without it the C library takes clone."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def restrict(*, network: bool = False) -> list[str]:
    """Filter the system calls of this thread and those it starts, for good. `no_new_privs` has to be set.

    Args:
        network: leave it the sockets of the network.

    Returns:
        what now holds, in words; empty on a kernel without, or an architecture whose numbers are not known.

    Raises:
        OSError: the kernel refused.
    """
    if not walls.seccomp():
        return []
    table = _TABLES[platform.machine()]
    code = _program(table, os.getpid(), network=network)
    program = _Program(len(code), (_Instruction * len(code))(*code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    holding = ["processes and programs: seccomp", "shared memory: seccomp", "a hand on other processes: seccomp"]
    return [*holding, "sockets of this machine: seccomp" if network else "sockets: seccomp"]


def _program(table: _Table, pid: int, *, network: bool) -> list[_Instruction]:
    """The filter. Jumps count the instructions that are skipped."""
    allowed, refused = _Instruction(_RETURN, 0, 0, _ALLOW), _Instruction(_RETURN, 0, 0, _ERRNO | errno.EPERM)
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
        _Instruction(_LOAD, 0, 0, _ARGUMENTS),
        _Instruction(_ANY_BIT, 0, 1, _CLONE_THREAD),
        allowed,
        refused,
        _Instruction(_EQUAL, 0, 5, table.mmap),
        _Instruction(_LOAD, 0, 0, _ARGUMENTS + 3 * 8),
        _Instruction(_AND, 0, 0, _SHARED_ANONYMOUS),
        _Instruction(_EQUAL, 0, 1, _SHARED_ANONYMOUS),
        refused,
        allowed,
    ]
    code += _by_argument(table.kill, 0, (pid,), allowed, refused)  # 0 would be its whole group
    for number in table.to_itself:
        code += _by_argument(number, 0, (pid, 0), allowed, refused)
    code += _by_argument(table.fcntl, 1, (_F_SETOWN, _F_SETOWN_EX), refused, allowed)
    code += _by_argument(table.ioctl, 1, (_FIOSETOWN, _SIOCSPGRP), refused, allowed)
    code += _by_argument(table.socket, 0, _NETWORK if network else (), allowed, refused)
    code += _by_argument(table.socketpair, 1, _PAIRED, allowed, refused, _KIND)
    for number in table.denied:
        code += [_Instruction(_EQUAL, 0, 1, number), refused]
    return [*code, allowed]


def _by_argument(
    number: int,
    place: int,
    values: tuple[int, ...],
    among: _Instruction,
    otherwise: _Instruction,
    mask: int = 0xFFFFFFFF,
) -> list[_Instruction]:
    """What becomes of one system call by whether the low half of an argument, masked, is among some values."""
    code = [
        _Instruction(_EQUAL, 0, 3 + 2 * len(values), number),
        _Instruction(_LOAD, 0, 0, _ARGUMENTS + 8 * place),
        _Instruction(_AND, 0, 0, mask),
    ]
    for value in values:
        code += [_Instruction(_EQUAL, 0, 1, value), among]
    return [*code, otherwise]
