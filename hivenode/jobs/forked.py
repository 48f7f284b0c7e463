"""One forkserver and the workers forked from it, as the daemon sees them: descriptors the loop waits on, no threads.

A worker is over when its channel and its log pipe are at their end and its exit status is known, whichever comes
last; only then its `on_exit` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hivenode.errors import Corrupted, HiveError, Unavailable
from hivenode.jobs.host import OUT_OF_MEMORY, WorkerKind
from hivenode.net import framing
from hivenode.net.forking import MAX_PACKET, REPLY, Ended, Fork, Forked, Hello, NotForked
from hivenode.net.local import FromWorker, Log, ToWorker, WorkerLimits

INHERITED = (
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
)
"""Environment variables that reach workers; whatever else the daemon was given (tokens, proxies) does not."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds of a worker host.

    Args:
        start_seconds: for a forkserver to import its framework, and for a fork.
        stop_seconds: for a forkserver to end by itself before it is killed.
        log_lines: forwarded from one worker's stderr; later ones are only counted.
        log_line_bytes: kept of a line.
        unsent_bytes: queued for a worker that does not read before it is killed.
        vmstat: where the kernel counts processes that it killed for want of memory (Linux, proc(5)).
    """

    start_seconds: float = 120.0
    stop_seconds: float = 5.0
    log_lines: int = 200
    log_line_bytes: int = 2000
    unsent_bytes: int = 8 * 1024 * 1024
    vmstat: Path = Path("/proc/vmstat")


class Worker:
    """One worker process; `jobs.host.WorkerHandle`.

    Args:
        number: its name between daemon and forkserver.

    Attributes:
        born: done once the process exists, or will not.
        over: how it ended, once the process is reaped.
    """

    def __init__(
        self,
        number: int,
        limits: HostLimits,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.born: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[str] = loop.create_future()
        self._limits = limits
        self._on_message = on_message
        self._on_exit = on_exit
        self._pid = 0
        self._pidfd = -1
        self._abandoned = self._killed = False
        self._shortages = shortages(limits.vmstat)
        self._writer: asyncio.StreamWriter | None = None
        self._complaint = ""

    @property
    def pid(self) -> int:
        return self._pid

    def send(self, message: ToWorker) -> None:
        """Queue a message; ignored once the worker is gone.

        Raises:
            InvalidInput: it is too large for the channel.
        """
        frame = framing.encode(message)
        if self._writer is None or self._writer.is_closing() or self.over.done():
            return
        self._writer.write(frame)
        if self._writer.transport.get_write_buffer_size() > self._limits.unsent_bytes:
            self._complaint = "it did not read its messages"
            self.kill()

    def kill(self) -> None:
        """SIGKILL; nothing happens if it is over already."""
        self._killed = True
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def forked(self, pid: int, pidfd: int) -> None:
        """It exists."""
        self._pid, self._pidfd = pid, pidfd
        if self._abandoned:
            self.kill()
        elif not self.born.done():
            self.born.set_result(None)

    def not_forked(self, error: HiveError) -> None:
        """It never came to be."""
        if not self.born.done():
            self.born.set_exception(error)
            self.born.exception()  # whoever waited may have given up

    def abandon(self) -> None:
        """Nobody wants it any more, born or not."""
        self._abandoned = True
        self.kill()

    def ended(self, how: str, peak_bytes: int = 0) -> None:
        """Its exit status is known, and perhaps the most memory that it had."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if how == _how(-signal.SIGKILL) and not self._killed and shortages(self._limits.vmstat) > self._shortages:
            how = f"{OUT_OF_MEMORY}, when it held {peak_bytes >> 20} MiB"
        if not self.over.done():
            self.over.set_result(how)

    def attach(self, writer: asyncio.StreamWriter) -> None:
        """Messages go here from now on."""
        self._writer = writer

    async def watch(self, reader: asyncio.StreamReader, log: int) -> None:
        """Deliver what it says until all of it is over, then call `on_exit`, once."""
        last_words, _ = await asyncio.gather(self._forward(log), self._deliver(reader))
        how = await self.over
        if self._writer is not None:
            self._writer.close()
        reasons = "; ".join(reason for reason in (self._complaint, last_words) if reason)
        self._on_exit(f"{how} ({reasons})" if reasons else how)

    async def _deliver(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await framing.read_from_worker(reader)) is not None:
                self._hand_over(message)
        except Corrupted as error:
            self._complaint = error.sentence
            self.kill()

    async def _forward(self, log: int) -> str:
        """What it writes to stdout and stderr, as Log messages; returns the last line."""
        count, last = 0, ""
        async for line in lines_of(log, self._limits.log_line_bytes):
            count, last = count + 1, line
            if count <= self._limits.log_lines:
                self._hand_over(Log(level="warning", event=line))
        if count > self._limits.log_lines:
            self._hand_over(
                Log(level="warning", event="more lines than are kept", fields={"lines": count - self._limits.log_lines})
            )
        return last

    def _hand_over(self, message: FromWorker) -> None:
        try:
            self._on_message(message)
        except Exception as error:  # noqa: BLE001 - a listener's defect must not hide the worker's end
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"on_message failed for {type(message).__name__}", "exception": error}
            )


