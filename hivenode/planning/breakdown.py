"""Who does what: fractions that sum to exactly 1, and the subtasks that follow from a plan."""

from __future__ import annotations

import math
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
    line: int | None
    """Which line of stages it belongs to; None where there are no stages."""
    input_shape: tuple[int, ...]
    """Of one sample as it comes into its layers; empty where it is not known."""
    output_shape: tuple[int, ...]
    memory_bytes: int
    """Predicted peak of its worker."""
    step_seconds: float
    """Predicted compute time of one step."""
    receives_from: tuple[str, ...]
    """Nodes whose tensors it needs in the forward direction, or to reduce gradients or weights."""
    sends_to: tuple[str, ...]


def subtasks(plan: Plan, *, samples: int, batch_size: int) -> tuple[Subtask, ...]:
    """What each share of a plan means for a set of `samples` and global batches of `batch_size`.

    Samples are divided in proportion to the shares; none is left out or given twice. Where layers are divided, every
    stage of a line sees all samples of that line's part.
    """
    shares = sorted(plan.shares, key=lambda share: share.rank)
    if plan.staged:
        lines = plan.lines()
        parts = [math.fsum(share.weight for share in line) for line in lines]
        cut, given = split(samples, parts), counts(batch_size, parts)
        places = {share.node: (number, stage) for number, line in enumerate(lines) for stage, share in enumerate(line)}
    else:
        weights = [share.weight for share in shares]
        cut, given = split(samples, weights), counts(batch_size, weights)
    made = []
    for place, share in enumerate(shares):
        line = stage = None
        receives = sends = tuple(other.node for other in shares if other is not share)
        at = place
        if plan.staged:
            line, stage = places[share.node]
            along, same = lines[line], tuple(each[stage].node for each in lines if each is not lines[line])
            receives = (*(other.node for other in along[max(0, stage - 1) : stage]), *same)
            sends = (*(other.node for other in along[stage + 1 : stage + 2]), *same)
            at = line
        made.append(
            Subtask(
                node=share.node,
                rank=share.rank,
                data_range=(cut[at].start, cut[at].stop),
                batch=given[at],
                layer_range=share.layer_range,
                stage=stage,
                line=line,
                input_shape=share.input_shape,
                output_shape=share.output_shape,
                memory_bytes=share.memory_bytes,
                step_seconds=share.step_seconds,
                receives_from=receives,
                sends_to=sends,
            )
        )
    return tuple(made)


def coordination(plan: Plan) -> str:
    """How the nodes of a plan work together, in a sentence."""
    n = len(plan.shares)
    lines = len(plan.lines()) if plan.staged else 1
    if lines > 1:
        return (
            f"{n} nodes form {lines} lines of {n // lines} stages that each hold the whole model between them; every "
            "batch is divided over the lines and cut into small ones, and nodes with the same layers average their "
            "gradients after every step."
        )
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
