"""Memory that each thread works in: its pages stay mapped from one call to the next."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

PIECE = 64 * 1024
"""Elements worked on at a time, so that what is worked on stays in the cache."""


class Scratch(threading.local):
    """Attributes:
    floats: (PIECE,) float32.
    words: (PIECE,) uint32.
    halves: (PIECE,) uint16.
    """

    def __init__(self) -> None:
        self.floats: npt.NDArray[np.float32] = np.empty(PIECE, np.float32)
        self.words: npt.NDArray[np.uint32] = np.empty(PIECE, np.uint32)
        self.halves: npt.NDArray[np.uint16] = np.empty(PIECE, np.uint16)


SCRATCH = Scratch()
