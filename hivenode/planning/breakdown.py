"""Who does what: fractions that sum to exactly 1, and the subtasks that follow from a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from hivenode.spec.breakdown import Subtask
from hivenode.spec.split import counts, split
from hivenode.spec.training import TrainingSpec
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


Divided = Literal["samples", "layers", "members", "trees", "nothing"]
"""What the nodes of a plan have each a part of; nothing is divided of what one node fits in one piece."""


def subtasks(plan: Plan, *, samples: int | None, batch_size: int, divided: Divided) -> tuple[Subtask, ...]:
    """What each share of a plan means for a set of `samples` and global batches of `batch_size`.

    Samples are divided in proportion to the shares; none is left out or given twice. Where layers are divided, every
    stage of a line sees all samples of that line's part; where members of an ensemble or trees are, every node all.

    Args:
        samples: of the training part; None where each node has its own.
    """
    shares = sorted(plan.shares, key=lambda share: share.rank)
    places = {share.node: (0, 0) for share in shares}
    if divided == "layers":
        lines = plan.lines()
        parts = [math.fsum(share.weight for share in line) for line in lines]
        places = {share.node: (number, stage) for number, line in enumerate(lines) for stage, share in enumerate(line)}
    elif divided == "samples":
        lines, parts = (), [share.weight for share in shares]
        places = {share.node: (number, 0) for number, share in enumerate(shares)}
    else:
        lines, parts = (), [1.0]
    cut, given = split(samples or 0, parts), counts(batch_size, parts)
    made = []
    for share in shares:
        at, stage = places[share.node]
        receives = sends = tuple(other.node for other in shares if other is not share)
        if lines:
            along, same = lines[at], tuple(each[stage].node for each in lines if each is not lines[at])
            receives = (*(other.node for other in along[max(0, stage - 1) : stage]), *same)
            sends = (*(other.node for other in along[stage + 1 : stage + 2]), *same)
        made.append(
            Subtask(
                node=share.node,
                rank=share.rank,
                data_range=(cut[at].start, cut[at].stop) if samples is not None else None,
                batch=given[at],
                layer_range=share.layer_range,
                stage=stage if lines else None,
                line=at if lines else None,
                input_shape=share.input_shape,
                output_shape=share.output_shape,
                memory_bytes=share.memory_bytes,
                step_seconds=share.step_seconds,
                receives_from=receives,
                sends_to=sends,
            )
        )
    return tuple(made)


def coordination(plan: Plan, divided: Divided, training: TrainingSpec) -> str:
    """How the nodes of a plan work together, in a sentence."""
    n = len(plan.shares)
    lines = len(plan.lines()) if divided == "layers" else 1
    if divided == "nothing":
        return "One node fits it alone, in one piece: nothing of it is kept before it is done."
    if n == 1:
        return "One node trains alone; its checkpoints are kept on another."
    if divided in ("members", "trees"):
        what = "members of the ensemble" if divided == "members" else "trees"
        return f"{n} nodes each fit their part of the {what} to all samples, and hand round what they have."
    if lines > 1:
        return (
            f"{n} nodes form {lines} lines of {n // lines} stages that each hold the whole model between them; every "
            "batch is divided over the lines and cut into small ones, and nodes with the same layers average their "
            "gradients after every step."
        )
    every = training.sync_every
    local = (
        f"{n} nodes hold the whole model; each trains on its part of the data for {every} step{'s' * (every > 1)}, and "
        "then they average with each other how far they have come."
    )
    return {
        Strategy.single_node: "",  # has one node
        Strategy.data_parallel: local
        if training.sync == "local"
        else (
            f"{n} nodes hold the whole model; each computes its part of every batch, and they average what came of it "
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
