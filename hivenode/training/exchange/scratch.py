"""Memory that each thread works in: its pages stay mapped from one call to the next."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

PIECE = 64 * 1024
"""Elements worked on at a time: three times as many bytes as they have stay in a cache of 1 MiB."""


class Scratch(threading.local):
    """Attributes:
    sums: (PIECE,) float32, of reductions.
    floats: (PIECE,) float32, of codecs as the others.
    words: (PIECE,) uint32.
    halves: (PIECE,) uint16.
    """

    def __init__(self) -> None:
        self.sums: Vector = np.empty(PIECE, np.float32)
        self.floats: Vector = np.empty(PIECE, np.float32)
        self.words: npt.NDArray[np.uint32] = np.empty(PIECE, np.uint32)
        self.halves: npt.NDArray[np.uint16] = np.empty(PIECE, np.uint16)


SCRATCH = Scratch()
