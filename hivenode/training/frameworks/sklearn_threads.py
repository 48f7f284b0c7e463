"""Threads for joblib: its own pool takes semaphores of the system, which lie outside a worker's walls."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import joblib


class Threads(joblib.ParallelBackendBase):  # type: ignore[misc]
    """A backend of joblib's, as it documents them, in one pool of Python's own."""

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    _pool: ThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return n_jobs if n_jobs and n_jobs > 0 else 1

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **_: Any) -> int:
        self.parallel, count = parallel, self.effective_n_jobs(n_jobs)
        self._pool = ThreadPoolExecutor(count)  # starts threads when there is work for them
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None) -> Future[Any]:
        assert self._pool is not None
        future = self._pool.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def terminate(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def get_nested_backend(self) -> tuple[Threads, None]:
        return Threads(nesting_level=(self.nesting_level or 0) + 1), None


def threaded(threads: int) -> AbstractContextManager[Any]:
    """Within it joblib works with so many threads wherever an estimator can use them."""
    backend: AbstractContextManager[Any] = joblib.parallel_config(backend=Threads(nesting_level=0), n_jobs=threads)
    return backend
