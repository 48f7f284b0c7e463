"""A member that contributes far more than the others is put out of the job, which goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hivenode.net.local import FromWorker, Log, Peer, ViewChanged
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.exchange import Excluded, Seat
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.wire import Wire

NODES = tuple(f"{rank:032d}" for rank in range(4))
SIZE = 10_000


def test_the_absurd_one_is_out_and_named_and_the_rest_have_the_mean_of_the_rest() -> None:
    crew = [Together(Seat(node, rank, "127.0.0.1"), norm_limit=5.0) for rank, node in enumerate(NODES)]
    peers = tuple(
        Peer(node, rank, "127.0.0.1", c.port, c.certificate)
        for rank, (node, c) in enumerate(zip(NODES, crew, strict=True))
    )
    told: dict[int, list[FromWorker]] = {rank: [] for rank in range(4)}

    def train(rank: int) -> float:
        crew[rank].connect(peers)
        shares = [Share(node, place, 0.25, 0.1, 1) for place, node in enumerate(NODES)]
        group = Group(NODES[rank], shares, crew[rank], told[rank].append, lambda: None)
        wire = Wire(group, "fp32", (SIZE,), (), told[rank].append)
        # Speeds may differ as they like.
        group.share_speeds(1000 if rank == 1 else 1, 1.0, 0)
        vector = np.empty(SIZE, np.float32)

        def compute() -> float:
            vector.fill(1e4 if rank == 2 else rank)
            return 1.0

        wire.agree(vector, compute, 1)
        return float(vector[17])

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(train, rank) for rank in range(4)]
        for rank in (0, 1, 3):
            assert futures[rank].result() == pytest.approx(4 / 3)
        with pytest.raises(Excluded, match="far larger"):
            futures[2].result()
    for collective in crew:
        collective.close()
    assert any(isinstance(m, ViewChanged) and m.lost == (NODES[2],) for m in told[0])
    warnings = [m.event for m in told[0] if isinstance(m, Log) and m.level == "warning"]
    assert len(warnings) == 1
    assert NODES[2] in warnings[0]
    assert "far larger" in warnings[0]


@pytest.mark.parametrize("limit", [1.0, 0.0, -3.0, float("nan")])
def test_a_limit_that_would_put_out_everybody_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="norm_limit"):
        TrainingSpec(norm_limit=limit)


def test_torch_distributed_cannot_hold_to_a_limit() -> None:
    with pytest.raises(ValueError, match="norm_limit is set"):
        TrainingSpec(norm_limit=10.0, engine="torch")
    assert TrainingSpec(norm_limit=10.0).not_by_torch
