"""Live progress: a bar and a row per node on a terminal, at most a line a second elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live

from hivenode.cli.output import bar, clean, duration, number, state, styled, table
from hivenode.cli.progress import JobView

REFRESH_PER_SECOND = 5
LINE_SECONDS = 1.0


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
        facts += "" if view.ended else f"   {view.samples_per_second:.0f} samples/s"
        nodes = table("NODE", "STATE", "STEP", "LOSS", "SAMPLES/S", right=("STEP", "LOSS", "SAMPLES/S"))
        for row in view.rows.values():
            nodes.add_row(
                styled(row.name),
                state(row.state),
                str(row.step),
                number(row.loss),
                f"{row.samples_per_second:.0f}" if row.state == "running" else "-",
            )
        return Group(head, styled(facts), nodes)
