"""Landlock: a process takes away from itself, for good, the files and the network it does not need.

https://docs.kernel.org/userspace-api/landlock.html, ABI 1 to 6; what an older kernel does not know is left out.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from hivenode import walls

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_PATH_BENEATH = 1
_EXECUTE, _WRITE, _READ, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_OLDEST = (1 << 13) - 1
_TCP = 0b11
_SCOPES = 0b11
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
"""Rights that can be given on something that is no directory."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def restrict(reads: Iterable[Path], writes: Iterable[Path], *, network: bool = False) -> list[str]:
    """Leave this thread, and those it starts, `reads` to read and run, `writes` to read and write, and no TCP.

    `no_new_privs` has to be set. Paths that do not exist are passed over.

    Args:
        network: leave it TCP.

    Returns:
        what now holds, in words; empty where the kernel has no Landlock.

    Raises:
        OSError: the kernel refused.
    """
    abi = walls.landlock()
    if abi < 1:
        return []
    handled = _OLDEST | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL if abi >= 5 else 0)
    no_tcp = abi >= 4 and not network
    rules = _Ruleset(handled, _TCP if no_tcp else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in reads:
            _allow(ruleset, path, _EXECUTE | _READ | _READ_DIR)
        for path in writes:
            _allow(ruleset, path, handled & ~(_EXECUTE | _IOCTL))
        _call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    holding = ["files: Landlock"]
    if no_tcp:
        holding.append("TCP: Landlock")
    if abi >= 6:
        holding.append("signals to others: Landlock")
    return holding


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there, or not ours to see: nothing to allow
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        beneath = _Beneath(rights, descriptor)
        _call(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(beneath), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    found = _libc().syscall(ctypes.c_long(number), *arguments)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return int(found)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