class ForkServer:
    """One forkserver process. Must be created on the running loop; `start` it once."""

    def __init__(self, framework: str, limits: HostLimits) -> None:
        self._framework = framework
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, Worker] = {}
        self._numbers = 0
        self._forking = asyncio.Lock()
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._last_words: deque[str] = deque(maxlen=1)

    @property
    def gone(self) -> bool:
        return self._over.done()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        """Start the process and wait until its framework is imported.

        Raises:
            Unavailable: it cannot be started, ends, or takes too long.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log, log_end = os.pipe()
        ours.setblocking(False)
        try:
            self._process = self._spawn_process(theirs, log_end)
        except OSError as error:
            ours.close()
            os.close(log)
            raise self._cannot(str(error.strerror)) from error
        finally:
            theirs.close()
            os.close(log_end)
        self._control = ours
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._ended)
        self._loop.add_reader(ours, self._heard)
        self._task(self._listen(log))
        try:
            async with asyncio.timeout(self._limits.start_seconds):
                await self._hello
        except TimeoutError:
            await self.close()
            raise self._cannot(f"it was not ready after {self._limits.start_seconds:.0f} s") from None
        except BaseException:
            await self.close()
            raise

    async def fork(
        self,
        kind: WorkerKind,
        limits: WorkerLimits,
        on_message: Callable[[FromWorker], None],
        on_exit: Callable[[str], None],
    ) -> Worker:
        """A new worker; its callbacks begin only after this has returned.

        Raises:
            Unavailable: the process could not be made.
        """
        async with self._forking:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            log, log_end = os.pipe()
            self._numbers += 1
            worker = Worker(self._numbers, self._limits, on_message, on_exit)
            self._workers[worker.number] = worker
            try:
                request = msgspec.msgpack.encode(Fork(worker.number, kind, limits))
                socket.send_fds(self._control, [request], [theirs.fileno(), log_end])
                async with asyncio.timeout(self._limits.start_seconds):
                    await worker.born
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException as error:
                ours.close()
                os.close(log)
                worker.abandon()
                if isinstance(error, TimeoutError):
                    raise self._cannot(f"no fork after {self._limits.start_seconds:.0f} s") from error
                if isinstance(error, OSError):
                    raise self._cannot(str(error.strerror)) from error
                raise
            finally:
                theirs.close()
                os.close(log_end)
        worker.attach(writer)
        self._task(worker.watch(reader, log))
        return worker

    async def close(self) -> None:
        """Kill the workers, let the server end by closing its socket, kill it if it does not; wait for all."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.kill()
        if not self.gone:
            try:
                async with asyncio.timeout(self._limits.stop_seconds):
                    await asyncio.gather(*(asyncio.shield(worker.over) for worker in workers))
                    self._close_control()
                    await asyncio.shield(self._over)
            except TimeoutError:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                await asyncio.shield(self._over)
        await asyncio.gather(*self._tasks)

    def _spawn_process(self, control: socket.socket, log: int) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # The BLAS library would start a second thread at import, and so would Arrow's allocator, which scikit-learn
        # imports where pandas is installed; forking is only safe with one.
        # Threads that spin while they wait make a busy machine many times slower, and its owner with it.
        environment |= {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        # One heap for all threads: each would keep what it once needed, while another has room to spare.
        environment |= {"MALLOC_ARENA_MAX": "1"}
        # Not through asyncio: its child watcher needs a thread, a pidfd needs none.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hivenode.worker.forkserver", self._framework],
            stdin=control.fileno(),
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    def _heard(self) -> None:
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, 1)
            except BlockingIOError:
                return
            except ConnectionError:  # as good as the end
                packet, descriptors = b"", []
            if not packet:
                self._loop.remove_reader(self._control)  # the pidfd says the rest
                return
            self._dispatch(packet, descriptors)

    def _dispatch(self, packet: bytes, descriptors: list[int]) -> None:
        match REPLY.decode(packet):
            case Hello(threads=threads) as hello:
                if threads != 1:
                    self._not_ready(f"it has {threads} threads after its imports, and only one can be forked")
                elif not self._hello.done():
                    self._hello.set_result(hello)
            case Forked(number=number, pid=pid):
                if descriptors:
                    self._workers[number].forked(pid, descriptors[0])
                else:  # the kernel drops what does not fit; the worker ends when its channel closes
                    self._workers[number].not_forked(self._cannot("this daemon has too many open files"))
            case NotForked(number=number, reason=reason):
                self._workers.pop(number).not_forked(self._cannot(reason))
            case Ended(number=number, code=code, peak_bytes=peak):
                self._workers.pop(number).ended(_how(code), peak)

    def _ended(self) -> None:
        """The server is over, and the kernel kills its workers with it."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        how = _how(self._process.wait())
        if self._control.fileno() >= 0:
            self._heard()  # what it had still said
            self._close_control()
        self._over.set_result(None)
        self._not_ready(f"it ended: {how}")
        for worker in list(self._workers.values()):
            worker.not_forked(self._cannot(f"it ended: {how}"))
            worker.kill()
            worker.ended(f"killed because its worker server ended: {how}")
        self._workers.clear()

    def _not_ready(self, reason: str) -> None:
        if not self._hello.done():
            self._hello.set_exception(self._cannot(reason))
            self._hello.exception()  # whoever waited may have given up

    def _cannot(self, reason: str) -> Unavailable:
        said = f" ({self._last_words[-1]})" if self._last_words else ""
        return Unavailable(
            f"The {self._framework} worker server cannot start a worker: {reason}{said}.",
            fix=f"Check on that machine that `python -c 'import {self._framework}'` works and memory is free.",
        )

    def _close_control(self) -> None:
        if self._control.fileno() >= 0:  # it may have ended by itself already
            self._loop.remove_reader(self._control)
            self._control.close()

    async def _listen(self, log: int) -> None:
        async for line in lines_of(log, self._limits.log_line_bytes):
            self._last_words.append(line)

    def _task(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))


async def lines_of(descriptor: int, limit_bytes: int) -> AsyncIterator[str]:
    """Non-empty lines of a pipe until its end, each cut to `limit_bytes`; owns and closes the descriptor."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        line = bytearray()
        while part := await reader.read(4096):
            *ended, rest = part.split(b"\n")
            for piece in ended:
                line += piece
                if text := _text(line, limit_bytes):
                    yield text
                line.clear()
            line += rest[: max(0, limit_bytes - len(line))]
        if text := _text(line, limit_bytes):
            yield text
    finally:
        transport.close()


def _text(line: bytearray, limit_bytes: int) -> str:
    return line[:limit_bytes].decode("utf-8", errors="replace").rstrip()


def shortages(vmstat: Path) -> int:
    """How many processes the kernel has killed for want of memory; 0 where it does not say."""
    try:
        text = vmstat.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _how(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
