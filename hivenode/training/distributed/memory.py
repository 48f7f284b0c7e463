"""Memory that a worker and its child see both: the model's flat vectors, and the batch that is computed."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
from math import prod

import numpy as np

from hivenode.data.info import DataInfo
from hivenode.training.frameworks.model import Inputs, Labels, Layout, Vector

_ALIGNED = 4096
_WIDEST = 8
"""Bytes of a number in a batch."""


def places(layout: Layout, info: DataInfo, batch_size: int) -> tuple[int, int, int, int, int]:
    """Byte offsets of weights, buffers, gradient and batch, and the end. What is never written takes no memory."""
    batch = batch_size * _WIDEST * (info.features + max(info.features, info.outputs))
    found = [0]
    for size in (4 * layout.size, 4 * layout.buffer_size, 4 * layout.size, batch):
        found.append(found[-1] + -(-max(size, 1) // _ALIGNED) * _ALIGNED)
    weights, buffers, gradient, start, end = found
    return weights, buffers, gradient, start, end


def create(size: int) -> int:
    """A descriptor of that many bytes, which no other process can reach. It stays that long for good: whoever has it
    may have been kept from making another."""
    descriptor = os.memfd_create("hive-vectors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


class Shared:
    """A view of such memory.

    Args:
        descriptor: of the memory; may be closed afterwards.

    Raises:
        MemoryError: there is less of it.
    """

    def __init__(self, descriptor: int, where: tuple[int, int, int, int, int], layout: Layout) -> None:
        if where[-1] > os.fstat(descriptor).st_size:
            raise MemoryError
        self._memory = mmap.mmap(descriptor, where[-1])
        self._batch = where[3]
        self.weights = self._vector(where[0], layout.size)
        self.buffers = self._vector(where[1], layout.buffer_size)
        self.gradient = self._vector(where[2], layout.size)

    def _vector(self, start: int, count: int) -> Vector:
        return np.frombuffer(self._memory, np.float32, count, start)

    def batch(self, shapes: tuple[tuple[tuple[int, ...], str], ...]) -> list[Inputs | Labels]:
        """Where arrays of these shapes and dtypes lie, one after the other. Raises ValueError: there is no room."""
        found, start = [], self._batch
        for shape, dtype in shapes:
            array = np.frombuffer(self._memory, dtype, prod(shape), start).reshape(shape)
            start += array.nbytes + -array.nbytes % _WIDEST
            found.append(array)
        return found


def account_for(size: int) -> None:
    """Lower this process's limit of private memory by what it shares, which the kernel does not count."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        left = max(0, soft - size)
        resource.setrlimit(resource.RLIMIT_DATA, (left, left if hard == soft else hard))
