"""A process with one framework imported that only forks workers: `python -m hivenode.worker.forkserver torch`.

Importing a framework takes seconds, forking takes milliseconds and shares its memory. Forking is only safe while there
is a single thread, so this process has no other and never computes anything. It serves one daemon over its stdin (a
SOCK_SEQPACKET pair) and ends, with all its workers, when the daemon does.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import NoReturn

import msgspec

from hivenode import dumpable
from hivenode.net.forking import MAX_PACKET, REQUEST, Ended, Fork, Forked, FromForkserver, Hello, NotForked
from hivenode.worker import sandbox

FRAMEWORKS = {
    "torch": "hivenode.training.frameworks.torch_building",
    "transformers": "hivenode.training.frameworks.hub_models",
    "keras": "hivenode.training.frameworks.keras_building",
    "sklearn": "hivenode.training.estimating",
}
OPTIONAL = ("sklearn.datasets",)
"""Imported once here instead of once in every worker, where installed."""

EXIT_DEFECT = 70
"""Exit status of a worker that ended by an exception nothing caught (EX_SOFTWARE)."""


class Forkserver:
    """The serving loop.

    Args:
        control: the SOCK_SEQPACKET end shared with the daemon.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid -> number given by the daemon
        self._wakeup, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)
        self._wakeup.setblocking(False)

    def serve(self) -> None:
        """Until the daemon closes its end; then every child is killed and reaped."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the wakeup descriptor is written to
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._control, selectors.EVENT_READ)
                selector.register(self._wakeup, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        if key.fileobj is self._wakeup:
                            self._wakeup.recv(4096)
                            self._reap()
                        elif not self._request():
                            return
        except ConnectionError:
            return  # the daemon is gone
        finally:
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)  # ours and not reaped yet, so the pid is still theirs
            for pid in self._children:
                os.waitpid(pid, 0)

    def _request(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, 2)
        try:
            if not packet:
                return False
            request = REQUEST.decode(packet)
            if len(descriptors) != 2:
                self._say(NotForked(request.number, "two descriptors belong to each request"))
                return True
            self._fork(request, *descriptors)
            return True
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork(self, request: Fork, channel: int, log: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(NotForked(request.number, f"fork: {error.strerror}"))
            return
        if pid == 0:
            _become_worker(request, channel, log, parent)
        self._children[pid] = request.number
        handle = os.pidfd_open(pid)
        try:
            self._say(Forked(request.number, pid), handle)
        finally:
            os.close(handle)

    def _reap(self) -> None:
        while self._children:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._children.pop(pid)
            self._say(Ended(number, os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024))

    def _say(self, message: FromForkserver, *descriptors: int) -> None:
        socket.send_fds(self._control, [msgspec.msgpack.encode(message)], descriptors)


def _become_worker(request: Fork, channel: int, log: int, parent: int) -> NoReturn:
    """In the child: shed what was inherited, run one assignment, leave without unwinding into the server."""
    status = EXIT_DEFECT
    try:
        sandbox.die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        own = sandbox.hold_only(channel, log)
        sandbox.confine(request.kind, request.limits)
        from hivenode.worker.main import run

        status = run(socket.socket(fileno=own), request.limits)
    except BaseException:  # noqa: BLE001 - nothing may return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(framework: str) -> None:
    """Import, say hello, serve."""
    sandbox.die_with_parent(os.getppid())
    dumpable.forbid()  # it has no walls, and its children may run what packages of others do
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to handle
    control = socket.socket(fileno=os.dup(0))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    importlib.import_module(FRAMEWORKS[framework])
    importlib.import_module("hivenode.worker.main")
    for name in OPTIONAL:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in the children leave these pages shared
    server = Forkserver(control)
    threads = len(os.listdir("/proc/self/task"))
    hello = Hello(os.getpid(), threads)
    control.send(msgspec.msgpack.encode(hello))
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1])
