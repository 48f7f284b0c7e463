"""Threads for joblib. Its own are a `multiprocessing` pool's, whose semaphore lies in shared memory; a worker's walls
leave it none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import joblib
from joblib.parallel import ParallelBackendBase, SequentialBackend


def with_threads(count: int) -> AbstractContextManager[Any]:
    """What scikit-learn does meanwhile, it does in so many threads where it can."""
    config: AbstractContextManager[Any] = joblib.parallel_config(backend=_Threads(), n_jobs=count)
    return config


class _Threads(ParallelBackendBase):  # type: ignore[misc]
    """As joblib asks of a backend: https://joblib.readthedocs.io/en/stable/custom_parallel_backend.html."""

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True
    _pool: ThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return max(1, n_jobs or 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        self.parallel = parallel
        self._pool = ThreadPoolExecutor(self.effective_n_jobs(n_jobs))
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], None]) -> Future[Any]:
        assert self._pool is not None
        future = self._pool.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def terminate(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        self.terminate()
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """What is fitted within a thread is fitted by it alone."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None
