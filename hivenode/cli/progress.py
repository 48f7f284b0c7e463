"""What is known of a running job, gathered from the event stream. Pure: notices in, lines worth telling out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hivenode.cli.curves import Curve, Point
from hivenode.spec.status import JobDetail, JobSummary, Notice

ENDED = ("finished", "failed", "cancelled")
RATE_WINDOW_SECONDS = 15.0
CURVES = ("loss", "test_loss", "accuracy", "samples_per_second")
GONE = ("suspect", "dead", "left")


class Report(msgspec.Struct, frozen=True):
    """Data of a `progress` notice: how one node's worker is getting on."""

    job: str
    node: str
    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None
    accuracy: float | None
    samples_per_second: float
    members: int
    """Workers in its group."""
    attempt: int = 1
    name: str = ""
    state: str = "running"
    test_loss: float | None = None
    convergence: float | None = None
    tokens_per_second: float | None = None


@dataclass
class Row:
    """One node's worker."""

    name: str
    state: str
    step: int = 0
    loss: float | None = None
    accuracy: float | None = None
    samples_per_second: float = 0.0
    tokens_per_second: float | None = None


@dataclass
class JobView:
    """A job as seen from one node.

    Args:
        job: its id.
        names: of nodes, by id.
    """

    job: str
    names: dict[str, str]
    summary: JobSummary | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    """By node id."""
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    accuracy: float | None = None
    test_loss: float | None = None
    convergence: float | None = None
    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in CURVES})
    """Over the steps, by the name of what was measured."""
    _reached: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=256))

    @property
    def ended(self) -> bool:
        return self.summary is not None and self.summary.state in ENDED

    @property
    def samples_per_second(self) -> float:
        return sum(row.samples_per_second for row in self.rows.values() if row.state == "running")

    @property
    def tokens_per_second(self) -> float | None:
        """Of text."""
        found = [row.tokens_per_second for row in self.rows.values() if row.tokens_per_second is not None]
        return sum(found) if found else None

    def recall(self, past: Iterable[Point]) -> None:
        """What was measured before anybody looked."""
        for point in past:
            for name, curve in self.curves.items():
                curve.add(point.step, point.values.get(name))
            self.convergence = point.values.get("convergence", self.convergence)

    def remaining_seconds(self, now: float) -> float | None:
        """By the speed of the last seconds, None while it is not known."""
        if not self.steps or len(self._reached) < 2:
            return None
        began, first = self._reached[0]
        if self.step <= first or now <= began:
            return None
        return (self.steps - self.step) * (now - began) / (self.step - first)

    def take(self, detail: JobDetail) -> list[str]:
        """All that the node knows, asked anew."""
        lines = self._summarise(detail.summary)
        if detail.plan is not None:
            members = {share.node for share in detail.plan.shares}
            for node in [node for node in self.rows if node not in members]:
                del self.rows[node]
            for node in sorted(members, key=lambda node: self.names.get(node, node)):
                self.rows.setdefault(node, Row(self.names.get(node, node[:8]), "starting"))
        for worker in detail.workers:
            row = self.rows.setdefault(worker.node, Row(worker.name, worker.state))
            if row.state != "lost":
                row.state = worker.state
            row.step, row.loss, row.accuracy = worker.step, worker.loss, worker.accuracy
            row.samples_per_second = worker.samples_per_second
        return lines

    def hear(self, notice: Notice, now: float) -> list[str]:
        """A notice; returns what a person should be told.

        Args:
            now: any monotonic clock, seconds.
        """
        data = notice.data
        match notice.kind:
            case "progress" if data.get("job") == self.job:
                self._advance(msgspec.convert(data, type=Report), now)
            case "job" if data.get("job") == self.job:
                return self._summarise(msgspec.convert(data, type=JobSummary))
            case "member":
                return self._member(data)
            case "coordinator" if data.get("node"):
                return [f"{data.get('name')} coordinates now (epoch {data.get('epoch')})"]
            case "coordinator":
                return [data.get("waiting") or "the coordinator is gone, the others elect"]
        return []

    def _advance(self, report: Report, now: float) -> None:
        row = self.rows.setdefault(report.node, Row(report.name, report.state))
        row.state, row.step, row.loss, row.accuracy = report.state, report.step, report.loss, report.accuracy
        row.samples_per_second, row.tokens_per_second = report.samples_per_second, report.tokens_per_second
        others = (other for other in self.rows.values() if other.state != "lost")
        if report.step < self.step - 1 and all(other.step <= report.step for other in others):
            self._reached.clear()  # another attempt goes on from an earlier step
            self.step = report.step
        if report.step >= self.step:
            self.step, self.steps = report.step, report.steps
            self.epoch, self.epochs = report.epoch, report.epochs
            self.loss = report.loss if report.loss is not None else self.loss
            self.accuracy = report.accuracy if report.accuracy is not None else self.accuracy
            self._draw(report)
            self._reached.append((now, self.step))
            while now - self._reached[0][0] > RATE_WINDOW_SECONDS:
                self._reached.popleft()

    def _draw(self, report: Report) -> None:
        """Of the loss what belongs to this step; held-out figures only when they are new: reports repeat them."""
        if report.step > 0 and report.state == "running":
            self.curves["loss"].add(report.step, report.loss)
            self.curves["samples_per_second"].add(report.step, self.samples_per_second)
        for name, value in (("accuracy", report.accuracy), ("test_loss", report.test_loss)):
            curve = self.curves[name]
            if value is not None and (not curve.values or curve.values[-1] != value):
                curve.add(report.step, value)
        self.test_loss = report.test_loss if report.test_loss is not None else self.test_loss
        self.convergence = report.convergence if report.convergence is not None else self.convergence

    def _member(self, data: Mapping[str, Any]) -> list[str]:
        name, state = str(data.get("name", "")), str(data.get("state", ""))
        self.names[str(data.get("node", ""))] = name
        row = self.rows.get(str(data.get("node", "")))
        if row is not None and state == "dead":
            row.state, row.samples_per_second = "lost", 0.0
        if state in GONE:
            return [f"{name} is {state}"]
        return [f"{name} is back"] if data.get("was") in GONE else []

    def _summarise(self, summary: JobSummary) -> list[str]:
        before, self.summary = self.summary, summary
        if summary.step >= self.step or summary.state in ENDED:
            self.step, self.steps = max(self.step, summary.step), summary.steps or self.steps
            self.epoch, self.epochs = summary.epoch or self.epoch, summary.epochs or self.epochs
        self.loss = summary.loss if summary.loss is not None else self.loss
        self.accuracy = summary.accuracy if summary.accuracy is not None else self.accuracy
        self.test_loss = summary.test_loss if summary.test_loss is not None else self.test_loss
        self.convergence = summary.convergence if summary.convergence is not None else self.convergence
        if summary.state in ENDED:
            for row in self.rows.values():
                row.state = summary.state if row.state == "running" else row.state
            return []
        lines = []
        if before is not None and summary.attempt > max(1, before.attempt):
            lines.append(f"attempt {summary.attempt} begins, from the last checkpoint")
            self.rows.clear()
        if summary.reason and summary.state != "planned" and (before is None or summary.reason != before.reason):
            lines.append(f"{summary.state}: {summary.reason}")
        return lines
