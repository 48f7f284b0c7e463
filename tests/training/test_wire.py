"""What a member could not say in one exchange it says in the next, whatever kept it from being heard."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from hivenode.training.exchange.codecs import CODECS, Codec
from hivenode.training.frameworks.model import Vector
from hivenode.training.strategies.collective import Mean
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.wire import Wire

SIZE = 4096
SHARE = np.random.default_rng(3).standard_normal(SIZE).astype(np.float32)


class Heard:
    """A group of one that keeps what it was given, and may come to it too late."""

    planned = ("a", "b")

    def __init__(self) -> None:
        self.late, self.voids = False, 0
        self.owed: tuple[int, Vector] | None = None
        self.said: Vector = np.zeros(SIZE, np.float32)

    def agree(
        self, vector: Vector, compute: Callable[[], float], step: int, codec: Codec | None = None,
        void: Callable[[], None] = lambda: None, *, judged: bool = False,
    ) -> Mean:  # fmt: skip
        while self.voids:
            self.voids -= 1
            compute()
            void()
        weight = compute()
        given = vector.copy()
        vector.fill(7.0)  # the mean of others
        if self.late:
            return Mean(given, None, 4.0, 1)
        if codec is not None:
            data = np.empty(codec.encoded_size(SIZE), np.uint8)
            codec.encode(given, data)
            codec.decode(data, given)
        self.said += given
        owed, self.owed = self.owed, None
        return Mean(None, owed, 2 * weight, 1)


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk"])
def test_what_was_late_void_or_left_out_by_the_codec_is_said_with_the_next(codec: str) -> None:
    group = Heard()
    wire = Wire(cast(Group, group), codec, (SIZE,), (), lambda message: None)
    meant = np.zeros(SIZE, np.float32)

    def exchange(*, late: bool = False, voids: int = 0, weight: float = 1.0) -> None:
        vector = np.zeros(SIZE, np.float32)

        def compute() -> float:
            vector[:] = SHARE if weight else 0.0
            return weight

        group.late, group.voids = late, voids
        wire.agree(vector, compute, 0)
        if weight:
            meant[:] += SHARE

    exchange()
    exchange(late=True)
    exchange(late=True)
    exchange(voids=2)
    exchange(late=True, weight=0.0)  # has nothing of its own to say, and what it owes it owes still
    exchange()
    debts = wire.debts()
    still = debts["0"] if debts else np.zeros(SIZE, np.float32)
    assert np.abs(group.said + still - meant).max() < 1e-4
    if codec != "fp32":
        assert np.abs(still).max() > 0


def test_what_the_mean_lost_in_one_s_own_slice_is_owed_by_all_that_were_in_it() -> None:
    group = Heard()
    wire = Wire(cast(Group, group), "int8", (SIZE,), (), lambda message: None)
    group.owed = (64, np.full(3, 0.5, np.float32))
    vector = np.zeros(SIZE, np.float32)

    def compute() -> float:
        vector.fill(0.0)
        return 1.0

    wire.agree(vector, compute, 0)
    assert CODECS[wire.codec].name == "int8"
    owed = wire.debts()["0"]
    assert owed[64:67].tolist() == [1.0] * 3, "two weights of one each: its own share has to make up for both"
    assert not owed[:64].any()
