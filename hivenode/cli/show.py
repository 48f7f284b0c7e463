"""The story that `hivenode demo` tells, with real daemons."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from hivenode.cli.demo import DIGITS
from hivenode.cli.live import Display
from hivenode.cli.models import show as show_prediction
from hivenode.cli.output import duration, short, styled
from hivenode.cli.plans import picture
from hivenode.cli.progress import GONE, JobView, Report
from hivenode.cli.stage import Heard, Machine, Stage
from hivenode.errors import JobFailed, Unavailable
from hivenode.spec.status import JobDetail, ModelSummary, Prediction, Status

SETTLE_SECONDS = 60.0
PLAN_SECONDS = 60.0
TRAIN_SECONDS = 300.0
COPY_SECONDS = 30.0


@dataclass
class Outcome:
    """The line of JSON at the end of the demo."""

    ok: bool = False
    nodes: int = 0
    killed: str = ""
    strategy: str = ""
    accuracy: float | None = None
    seconds: float = 0.0
    recovery_seconds: float | None = None
    """From the kill to the first training step that survivors made without the victim."""
    epoch_before: int = 0
    epoch_after: int = 0
    model: str = ""


class Show:
    """One run of the demo.

    Args:
        nodes: how many daemons.
        keep: leave their homes.
    """

    def __init__(self, out: Console, nodes: int, *, keep: bool) -> None:
        self.outcome = Outcome(nodes=nodes)
        self._out = out
        self._keep = keep
        self._began = time.monotonic()

    def run(self) -> None:
        """Play it; `outcome` says how it went. Whatever happens, nothing that it started is left.

        Raises:
            HiveError: it did not end well.
        """
        _check_installed()
        with Stage(self.outcome.nodes, keep=self._keep) as stage:
            try:
                self._play(stage)
                self.outcome.ok = True
            finally:
                self.outcome.seconds = round(time.monotonic() - self._began, 2)
            self._farewell(stage)

    def _play(self, stage: Stage) -> None:
        self._chapter(f"{self.outcome.nodes} daemons start, each with a home and ports of its own")
        for machine, status in stage.begin():
            how = "founds the hive" if machine is stage.machines[0] else "joins by invite"
            self._say(f"{machine.name}  process {machine.pid}, {status.addresses[0]}, {how} {short(status.hive)}")
        stage.wait(
            lambda: all(_settled(m, len(stage.machines)) for m in stage.machines), SETTLE_SECONDS, "all are members"
        )
        status = stage.machines[0].client.get("/v1/status", Status)
        victim = next(machine for machine in stage.machines if machine.node == status.coordinator)
        survivors = [machine for machine in stage.machines if machine is not victim]
        self.outcome.epoch_before = _counter(status.epoch)
        self._say(f"All see each other. {victim.name} is elected coordinator, epoch {status.epoch}.")

        here = survivors[0]
        self._chapter(f"A job is submitted at {here.name}: a small CNN on handwritten digits")
        spec = {**DIGITS, "placement": {**DIGITS["placement"], "min_nodes": self.outcome.nodes}}
        job = here.client.post("/v1/jobs", JobDetail, {"spec": spec}).summary.job
        view = JobView(job, {machine.node: machine.name for machine in stage.machines})
        detail = self._planned(stage, here, job)
        assert detail.plan is not None
        self.outcome.strategy = detail.plan.strategy.value
        self._out.print(picture(detail.plan, view.names))

        self._chapter(f"They train; half-way {victim.name}, the coordinator, is killed")
        view.take(detail)
        final = _Training(self._out, stage, victim, view, self.outcome).run()
        if final.summary.state != "finished":
            raise JobFailed(
                f"The job {final.summary.state}: {final.summary.error}", fix=final.summary.fix or "Run it with --keep."
            )
        self.outcome.accuracy, self.outcome.model = final.summary.accuracy, final.summary.model
        self._check_result(stage, survivors, final)
        self._predict(survivors[-1])

    def _planned(self, stage: Stage, here: Machine, job: str) -> JobDetail:
        found: list[JobDetail] = []

        def planned() -> bool:
            detail = here.client.get(f"/v1/jobs/{job}", JobDetail)
            if detail.summary.state == "failed":
                raise JobFailed(f"The job failed: {detail.summary.error}", fix=detail.summary.fix)
            if detail.plan is not None:
                found.append(detail)
            return bool(found)

        stage.wait(planned, PLAN_SECONDS, "the job is planned")
        return found[0]

    def _check_result(self, stage: Stage, survivors: list[Machine], final: JobDetail) -> None:
        model = final.summary.model

        def everywhere() -> bool:
            return all(
                any(
                    f"{m.name}:{m.version}" == model and m.here
                    for m in each.client.get("/v1/models", tuple[ModelSummary, ...])
                )
                for each in survivors
            )

        stage.wait(everywhere, COPY_SECONDS, f"{model} is on every survivor")
        kept = " and ".join(machine.name for machine in survivors)
        self._say(
            f"Finished: accuracy {final.summary.accuracy:.3f}. {model} is in the catalogue and on disk on {kept}."
        )

    def _predict(self, machine: Machine) -> None:
        import numpy as np

        from hivenode.data.loading import load
        from hivenode.spec.data import DataSpec

        self._chapter(f"{machine.name} is asked about a digit that was held out of training")
        data = load(DataSpec.model_validate(DIGITS["data"]))
        inputs, labels = data.test.take(np.array([len(data.test) // 2]))
        row = [float(value) for value in inputs.reshape(-1)]
        answer = machine.client.post("/v1/models/digits/predict", Prediction, {"inputs": [row]})
        show_prediction(self._out, row, answer)
        outputs = answer.outputs[0]
        said = answer.labels[max(range(len(outputs)), key=outputs.__getitem__)]
        truth = data.info.labels[int(labels[0])]
        self._say(f"It says {said}; it is a {truth}.")

    def _farewell(self, stage: Stage) -> None:
        took = duration(self.outcome.seconds)
        self._out.print()
        self._out.print(styled(f"Done in {took}. ", "bold green"), end="")
        if self._keep:
            self._out.print(
                f"Homes and logs are in {stage.root}; start one with `hivenode up --home {stage.root}/ash`."
            )
        self._out.print("Next, on your own machines:")
        job = Path("configs/jobs/digits.toml")
        self._out.print("  hivenode up --detach          a daemon for this machine")
        self._out.print("  hivenode invite               prints what to type on the next machine")
        self._out.print(f"  hivenode submit {job if job.exists() else 'FILE'} --wait")

    def _chapter(self, title: str) -> None:
        self._out.print()
        self._out.print(styled(title, "bold"))

    def _say(self, line: str) -> None:
        self._out.print(styled(f"  {line}"))


class _Training:
    """From the plan to the end of the job, with the kill half-way."""

    def __init__(self, out: Console, stage: Stage, victim: Machine, view: JobView, outcome: Outcome) -> None:
        self._stage = stage
        self._victim = victim
        self._here = next(machine for machine in stage.machines if machine is not victim)
        self._view = view
        self._outcome = outcome
        self._display = Display(out, view)
        self._killed_at: float | None = None
        self._step_at_kill = 0
        self._noticed: set[str] = set()

    def run(self) -> JobDetail:
        path = f"/v1/jobs/{self._view.job}"
        with self._display as display:
            for heard in self._stage.news(time.monotonic() + TRAIN_SECONDS):
                if heard is None:
                    self._view.take(self._here.client.get(path, JobDetail))
                else:
                    self._hear(heard)
                display.update()
                if self._view.ended:
                    break
        final = self._here.client.get(path, JobDetail)
        if not self._view.ended:
            raise Unavailable(f"The job did not end in {TRAIN_SECONDS:.0f} s.", fix="Run it with --keep, see the logs.")
        if self._killed_at is None and final.summary.state == "finished":
            raise JobFailed("The job was over before it was half-way.", fix="Please report it.")
        return final

    def _hear(self, heard: Heard) -> None:
        notice, view = heard.notice, self._view
        if heard.machine is self._here:
            for line in view.hear(notice, heard.at):
                if notice.kind == "job":
                    self._display.tell(line)
        if self._killed_at is None:
            if view.steps and view.step >= view.steps // 2:
                self._kill()
            return
        since = heard.at - self._killed_at
        if since < 0:
            return
        data = notice.data
        if notice.kind == "member" and data.get("node") == self._victim.node and data.get("state") in GONE:
            if heard.machine.name not in self._noticed:
                self._noticed.add(heard.machine.name)
                self._display.tell(
                    f"{heard.machine.name} noticed after {since:.1f} s: {self._victim.name} is {data['state']}"
                )
        elif notice.kind == "coordinator" and data.get("node") not in ("", self._victim.node):
            if self._outcome.epoch_after != data["counter"]:
                self._outcome.epoch_after = data["counter"]
                self._display.tell(
                    f"{data['name']} is elected after {since:.1f} s, epoch {data['epoch']}", "bold green"
                )
        elif notice.kind == "progress" and self._outcome.recovery_seconds is None and self._recovered(heard):
            self._outcome.recovery_seconds = round(since, 2)
            self._display.tell(f"training goes on after {since:.1f} s, without {self._victim.name}", "bold green")

    def _recovered(self, heard: Heard) -> bool:
        """A survivor's worker has made a step since the kill, in a group without the victim."""
        report = msgspec.convert(heard.notice.data, type=Report)
        return (
            report.node != self._victim.node
            and report.members < self._outcome.nodes
            and report.step > self._step_at_kill
        )

    def _kill(self) -> None:
        self._step_at_kill = self._view.step
        self._killed_at, others = self._victim.kill()
        self._outcome.killed = self._victim.name
        row = self._view.rows.get(self._victim.node)
        if row is not None:
            row.state, row.samples_per_second = "killed", 0.0
        self._display.tell(
            f"KILL -9: {self._victim.name} (process {self._victim.pid}) and its {others} worker processes,"
            f" at step {self._step_at_kill} of {self._view.steps}",
            "bold red",
        )


def _settled(machine: Machine, count: int) -> bool:
    status = machine.client.get("/v1/status", Status)
    return sum(member.state == "alive" for member in status.members) == count and bool(status.coordinator)


def _counter(epoch: str) -> int:
    return int(epoch.partition(".")[0])


def _check_installed() -> None:
    for module, package in (("torch", "PyTorch"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise Unavailable(
                f"The demo trains with PyTorch on scikit-learn's digits, and {package} is not installed.",
                fix="Install it: `pip install 'hivenode[torch,sklearn]'`.",
            )
