"""Where a kernel has no Landlock: a walled process has its user's files, but not its user's other processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NOBODY = 65534
PARENT = """
import codecs, ctypes, os, sys
from pathlib import Path
from hivenode import dumpable
from hivenode.net.local import WorkerLimits
from hivenode.worker import landlock, sandbox

sandbox._interpreter(), codecs.lookup("ascii")  # while Python's own files can be read
if user := int(sys.argv[3]):
    os.setgroups(())
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    dumpable.allow()  # as a program that this user starts
if sys.argv[1] == "shut":
    dumpable.forbid()
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
landlock.restrict = lambda *_, **__: []  # as on a kernel without
sandbox._leave_network = lambda: False  # a user namespace of its own would keep it in as well
libc = ctypes.CDLL(None, use_errno=True)
parent, secret = os.getppid(), ctypes.create_string_buffer(b"its parent has the same bytes at the same place")


def done(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), "refused")


def read_by_call():
    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    mine = ctypes.create_string_buffer(8)
    parts = Part(ctypes.addressof(mine), 8), Part(ctypes.addressof(secret), 8)
    done(libc.process_vm_readv(parent, ctypes.byref(parts[0]), 1, ctypes.byref(parts[1]), 1, 0))


ATTEMPTS = {
    "read its memory": lambda: open(f"/proc/{parent}/mem", "rb"),
    "write its memory": lambda: open(f"/proc/{parent}/mem", "r+b"),
    "map its memory": lambda: open(f"/proc/{parent}/maps", "rb").read(1),
    "its environment": lambda: open(f"/proc/{parent}/environ", "rb").read(1),
    "its files": lambda: open(f"/proc/{parent}/fd/0"),
    "read by a call": read_by_call,
    "trace it": lambda: done(libc.ptrace(0x4206, parent, 0, 0)),
    "take a descriptor": lambda: done(libc.syscall(438, os.pidfd_open(parent), 0, 0)),
}
if sys.argv[2] == "apart":
    sandbox.set_apart(sandbox.Apart((), (), 1 << 30, 60, 1 << 20))
elif sys.argv[2] == "at work":
    sandbox.confine("train", WorkerLimits(1, 1 << 30, 0))
    sandbox.keep_to((), Path("/"), network=True)
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
    except OSError:
        continue
    print(name)
sys.stdout.flush()
os._exit(0)
"""


def reached(parent: str, child: str, user: int) -> list[str]:
    """Args: user: whom both belong to; 0: who runs the tests."""
    command = [sys.executable, "-P", "-c", PARENT, parent, child, str(user)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("child", ["apart", "at work"])
@pytest.mark.parametrize("user", [0, NOBODY] if os.geteuid() == 0 else [0])
def test_nothing_of_the_parent_is_reached(child: str, user: int) -> None:
    assert reached("shut", child, user) == []


def test_a_parent_that_is_not_shut_would_be_read() -> None:
    found = reached("open", "at work", NOBODY if os.geteuid() == 0 else 0)
    assert {"read its memory", "write its memory", "its environment"} <= set(found)


def test_without_walls_all_of_it_would_work() -> None:
    assert len(reached("open", "free", 0)) == 8
