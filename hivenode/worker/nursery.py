"""A process that only forks children of a worker: begun while the worker has one thread, and without a use of its
own for the framework, so that forking stays safe and takes milliseconds."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import traceback
from typing import NoReturn

from hivenode.errors import Unavailable
from hivenode.worker import sandbox

EXIT_DEFECT = 70
"""As in the forkserver."""


class Nursery:
    """`distributed.crew.Births`. To be created while the calling process has a single thread, and has computed nothing;
    whatever it has open is closed in children. The nursery and its children end with the calling process."""

    def __init__(self) -> None:
        if threading.active_count() > 1:
            raise RuntimeError("only a process with one thread can be forked")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        if os.fork() == 0:
            _serve(theirs, parent)
        theirs.close()
        self._control = ours

    def child(self, control: socket.socket, wishes: socket.socket, memory: int) -> int:
        """See `Births`."""
        try:
            socket.send_fds(self._control, [b"c"], [control.fileno(), wishes.fileno(), memory])
            answer, descriptors, _, _ = socket.recv_fds(self._control, 256, 1)
        except OSError as error:
            answer, descriptors = str(error).encode(), []
        if not descriptors:
            raise Unavailable(
                f"No process could be made for torch.distributed: {answer.decode() or 'who makes them has ended'}.",
                fix="Check the machine's memory and limits, and the job's log.",
            )
        return descriptors[0]


def _serve(control: socket.socket, parent: int) -> NoReturn:
    """Until the worker is gone."""
    status = EXIT_DEFECT
    try:
        sandbox.die_with_parent(parent)
        own = socket.socket(fileno=sandbox.hold_only(control.fileno(), 2))
        import hivenode.training.distributed.child  # noqa: F401 - its imports take seconds, once

        gc.collect()
        gc.freeze()
        while True:
            packet, descriptors, _, _ = socket.recv_fds(own, 16, 3)
            if not packet:
                break
            _fork(own, descriptors)
            while _reaped():
                pass
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the worker's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fork(own: socket.socket, descriptors: list[int]) -> None:
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
        _become_child(own, descriptors, parent)
    handle = os.pidfd_open(pid)  # not reaped yet, so it is still there
    try:
        socket.send_fds(own, [b"ok"], [handle])
    finally:
        os.close(handle)


def _become_child(own: socket.socket, descriptors: list[int], parent: int) -> NoReturn:
    status = EXIT_DEFECT
    try:
        sandbox.die_with_parent(parent)
        own.close()
        from hivenode.training.distributed.child import main

        main(*descriptors)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may return into the nursery's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reaped() -> bool:
    """Whether a child that has ended was taken note of."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False
