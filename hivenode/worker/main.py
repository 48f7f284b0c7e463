"""One worker process: reads its first message and carries that assignment out."""

from __future__ import annotations

import socket
import threading
import traceback
from pathlib import Path

from hivenode.net.framing import Channel
from hivenode.net.local import Begin, Failed, Log, Predict, Trace, WorkerLimits
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine
from hivenode.training.strategies.group import Cancelled
from hivenode.worker import reach, sandbox
from hivenode.worker.failures import failed, is_allocation
from hivenode.worker.nursery import Nursery
from hivenode.worker.predict import serve
from hivenode.worker.staged import StagedAssignment
from hivenode.worker.train import TrainingAssignment

EXIT_FAILED = 1
MAX_TRACEBACK = 2000
UNWALLED = {
    "Landlock": "this system has no Landlock: the worker can read what the daemon's user can, not only what it needs",
    "seccomp": "this kind of processor is unknown to the filter of system calls: the worker can start programs",
}
THREAD_STACK_BYTES = 1024 * 1024
"""Stacks count towards the memory limit whether used or not, and an exchange has threads for each peer."""


def run(sock: socket.socket, limits: WorkerLimits) -> int:
    """Carry out one assignment.

    Returns:
        the exit status: 0 when it was done or never given, 1 after `Failed`.
    """
    threading.stack_size(THREAD_STACK_BYTES)
    channel = Channel(sock)
    first = channel.receive()
    failure: Failed | None = None
    try:
        match first:
            case Begin():
                births = None
                if first.plan.engine is Engine.torch:  # now, while there is one thread, and processes can be made
                    births = Nursery(lambda: _walls(first, reach.GLOO), limits.memory_bytes)
                _wall_in(channel, first)
                if _staged(first):
                    StagedAssignment(channel, first, limits).run()
                else:
                    TrainingAssignment(channel, first, limits, births).run()
            case Predict():
                serve(channel, first, limits)
            case Trace():
                from hivenode.worker.trace import answer

                sandbox.keep_to(())
                channel.send(answer(first))
            case None:
                pass
            case _:
                raise TypeError(f"{type(first).__name__} cannot be the first message to a worker")
    except Cancelled as cancelled:
        failure = Failed("cancelled", f"Cancelled: {cancelled}."[:2000], "Nothing to do.", retry=True)
    except Exception as error:  # noqa: BLE001 - becomes the sentence the daemon gets
        failure = failed(error, limits)
        if failure.code == "error" and not is_allocation(error):
            # The end of a traceback says most.
            text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
            channel.send(Log(level="error", event=text))
    if failure is None:
        return 0
    channel.send(failure)
    return EXIT_FAILED


def _wall_in(channel: Channel, begin: Begin) -> None:
    """Leave a training worker what its assignment needs: the job's log says so where the system cannot hold it."""
    holding = _walls(begin)
    for layer, left in UNWALLED.items():
        if not any(layer in held for held in holding):
            channel.send(Log(level="warning", event=left))


def _staged(begin: Begin) -> bool:
    """Whether this worker has a part of a model; an ensemble's members are whole, and divided like trees."""
    return begin.plan.staged and JobSpec.model_validate_json(begin.spec).framework != "sklearn"


def _walls(begin: Begin, more: tuple[str, ...] = ()) -> list[str]:
    return sandbox.keep_to([*reach.to_train(begin), *map(Path, more)], Path(begin.directory), network=True)
