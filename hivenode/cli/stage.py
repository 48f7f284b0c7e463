"""Several real daemons on this machine, each with a home and ports of its own: started, followed, killed, stopped."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hivenode.cli import daemons
from hivenode.cli.client import AdminClient
from hivenode.errors import HiveError, Unavailable
from hivenode.spec.status import InviteIssued, Notice, Status

NAMES = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "oak")
STOP_SECONDS = 10.0
MAX_HEARD = 10_000
LOOK_AGAIN_SECONDS = 1.0

CONFIG = """\
[node]
name = "{name}"
[network]
listen = "127.0.0.1"
port = 0
discovery = true
interfaces = ["127.0.0.1"]
[membership]
profile = "local"
[admin]
port = 0
[worker]
threads = {threads}
prewarm = ["torch"]
[logs]
format = "json"
"""


@dataclass
class Machine:
    """One daemon, in the role of a machine."""

    name: str
    home: Path
    daemon: daemons.Daemon
    client: AdminClient = field(init=False)
    node: str = ""
    """Its node id, once it is ready."""

    def __post_init__(self) -> None:
        self.client = AdminClient(self.home)

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    def wait_ready(self) -> Status:
        status = self.daemon.wait_ready()
        self.node = status.node
        return status

    def processes(self) -> list[psutil.Process]:
        """The daemon and everything that it started, the daemon first."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> tuple[float, int]:
        """SIGKILL for all of them, as when the power goes.

        Returns:
            when the first was sent (monotonic seconds), and how many processes died with the daemon.
        """
        doomed = self.processes()
        began = time.monotonic()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.daemon.process.wait()
        return began, max(0, len(doomed) - 1)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is still there after a while."""
        left = self.processes()
        if self.daemon.process.poll() is None:
            self.daemon.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemon.process.wait(STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.process.wait(STOP_SECONDS)


@dataclass(frozen=True)
class Heard:
    """A notice, whose daemon told it, and when it arrived (monotonic seconds)."""

    machine: Machine
    notice: Notice
    at: float


class Stage:
    """The machines of one show. Leave it (it is a context manager) and everything it started is gone.

    Args:
        count: machines.
        keep: leave their homes where they are.
    """

    def __init__(self, count: int, *, keep: bool) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="hivenode-demo-"))
        self.machines: list[Machine] = []
        self._count = count
        self._keep = keep
        self._heard: queue.Queue[Heard] = queue.Queue(MAX_HEARD)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            if machine.daemon.process.poll() is None:
                machine.daemon.process.terminate()  # all at once, so that their farewells overlap
        for machine in self.machines:
            machine.stop()
        if not self._keep:
            shutil.rmtree(self.root, ignore_errors=True)

    def begin(self) -> Iterator[tuple[Machine, Status]]:
        """Start them: the first founds the hive, the others join it by invite. Yields each as it is ready."""
        founder = self._start(NAMES[0])
        yield founder, founder.wait_ready()
        token = founder.client.post("/v1/invites", InviteIssued, {"uses": max(1, self._count - 1)}).token
        joining = [self._start(name, f"--join={token}") for name in NAMES[1 : self._count]]
        for machine in joining:
            yield machine, machine.wait_ready()
        for machine in self.machines:
            threading.Thread(target=self._follow, args=(machine,), daemon=True).start()

    def _start(self, name: str, *arguments: str) -> Machine:
        home = self.root / name
        home.mkdir(mode=0o700)
        threads = max(1, (os.cpu_count() or 1) // self._count)
        (home / "hivenode.toml").write_text(CONFIG.format(name=name, threads=threads), encoding="utf-8")
        machine = Machine(name, home, daemons.start(home, arguments))
        self.machines.append(machine)
        return machine

    def _follow(self, machine: Machine) -> None:
        with contextlib.suppress(HiveError):  # it was killed or stopped: that is what the show is about
            for notice in machine.client.follow(patience=0.0):
                if notice is not None:
                    self._heard.put(Heard(machine, notice, time.monotonic()))

    def news(self, until: float) -> Iterator[Heard | None]:
        """What the machines tell, in the order in which it arrives; None now and then when they are silent.

        Args:
            until: monotonic seconds at which to stop.
        """
        while (left := until - time.monotonic()) > 0:
            try:
                yield self._heard.get(timeout=min(left, LOOK_AGAIN_SECONDS))
            except queue.Empty:
                yield None

    def wait(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Until something holds, looked at whenever there is news. Raises Unavailable, saying `what` did not happen."""
        if holds():
            return
        for _ in self.news(time.monotonic() + seconds):
            if holds():
                return
        raise Unavailable(
            f"After {seconds:.0f} s still not: {what}.", fix=f"Look at the logs: `hivenode demo --keep`, {self.root}."
        )
