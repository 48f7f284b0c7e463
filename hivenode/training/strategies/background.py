"""A call in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(call: Callable[[], T]) -> Future[T]:
    """Start it; the future has what it returns or raises. The thread does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - whoever takes the result is told
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="overlapped", daemon=True).start()
    return future
