"""An asyncio event loop in virtual time, with processes that can be killed and frozen.

Nothing in it waits: when no callback is ready, time jumps to the next timer. No sockets, no threads, no subprocesses:
whatever would bring in the outside world raises. The order of callbacks is asyncio's own; tasks and futures hash by the
order of their creation, so that iterating over a set of them is the same in every run.

A `Process` stands for an operating-system process in the simulated world. What is started in it, and all tasks and
callbacks that follow from that, belong to it by way of a context variable. A killed process runs no further line of
code, no `finally` and no cancellation, as after SIGKILL; a frozen one runs none until it is thawed, as after SIGSTOP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import heapq
import itertools
import random
import selectors
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

RESOLUTION = 1e-9
"""Timers so many seconds apart are due together."""
COLLECT = (100_000, 20, 20)
"""Objects made between two collections, and these between two of the older ones: what many nodes hold is looked through
each time, and stays."""

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)


class Deadlock(Exception):
    """Nothing is ready, no timer stands, and somebody still waits."""


class LimitReached(Exception):
    """The bound on virtual time or on turns of the loop was reached."""


class OutsideWorld(Exception):
    """Simulated code tried to use a thread, a socket, a subprocess or a signal."""


class ProcessKilled(Exception):
    """What was asked of a process died with it."""


class _Callback:
    """One call, made only if its process runs."""

    __slots__ = ("args", "call", "handle", "owner", "timer")

    def __init__(self, owner: Process, call: Callable[..., object], args: tuple[Any, ...], timer: bool) -> None:
        self.owner = owner
        self.call = call
        self.args = args
        self.timer = timer
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        owner = self.owner
        if owner.running:
            owner.stir()
            self.call(*self.args)
        elif owner.alive:
            owner.held.append(self)

    def __repr__(self) -> str:
        return f"<{self.owner.name}: {self.call!r}>"


class _Task(asyncio.Task[Any]):
    __slots__ = ("number", "owner")

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Future(asyncio.Future[Any]):
    __slots__ = ("number",)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class Process:
    """One simulated operating-system process. Made by `VirtualLoop.process`."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop = loop
        self.name = name
        self.alive = True
        self.running = True
        self.held: list[_Callback] = []
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)
        self._awaited: dict[asyncio.Future[Any], None] = {}
        self.stir = partial(loop.stirred.setdefault, self)
        self._dead: list[_Task] = []

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """A task of this process."""
        if not self.alive:
            work.close()
            raise ProcessKilled(f"{self.name} is dead")
        return self._context.run(self._loop.create_task, work, name=name)

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        """Call something in this process."""
        self._loop.call_soon(call, *args, context=self._context)

    async def perform(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this process, awaited from outside.

        Raises:
            ProcessKilled: the process died before it was done.
        """
        result: asyncio.Future[T] = self._loop.create_future()
        task = self.spawn(work)

        def done(task: asyncio.Task[T]) -> None:
            if result.done():
                return
            if task.cancelled():
                result.cancel()
            elif (error := task.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(task.result())

        task.add_done_callback(done, context=contextvars.copy_context())
        self._awaited[result] = None
        try:
            return await result
        finally:
            self._awaited.pop(result, None)

    def kill(self) -> None:
        """SIGKILL: not one more line of it runs."""
        if self.alive:
            self._loop.kill([self])

    def end(self, left: list[_Task]) -> None:
        """From here on not one more line of it runs; `left` are its unfinished tasks."""
        self.alive = self.running = False
        self.held.clear()
        # They must not be collected: that would run their `finally` blocks at some moment of the collector's.
        self._dead = left
        for result in list(self._awaited):
            if not result.done():
                result.set_exception(ProcessKilled(f"{self.name} was killed"))

    def freeze(self) -> None:
        """SIGSTOP: timers and messages wait."""
        self.running = False

    def thaw(self) -> None:
        """SIGCONT: what was due meanwhile happens now; timers first, as a loop that wakes up late has read nothing
        from its sockets yet."""
        if not self.alive or self.running:
            return
        self.running = True
        held, self.held = self.held, []
        for callback in sorted(held, key=lambda c: not c.timer):
            self._loop.again(callback, self._context)

    def bury(self) -> None:
        """Release what the dead process left, with no effect on the living."""
        for task in self._dead:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if coroutine is not None:
                with contextlib.suppress(Exception):  # what dead code says on its way out is of no interest
                    self._context.run(coroutine.close)
        self._dead.clear()


class _NoSelector(selectors.BaseSelector):
    """Waits for nothing but time. The loop calls `select` whenever it has nothing to do."""

    def __init__(self, idle: Callable[[float | None], None]) -> None:
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._idle(timeout)
        return []

    def register(self, fileobj: object, events: int, data: object = None) -> NoReturn:  # type: ignore[override]
        raise OutsideWorld("a file descriptor was to be watched")

    def unregister(self, fileobj: object) -> NoReturn:  # type: ignore[override]
        raise OutsideWorld("a file descriptor was to be watched")

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop.

    Args:
        until: virtual seconds after which the run is broken off.
        steps: turns of the loop after which it is.
    """

    def __init__(self, *, until: float = 3600.0, steps: int = 20_000_000) -> None:
        super().__init__()
        self._now = 0.0
        self._until = until
        self._steps_left = steps
        self._thread = threading.get_ident()
        self._selector = _NoSelector(self._idle)
        self._numbers = itertools.count(1)
        self._serial = itertools.count()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._cancelled = 0
        """Timers in there that are cancelled, about."""
        self._watchers: list[tuple[Callable[[], object], asyncio.Future[None]]] = []
        self._checks: list[Callable[[], None]] = []
        self._processes: list[Process] = []
        self.stirred: dict[Process, None] = {}
        """Those of which code has run since somebody last cleared this."""
        self.failures: list[BaseException] = []
        """Exceptions that nobody handled."""
        self.set_exception_handler(self._unhandled)
        self.set_task_factory(self._make_task)

    # --- time ---------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def _idle(self, timeout: float | None) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise LimitReached(f"too many turns of the loop by {self._now:.3f} s: {self._waiting()}")
        if timeout == 0 and self._ready_now():
            return
        for check in self._checks:
            check()
        if self._look():
            return
        if timeout is None:
            raise Deadlock(f"at {self._now:.3f} s nothing can happen any more: {self._waiting()}")
        self._now += timeout
        if self._now > self._until:
            raise LimitReached(f"{self._until:g} s have passed: {self._waiting()}")

    def _ready_now(self) -> bool:
        return bool(self._ready)  # type: ignore[attr-defined]

    def _look(self) -> bool:
        """Whether somebody who waited for a condition has it now."""
        met = [watcher for watcher in self._watchers if watcher[1].done() or watcher[0]()]
        for watcher in met:
            self._watchers.remove(watcher)
            if not watcher[1].done():
                watcher[1].set_result(None)
        return bool(met)

    async def until(self, condition: Callable[[], object], seconds: float, what: str = "") -> None:
        """Wait until a condition holds. It is looked at whenever all is quiet and time is about to pass.

        Raises:
            TimeoutError: `seconds` of virtual time passed first.
        """
        if condition():
            return
        met: asyncio.Future[None] = self.create_future()
        self._watchers.append((condition, met))
        try:
            async with asyncio.timeout(seconds):
                await met
        except TimeoutError:
            raise TimeoutError(f"{what or condition!r} did not happen within {seconds:g} s") from None

    def always(self, check: Callable[[], None]) -> None:
        """Call `check` whenever all is quiet; what it raises ends the run."""
        self._checks.append(check)

    # --- processes ----------------------------------------------------------------------------------------------

    def process(self, name: str) -> Process:
        process = Process(self, name)
        self._processes.append(process)
        return process

    def kill(self, processes: Iterable[Process]) -> None:
        """End these, with one look at all tasks."""
        left: dict[Process, list[_Task]] = {process: [] for process in processes if process.alive}
        for task in self.tasks():
            if task.owner in left:
                left[task.owner].append(task)
        for process, tasks in left.items():
            process.end(tasks)

    def tasks(self) -> list[_Task]:
        """Unfinished tasks, by age."""
        return sorted((t for t in asyncio.all_tasks(self) if isinstance(t, _Task)), key=lambda task: task.number)

    def again(self, callback: _Callback, context: contextvars.Context) -> None:
        """Make a call that was held back, unless it has been cancelled since."""
        handle = callback.handle

        def late() -> None:
            if handle is None or not handle.cancelled():
                callback()

        super().call_soon(late, context=getattr(handle, "_context", None) or context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        owner = _PROCESS.get() if context is None else context.get(_PROCESS)
        if owner is None:
            return super().call_soon(callback, *args, context=context)
        guarded = _Callback(owner, callback, args, False)
        guarded.handle = handle = asyncio.Handle(guarded, (), self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        owner = _PROCESS.get() if context is None else context.get(_PROCESS)
        if owner is None:
            handle = asyncio.TimerHandle(when, callback, args, self, context)
        else:
            guarded = _Callback(owner, callback, args, True)
            guarded.handle = handle = asyncio.TimerHandle(when, guarded, (), self, context)
        heapq.heappush(self._timers, (when, next(self._serial), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._cancelled += 1
        if self._cancelled > 100 and 2 * self._cancelled > len(self._timers):
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _run_once(self) -> None:
        """One turn: asyncio's, with what it does for the sake of sockets and clocks left out; of timers that are due at
        the same time the one set first comes first."""
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
            self._cancelled = max(0, self._cancelled - 1)
        if ready or self._stopping:  # type: ignore[attr-defined]
            self._idle(0.0)
        else:
            self._idle(max(0.0, self._timers[0][0] - self._now) if self._timers else None)
        while self._timers and self._timers[0][0] <= self._now + RESOLUTION:
            _, _, timer = heapq.heappop(self._timers)
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future.number = next(self._numbers)
        return future

    def _make_task(self, loop: Any, coro: Any, context: contextvars.Context | None = None, **more: Any) -> _Task:
        # Numbered before it is made: its first callback is scheduled, and it is put in sets, by the constructor.
        task = _Task.__new__(_Task)
        task.number = next(self._numbers)
        task.owner = _PROCESS.get() if context is None else context.get(_PROCESS)
        task.__init__(coro, loop=self, context=context, **more)  # type: ignore[misc]
        return task

    # --- the outside world --------------------------------------------------------------------------------------

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        if threading.get_ident() != self._thread:
            raise OutsideWorld("another thread called into the simulation")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        raise OutsideWorld(f"{func!r} was to run in a thread")

    def _refuse(self, *args: Any, **more: Any) -> NoReturn:
        raise OutsideWorld("a socket, pipe, subprocess or signal handler was asked for")

    add_reader = remove_reader = add_writer = remove_writer = _refuse
    add_signal_handler = remove_signal_handler = _refuse
    create_connection = create_server = create_datagram_endpoint = start_tls = sendfile = _refuse  # type: ignore[assignment]
    create_unix_connection = create_unix_server = connect_accepted_socket = _refuse  # type: ignore[assignment]
    sock_recv = sock_recv_into = sock_recvfrom = sock_sendall = sock_sendto = sock_connect = sock_accept = _refuse
    getaddrinfo = getnameinfo = connect_read_pipe = connect_write_pipe = _refuse  # type: ignore[assignment]
    subprocess_exec = subprocess_shell = _refuse  # type: ignore[assignment]

    def _process_events(self, event_list: list[object]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        raise OutsideWorld("another thread called into the simulation")

    # --- trouble ------------------------------------------------------------------------------------------------

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task = context.get("task")
        if isinstance(task, _Task) and task.owner is not None and not task.owner.alive:
            return
        error = context.get("exception")
        self.failures.append(error if isinstance(error, BaseException) else RuntimeError(context.get("message", "")))

    def _waiting(self) -> str:
        tasks = [f"{task.get_name()} ({_place(task)})" for task in self.tasks()]
        more = f", and {len(tasks) - 20} more" if len(tasks) > 20 else ""
        return ", ".join(tasks[:20]) + more if tasks else "no task is left"

    def finish(self) -> None:
        """Cancel what still runs, release the dead, close."""
        self.kill(self._processes)
        left = self.tasks()
        for task in left:
            task.cancel()
        living = [task for task in left if task.owner is None]
        if living:
            self._until, self._steps_left = float("inf"), 1_000_000
            self._checks.clear()
            self.run_until_complete(asyncio.gather(*living, return_exceptions=True))
        for process in self._processes:
            process.bury()
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return "done"
    return f"{frames[-1].f_code.co_name}:{frames[-1].f_lineno}"


def run(
    main: Callable[[random.Random], Awaitable[T]], *, seed: int = 0, until: float = 3600.0, steps: int = 20_000_000
) -> T:
    """Run `main` in virtual time from 0.

    Args:
        main: given the source of all randomness of this run.
        until: bound on virtual time, seconds.
        steps: bound on turns of the loop.

    Raises:
        Deadlock, LimitReached, OutsideWorld: see there.
        ExceptionGroup: what failed with nobody to handle it.
    """
    loop = VirtualLoop(until=until, steps=steps)
    rng = random.Random(seed)
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)

    async def work() -> T:
        return await main(rng)

    try:
        try:
            result = loop.run_until_complete(work())
        finally:
            loop.finish()
            gc.set_threshold(*before)
    except Exception as error:
        if loop.failures:
            error.add_note(f"and nobody handled: {loop.failures!r}")
        raise
    if loop.failures:
        raise ExceptionGroup("nobody handled", [e for e in loop.failures if isinstance(e, Exception)])
    return result
