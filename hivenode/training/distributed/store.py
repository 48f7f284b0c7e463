"""torch.distributed's store, asked over the worker's links: nothing listens for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from datetime import timedelta
from itertools import count

from torch.distributed import DistStoreError, Store

from hivenode.training.distributed.letters import (
    Add,
    Answer,
    Append,
    Check,
    CompareSet,
    Delete,
    Pipe,
    Reply,
    Request,
    Set,
    Size,
    Wait,
    Wish,
)


class WorkerStore(Store):  # type: ignore[misc]  # torch has no types here
    """Keys and values that the members of a generation share. Any thread may ask.

    Args:
        pipe: to the worker, which carries wishes to the member that keeps them.
        timeout: for whatever is waited for.

    Raises (from each method):
        torch.distributed.DistStoreError: not there in time, refused, or the worker is gone.
    """

    def __init__(self, pipe: Pipe[Reply], timeout: timedelta) -> None:
        super().__init__()
        self._pipe = pipe
        self._timeout = timeout
        self._numbers = count(1)
        self._waiting: dict[int, queue.SimpleQueue[Answer]] = {}
        self._gone = Answer(error="the worker is gone")
        threading.Thread(target=self._listen, name="store", daemon=True).start()

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(Set(key, _bytes(value)))

    def append(self, key: str, value: str | bytes) -> None:
        self._ask(Append(key, _bytes(value)))

    def get(self, key: str) -> bytes:
        """Waits for it."""
        return self._ask(Wait((key,), values=True)).values[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        return list(self._ask(Wait(tuple(keys), values=True)).values)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def has_extended_api(self) -> bool:
        return True

    def add(self, key: str, value: int) -> int:
        return self._ask(Add(key, value)).number

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        return self._ask(CompareSet(key, _bytes(expected_value), _bytes(desired_value))).values[0]

    def check(self, keys: Sequence[str]) -> bool:
        return self._ask(Check(tuple(keys))).number == 1

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        self._ask(Wait(tuple(keys)), timeout)

    def delete_key(self, key: str) -> bool:
        return self._ask(Delete(key)).number == 1

    def num_keys(self) -> int:
        return self._ask(Size()).number

    deleteKey, getNumKeys = delete_key, num_keys

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    @property
    def timeout(self) -> timedelta:
        return self._timeout

    def _ask(self, wish: Wish, timeout: timedelta | None = None) -> Answer:
        number, inbox = next(self._numbers), queue.SimpleQueue[Answer]()
        self._waiting[number] = inbox
        try:
            if not self._pipe.send(Request(number, wish)):
                raise DistStoreError(self._gone.error)
            answer = inbox.get(timeout=(timeout or self._timeout).total_seconds())
        except queue.Empty:
            raise DistStoreError(f"no answer in time: {wish}") from None
        finally:
            self._waiting.pop(number, None)
        if answer.error:
            raise DistStoreError(answer.error)
        return answer

    def _listen(self) -> None:
        while (reply := self._pipe.receive()) is not None:
            if (inbox := self._waiting.get(reply.number)) is not None:
                inbox.put(reply.answer)
        for inbox in list(self._waiting.values()):
            inbox.put(self._gone)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
