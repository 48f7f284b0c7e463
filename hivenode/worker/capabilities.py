"""Privileges of root, see capabilities(7), that a process takes away from itself where the daemon runs as root."""

from __future__ import annotations

import ctypes
import os

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits
_KEPT = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what root's jobs name may belong to anybody."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def shed() -> None:
    """Keep none but those over files. To be called while there is one thread: each has its own.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    for call in (libc.capget, libc.capset):
        if call(ctypes.byref(header), data) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"capabilities: {os.strerror(number)}")
        for word, kept in zip(data, (_KEPT, 0), strict=True):
            word.effective &= kept
            word.permitted &= kept
            word.inheritable = 0
