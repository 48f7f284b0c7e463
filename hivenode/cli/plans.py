"""Showing a plan: what was chosen, why, for whom, and what else there was."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType

from hivenode.cli.output import clean, duration, size, styled, table
from hivenode.spec.breakdown import Breakdown
from hivenode.spec.shapes import spelled


def show_plan(out: Console, plan: Breakdown, names: Mapping[str, str]) -> None:
    """Print it.

    Args:
        names: of nodes, by id.
    """
    out.print(picture(plan, names))


def picture(plan: Breakdown, names: Mapping[str, str]) -> RenderableType:
    heading = styled("Plan: ", "bold")
    heading.append(plan.strategy.value, "bold cyan")
    heading.append(f" on {_nodes(len(plan.shares))}")
    if plan.explored:
        heading.append(" (tried out, to learn how it does)", "yellow")
    staged = ("LAYERS", "IN", "OUT") if plan.staged else ()
    lines = ("LINE",) if len(plan.lines()) > 1 else ()
    ranges = {task.node: task.data_range for task in plan.subtasks}
    divided = ("SAMPLES",) if len(set(ranges.values())) > 1 else ()
    shares = table("NODE", *lines, *staged, *divided, "SHARE", "STEP", "MEMORY", right=("SHARE", "STEP", "MEMORY"))
    for share in sorted(plan.shares, key=lambda share: share.rank):
        layers = _span(share.layer_range) if share.layer_range is not None else "all"
        shares.add_row(
            styled(names.get(share.node, share.node[:8])),
            *((str(share.replica + 1),) if lines else ()),
            *((layers, _shape(share.input_shape), _shape(share.output_shape)) if staged else ()),
            *((_span(ranges[share.node]),) if divided else ()),
            f"{share.weight:.1%}",
            f"{share.step_seconds * 1000:.1f} ms",
            size(share.memory_bytes),
        )
    others = table(
        "STRATEGY", "NODES", "PREDICTED", "LEARNED", "RUNS", "WHY", right=("NODES", "PREDICTED", "LEARNED", "RUNS")
    )
    for one in plan.candidates:
        style = "bold" if one.strategy == plan.strategy else "" if one.feasible else "dim"
        others.add_row(
            styled(one.strategy.value, style),
            str(one.nodes) if one.nodes else "-",
            duration(one.predicted_seconds) if one.predicted_seconds is not None else "cannot run",
            f"{one.residual:+.2f}" if one.visits else "-",
            str(one.visits),
            styled(one.reason.removeprefix(f"{one.strategy.value}: "), style),
        )
    why = filter(None, [plan.reason, plan.coordination, plan.engine_reason, plan.unused])
    return Group(heading, *(styled(f"  {clean(line)}") for line in why), shares, others)


def _span(span: tuple[int, int] | None) -> str:
    """Of a range, its ends; it may be empty, or not known."""
    return "-" if span is None or span[0] == span[1] else f"{span[0]} to {span[1] - 1}"


def _shape(shape: tuple[int, ...]) -> str:
    """Of one sample; it may not be known."""
    return spelled(shape) if shape else "-"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
