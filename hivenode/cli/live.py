"""Live progress: a bar, curves and a row per node on a terminal, at most a line a second elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live

from hivenode.cli.output import bar, clean, duration, number, state, styled, table
from hivenode.cli.pictures import SMALLEST_CHART, chart
from hivenode.cli.progress import JobView

REFRESH_PER_SECOND = 5
LINE_SECONDS = 1.0
CHART_WIDTH, CHART_LINES, FEW_LINES, HIGH = 44, 7, 4, 38
"""Curves take fewer lines on a terminal that is not so high."""
TITLES = {
    "loss": "loss",
    "test_loss": "loss on the held-out part",
    "accuracy": "accuracy on the held-out part",
    "samples_per_second": "samples/s",
}


class Display:
    """Shows a `JobView` for as long as it is entered; `tell` prints a line above it."""

    def __init__(self, out: Console, view: JobView) -> None:
        self._out = out
        self._view = view
        self._live = (
            Live(
                console=out, get_renderable=self._picture, refresh_per_second=REFRESH_PER_SECOND, transient=False,
                redirect_stdout=False, redirect_stderr=False,
            )
            if out.is_terminal
            else None
        )  # fmt: skip
        self._began = time.monotonic()
        self._line_at = float("-inf")
        self._line_step = -1

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, line: str, style: str = "") -> None:
        """A line that stays."""
        stamp = f"{time.monotonic() - self._began:6.1f} s  "
        self._out.print(styled(stamp, "dim").append(clean(line), style or "default"))

    def update(self) -> None:
        """The view has changed."""
        now = time.monotonic()
        view = self._view
        if self._live is None and view.steps and view.step != self._line_step and now - self._line_at >= LINE_SECONDS:
            self._line_at, self._line_step = now, view.step
            self.tell(self._line(now))

    def _line(self, now: float) -> str:
        view = self._view
        left = view.remaining_seconds(now)
        parts = [
            f"step {view.step}/{view.steps or '?'}",
            f"epoch {view.epoch}/{view.epochs or '?'}",
            f"loss {number(view.loss)}",
            f"accuracy {number(view.accuracy, 3)}",
            f"{view.samples_per_second:.0f} samples/s",
        ]
        if view.tokens_per_second is not None:
            parts.append(f"{view.tokens_per_second:.0f} tokens/s")
        return "  ".join(parts + ([f"{duration(left)} left"] if left is not None else []))

    def _picture(self) -> RenderableType:
        view = self._view
        if view.summary is None or not view.rows:
            return styled(f"  {view.summary.reason or view.summary.state}" if view.summary else "  ...", "dim")
        if not view.steps:
            return styled("  workers start on " + ", ".join(row.name for row in view.rows.values()) + " ...", "dim")
        left = view.remaining_seconds(time.monotonic())
        head = styled(bar(view.step / view.steps if view.steps else 0.0, 32), "cyan")
        head.append(f" {view.step / view.steps:4.0%}" if view.steps else "   ?", "bold")
        head.append(f"  step {view.step}/{view.steps or '?'}  epoch {view.epoch}/{view.epochs or '?'}", "default")
        if not view.ended:
            head.append(f"  {duration(left) if left is not None else '...'} left", "default")
        facts = f"loss {number(view.loss)}   accuracy {number(view.accuracy, 3)}"
        if view.test_loss is not None:
            facts += f"   held-out loss {number(view.test_loss)}"
        if view.convergence is not None:
            facts += f"   {view.convergence:+.1%} in the last epoch"
        if not view.ended:
            facts += f"   {view.samples_per_second:.0f} samples/s"
            facts += f"   {view.tokens_per_second:.0f} tokens/s" if view.tokens_per_second is not None else ""
        nodes = table("NODE", "STATE", "STEP", "LOSS", "SAMPLES/S", right=("STEP", "LOSS", "SAMPLES/S"))
        for row in view.rows.values():
            nodes.add_row(
                styled(row.name),
                state(row.state),
                str(row.step),
                number(row.loss),
                f"{row.samples_per_second:.0f}" if row.state == "running" else "-",
            )
        return Group(
            head,
            styled(facts),
            *charts(view, self._out.width, CHART_LINES if self._out.height >= HIGH else FEW_LINES),
            nodes,
        )


def charts(view: JobView, width: int, height: int) -> list[RenderableType]:
    """The curves that there are, beside each other as far as a terminal of that width allows, each of so many lines."""
    drawn = [
        Group(
            styled(TITLES[name], "bold"),
            *(styled(line, "cyan") for line in chart(curve.steps, curve.values, wide, height)),
        )
        for wide in [min(CHART_WIDTH, width)]
        for name, curve in view.curves.items()
        if len(curve.values) > 1 and wide >= SMALLEST_CHART
    ]
    return [Columns(drawn, padding=(0, 2))] if drawn else []
