"""Tracing a model in a worker: a process of its own, limited in memory and time, that holds the framework."""

from __future__ import annotations

import asyncio
import importlib.util

from hivenode.errors import BY_CODE, HiveError, Unavailable
from hivenode.jobs.forked import HostLimits
from hivenode.jobs.workers import ForkWorkers
from hivenode.net.local import Failed, FromWorker, Trace, Traced, WorkerLimits
from hivenode.spec.tracing import TraceNumbers, TraceOrder

LIMITS = WorkerLimits(threads=1, memory_bytes=4 << 30, nice=5)
"""Shapes alone are computed, but a module tree of a large model has many objects."""
TRACE_SECONDS = 120.0
PACKAGES = {"declared": ("torch",), "transformers": ("torch", "transformers")}


def missing(order: TraceOrder) -> str:
    """The package that would be needed and is not installed; "" if all are."""
    return next((name for name in PACKAGES[order.kind] if importlib.util.find_spec(name) is None), "")


async def trace(order: TraceOrder, *, limits: WorkerLimits = LIMITS, seconds: float = TRACE_SECONDS) -> TraceNumbers:
    """Start a worker for this one order, and end it.

    Raises:
        InvalidInput: the model cannot be built or run without its file, and why.
        Exhausted: it took more memory than `limits` allow.
        Unavailable: a package is missing, the worker died, or it took longer than `seconds`.
    """
    if package := missing(order):
        raise Unavailable(f"{package} is not installed.", fix=f"pip install {package}, for traced figures.")
    host = ForkWorkers(HostLimits())
    answered: asyncio.Future[TraceNumbers] = asyncio.get_running_loop().create_future()

    def heard(message: FromWorker) -> None:
        if answered.done():
            return
        if isinstance(message, Traced):
            answered.set_result(message.numbers)
        elif isinstance(message, Failed):
            kind = BY_CODE.get(message.code, HiveError)
            answered.set_exception(kind(message.message, fix=message.fix))

    def ended(how: str) -> None:
        if not answered.done():
            answered.set_exception(Unavailable(f"The tracing worker ended: {how}.", fix="Use --no-trace."))

    try:
        async with asyncio.timeout(seconds):
            worker = await host.start("trace", "torch", limits, heard, ended)
            worker.send(Trace(order))
            return await answered
    except TimeoutError:
        raise Unavailable(f"Tracing took longer than {seconds:.0f} s.", fix="Use --no-trace.") from None
    finally:
        await host.close()
        if answered.done() and not answered.cancelled():
            answered.exception()  # told already, or nobody waits for it
