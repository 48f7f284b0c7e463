"""A process that only forks children of a worker: begun while the worker has one thread, and without a use of its
own for the framework, so that forking stays safe and takes milliseconds."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from hivenode import dumpable
from hivenode.errors import Unavailable
from hivenode.training.distributed.memory import create
from hivenode.worker import sandbox

EXIT_DEFECT = 70
"""As in the forkserver."""
BEAR = b"another"
"""What asks for a child; any other packet is the number of one to end."""


class Nursery:
    """`distributed.crew.Births`. To be created while the calling process has a single thread, has computed nothing, and
    may still start and end processes; whatever it has open is closed in children. The nursery and its children end with
    the calling process.

    Args:
        wall_in: called in each child before it does anything. The nursery itself stays as it is: it only forks.
        memory_bytes: how much the worker may share with its children.
    """

    def __init__(self, wall_in: Callable[[], object], memory_bytes: int) -> None:
        if threading.active_count() > 1:
            raise RuntimeError("only a process with one thread can be forked")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        if os.fork() == 0:
            _serve(theirs, parent, wall_in)
        theirs.close()
        self._control = ours
        self.memory = create(memory_bytes)

    def child(self, control: socket.socket, wishes: socket.socket) -> Callable[[], None]:
        """See `Births`."""
        try:
            socket.send_fds(self._control, [BEAR], [control.fileno(), wishes.fileno(), self.memory])
            answer = self._control.recv(256).decode()
        except OSError as error:
            answer = str(error)
        if not answer.isdecimal():
            raise Unavailable(
                f"No process could be made for torch.distributed: {answer or 'who makes them has ended'}.",
                fix="Check the machine's memory and limits, and the job's log.",
            )

        def end() -> None:
            with contextlib.suppress(OSError):  # then all have ended
                self._control.send(answer.encode())

        return end


def _serve(control: socket.socket, parent: int, wall_in: Callable[[], object]) -> NoReturn:
    """Until the worker is gone."""
    status = EXIT_DEFECT
    try:
        sandbox.die_with_parent(parent)
        dumpable.forbid()  # it has no walls
        own = socket.socket(fileno=sandbox.hold_only(control.fileno(), 2))
        import hivenode.training.distributed.child  # noqa: F401 - its imports take seconds, once

        gc.collect()
        gc.freeze()
        born: set[int] = set()
        while True:
            packet, descriptors, _, _ = socket.recv_fds(own, 16, 3)
            if not packet:
                break
            if packet == BEAR:
                _fork(own, descriptors, wall_in, born)
            elif int(packet) in born:  # not reaped yet, so the number is still its own
                os.kill(int(packet), signal.SIGKILL)
            while pid := _reaped():
                born.discard(pid)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the worker's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fork(own: socket.socket, descriptors: list[int], wall_in: Callable[[], object], born: set[int]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        own.send(f"fork: {error.strerror}".encode())
        return
    finally:
        if os.getpid() == parent:
            for descriptor in descriptors:
                os.close(descriptor)
    if pid == 0:
        _become_child(own, descriptors, parent, wall_in)
    born.add(pid)
    own.send(str(pid).encode())


def _become_child(own: socket.socket, descriptors: list[int], parent: int, wall_in: Callable[[], object]) -> NoReturn:
    status = EXIT_DEFECT
    try:
        sandbox.die_with_parent(parent)
        own.close()
        dumpable.allow()
        wall_in()
        from hivenode.training.distributed.child import main

        main(*descriptors)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the nursery's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reaped() -> int:
    """Number of a child that has ended and was not known to have; 0 if there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0
