"""`python -m hivenode.planning.probe`: this machine's float32 matrix product speed, as JSON on standard output.

A process of its own, so that the daemon need not load a linear algebra library. The number of threads is the
library's (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS).
"""

from __future__ import annotations

import json
import sys
import time

SIDE = 384
"""Rows and columns of the matrices: larger than the caches nearest to a core, small enough to take milliseconds."""
SECONDS = 0.4
"""Measured for at least this long, after one product to warm up."""


def measure(seconds: float = SECONDS, side: int = SIDE) -> float:
    """FLOP/s (2 side**3 a product) of the fastest tenth of the products, so that a moment's disturbance does not
    count as the machine's speed."""
    import numpy

    generator = numpy.random.default_rng(0)
    left = generator.random((side, side), dtype=numpy.float32)
    right = generator.random((side, side), dtype=numpy.float32)
    product = left @ right
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        numpy.matmul(left, right, out=product)
        times.append(time.perf_counter() - start)
    times.sort()
    return float(2.0 * side**3 / times[len(times) // 10])


def main() -> None:
    sys.stdout.write(json.dumps({"flops": measure()}))


if __name__ == "__main__":
    main()
