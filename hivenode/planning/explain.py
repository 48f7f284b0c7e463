"""A plan in words and rows, for people. No layout: the command line and the dashboard do that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hivenode.planning.breakdown import coordination
from hivenode.planning.cost import human
from hivenode.planning.planner import expected_seconds
from hivenode.spec.shapes import spelled
from hivenode.spec.values import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy, as text."""

    strategy: str
    nodes: str
    predicted: str
    """By the cost model."""
    learned: str
    """Factor from experience and the runs it rests on."""
    expected: str
    verdict: str
    """Chosen, tried to learn, slower by how much, or why it cannot run."""


@dataclass(frozen=True, slots=True)
class Explanation:
    summary: str
    coordination: str
    rows: tuple[Row, ...]
    """Fastest first, masked ones last."""
    shares: tuple[str, ...]
    """A sentence per node."""


def explain(plan: Plan, name: Callable[[str], str] = lambda node: node[:8]) -> Explanation:
    """Why a plan is as it is.

    Args:
        name: a node's name for people.
    """
    ordered = sorted(plan.candidates, key=expected_seconds)
    best = min((expected_seconds(c) for c in ordered), default=math.inf)
    rows = []
    for candidate in ordered:
        if candidate.predicted_seconds is None:
            reason = candidate.reason.removeprefix(f"{candidate.strategy.value}: ")
            rows.append(Row(candidate.strategy.value, "-", "-", "-", "-", f"cannot run: {reason}"))
            continue
        expected = expected_seconds(candidate)
        runs = f"{candidate.visits} run{'s' if candidate.visits != 1 else ''}"
        if candidate.strategy is plan.strategy:
            verdict = "chosen to learn" if plan.explored else "chosen"
        else:
            verdict = f"x{expected / best:.2f} of the best" if best > 0 else "not chosen"
        rows.append(
            Row(
                candidate.strategy.value,
                str(candidate.nodes),
                human(candidate.predicted_seconds),
                f"x{math.exp(candidate.residual):.2f} ({runs})",
                human(expected),
                f"{verdict}: {candidate.reason}",
            )
        )
    shares = []
    several = any(share.replica for share in plan.shares)
    for share in sorted(plan.shares, key=lambda each: each.rank):
        part = f"{share.weight:.1%} of each batch"
        if share.layer_range is not None:
            part = f"layers {share.layer_range[0]} to {share.layer_range[1] - 1}"
            if several:
                part = f"line {share.replica + 1}, {part}"
        if share.input_shape and share.output_shape:
            part += f" ({spelled(share.input_shape)} to {spelled(share.output_shape)} a sample)"
        shares.append(
            f"{name(share.node)}: {part}, {human(share.step_seconds)} a step, {share.memory_bytes / 2**20:.0f} MiB"
        )
    how = " ".join(filter(None, (coordination(plan), plan.engine_reason)))
    return Explanation(plan.reason, how, tuple(rows), tuple(shares))


def to_text(explanation: Explanation) -> str:
    """As plain text, columns aligned with spaces."""
    head = Row("strategy", "nodes", "predicted", "learned", "expected", "verdict")
    table = [
        (row.strategy, row.nodes, row.predicted, row.learned, row.expected, row.verdict)
        for row in (head, *explanation.rows)
    ]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line[:5], widths, strict=True)), line[5]])
        for line in table
    ]
    return "\n".join([explanation.summary, explanation.coordination, "", *lines, "", *explanation.shares])
