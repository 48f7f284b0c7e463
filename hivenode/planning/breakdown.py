"""Who does what: fractions that sum to exactly 1, and the subtasks that follow from a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hivenode.spec.split import counts, split
from hivenode.spec.values import Plan, Strategy

UNIT = 2**32
"""Fractions are whole multiples of 1/UNIT: floats add such numbers without rounding, in any order."""


def fractions(weights: Sequence[float]) -> tuple[float, ...]:
    """Fractions in proportion to positive weights, each at least 1/UNIT, that sum to exactly 1.0.

    Raises:
        InvalidInput: no weights, or a negative or non-finite one.
    """
    given = counts(UNIT - len(weights), weights)
    return tuple((count + 1) / UNIT for count in given)


@dataclass(frozen=True, slots=True)
class Subtask:
    """One node's part of a job, spelled out."""

    node: str
    rank: int
    data_range: tuple[int, int]
    """Samples of the training set it answers for, first and past the last. All of them where layers are divided."""
    batch: int
    """Samples of each full batch that it computes."""
    layer_range: tuple[int, int] | None
    """Layers it holds, first and past the last; None for all."""
    stage: int | None
    """Place in the line of stages, 0 first; None where every node holds the whole model."""
    receives_from: tuple[str, ...]
    """Nodes whose tensors it needs in the forward direction, or to reduce gradients or weights."""
    sends_to: tuple[str, ...]


def subtasks(plan: Plan, *, samples: int, batch_size: int) -> tuple[Subtask, ...]:
    """What each share of a plan means for a set of `samples` and global batches of `batch_size`.

    Samples are divided in proportion to the shares; none is left out or given twice. Where layers are divided,
    every stage sees every sample and batch.
    """
    shares = sorted(plan.shares, key=lambda share: share.rank)
    nodes = [share.node for share in shares]
    staged = plan.strategy in (Strategy.model_parallel, Strategy.pipeline_parallel)
    weights = [share.weight for share in shares]
    data = (range(samples),) * len(shares) if staged else split(samples, weights)
    batches = (batch_size,) * len(shares) if staged else counts(batch_size, weights)
    made = []
    for place, share in enumerate(shares):
        others = tuple(node for node in nodes if node != share.node)
        made.append(
            Subtask(
                node=share.node,
                rank=share.rank,
                data_range=(data[place].start, data[place].stop),
                batch=batches[place],
                layer_range=share.layer_range,
                stage=place if staged else None,
                receives_from=tuple(nodes[place - 1 : place]) if staged else others,
                sends_to=tuple(nodes[place + 1 : place + 2]) if staged else others,
            )
        )
    return tuple(made)


def coordination(plan: Plan) -> str:
    """How the nodes of a plan work together, in a sentence."""
    n = len(plan.shares)
    return {
        Strategy.single_node: "One node trains alone; its checkpoints are kept on another.",
        Strategy.data_parallel: (
            f"{n} nodes hold the whole model; each computes its part of every batch, and they sum their gradients "
            "with each other after every step."
        ),
        Strategy.model_parallel: (
            f"{n} nodes hold consecutive layers; every batch passes through them forward and back, one at a time."
        ),
        Strategy.pipeline_parallel: (
            f"{n} nodes hold consecutive layers; every batch is cut into small ones that follow each other through "
            "the line, so that all nodes work at once."
        ),
        Strategy.federated: (
            f"{n} nodes each train on their own part of the data for some steps, then average their weights."
        ),
    }[plan.strategy]
