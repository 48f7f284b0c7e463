"""Verbs about jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    from rich.console import Console

    from hivenode.cli.client import AdminClient
    from hivenode.spec.job import JobSpec
    from hivenode.spec.status import JobDetail, JobLogs, JobSummary

FILE_HELP = "A job in TOML; configs/jobs/ has examples."
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="Id, beginning of an id, or name (the newest of it).")]
LOGS_SECONDS = 1.0


def submit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Show the plan and progress until it ends.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Hand a job to the hive. It is on disk when this returns, and survives the loss of any machine."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import clean, console, print_json, styled
    from hivenode.spec.status import JobDetail

    spec = _read(file)
    client = AdminClient(home_of(context, home))
    detail = client.post("/v1/jobs", JobDetail, {"spec": spec})
    job = detail.summary.job
    if not wait:
        if as_json:
            print_json(detail)
        else:
            typer.echo(f"{clean(detail.summary.name)} is accepted as {job}. Next: `hivenode jobs {job}`.")
            if detail.unused:
                typer.echo(clean(detail.unused))
        return
    from hivenode.cli import watching

    out = console(stderr=as_json)
    out.print(f"{clean(detail.summary.name)} is accepted as {job}.")
    if detail.unused:
        out.print(styled(clean(detail.unused)))
    try:
        detail = watching.watch(client, job, out)
    except KeyboardInterrupt:
        out.print(f"\nThe job goes on. `hivenode jobs {job}` shows it, `hivenode cancel {job}` ends it.")
        raise
    _conclude(out, detail, as_json=as_json)


def watch(
    context: typer.Context,
    job: JobArgument,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Curves of loss, accuracy and speed, the time left and what each node does, until a job ends; Ctrl-C ends the
    watching only."""
    from hivenode.cli import watching
    from hivenode.cli.client import AdminClient, segment
    from hivenode.cli.output import console
    from hivenode.spec.status import JobDetail

    client = AdminClient(home_of(context, home))
    found = client.get(f"/v1/jobs/{segment(job)}", JobDetail).summary
    out = console(stderr=as_json)
    detail = watching.watch(client, found.job, out)
    _conclude(out, detail, as_json=as_json)


def tensorboard(
    context: typer.Context,
    job: JobArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where; one folder a job is made in it.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    home: HomeOption = None,
) -> None:
    """Write a job's curves as TensorBoard's event files, while it runs or after."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.curves import points
    from hivenode.cli.event_files import EventFile
    from hivenode.cli.output import clean
    from hivenode.errors import InvalidInput

    client = AdminClient(home_of(context, home))
    detail, answers = _log(client, job, follow=follow)
    summary = detail.summary
    written, missing = 0, tuple[str, ...]()
    known: set[tuple[int, float]] = set()
    try:
        with EventFile(to / f"{summary.name}-{summary.job}", summary.submitted_at, "hivenode") as file:
            for answer in answers:
                for point in points(answer.lines):
                    if (point.step, point.at) not in known:
                        known.add((point.step, point.at))
                        file.add(point)
                        written += 1
                file.flush()
                missing = answer.missing
    except OSError as error:
        raise InvalidInput(
            f"{to} cannot be written to: {error.strerror}.", fix="Give a folder on a disk with space, with --to."
        ) from error
    typer.echo(f"{written} points in {file.path}. Next: `tensorboard --logdir {to}`.")
    if missing:
        typer.echo(f"Not reached, so without their lines: {clean(', '.join(missing))}.", err=True)


def _conclude(out: Console, detail: JobDetail, *, as_json: bool) -> None:
    """Of a job that has failed there is the error on stdout, and nothing else."""
    from hivenode.cli.output import number, print_json, styled
    from hivenode.errors import JobFailed

    summary = detail.summary
    if summary.state == "finished":
        if as_json:
            print_json(detail)
        took = f"loss {number(summary.loss)}, accuracy {number(summary.accuracy, 3)}"
        out.print(styled(f"Finished: {took}.", "bold green"))
        if summary.model:
            out.print(
                f"Model {summary.model}. Next: `hivenode predict {summary.model.partition(':')[0]} --input FILE`."
            )
        return
    raise JobFailed(
        f"Job {summary.job} {'was cancelled' if summary.state == 'cancelled' else 'failed'}: {summary.error}",
        fix=summary.fix or f"`hivenode logs {summary.job}` shows what its workers said.",
    )


def _read(file: Path) -> dict[str, Any]:
    from hivenode.spec.job import read_job

    return located(read_job(file), file.absolute().parent).model_dump(mode="json", exclude_unset=True)


def located(spec: JobSpec, folder: Path) -> JobSpec:
    """The same job with its paths, which begin at the job file, made absolute: the daemon stands elsewhere."""
    from hivenode.spec.data import FILES

    def absolute(path: str) -> str:
        return str((folder / Path(path).expanduser()).resolve())

    data, model = spec.data, spec.model
    if data.kind in FILES:
        changes = {"source": f"{data.kind}:{absolute(data.name)}"}
        if data.tokenizer not in ("char", "byte"):
            changes["tokenizer"] = absolute(data.tokenizer)
        data = data.model_copy(update=changes)
    if model.kind == "keras" and model.source != "keras:config":
        model = model.model_copy(update={"source": f"keras:{absolute(model.name)}"})
    if model.weights.startswith("file:"):
        model = model.model_copy(update={"weights": f"file:{absolute(model.weights.removeprefix('file:'))}"})
    if data is spec.data and model is spec.model:
        return spec
    return spec.model_copy(update={"data": data, "model": model})


def jobs(
    context: typer.Context,
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="One job in full.", show_default=False)] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """The jobs of the hive, newest first, or one of them."""
    from hivenode.cli.client import AdminClient, segment
    from hivenode.cli.output import print_json
    from hivenode.spec.status import JobDetail, JobSummary

    client = AdminClient(home_of(context, home))
    path = "/v1/jobs" if job is None else f"/v1/jobs/{segment(job)}"
    if as_json:
        print_json(client.ask("GET", path))
    elif job is None:
        _list(client.get(path, tuple[JobSummary, ...]))
    else:
        _show(client, client.get(path, JobDetail))


def _list(found: tuple[JobSummary, ...]) -> None:
    from hivenode.cli.output import ago, brief, console, fit, number, state, styled, table

    out = console()
    if not found:
        out.print("No jobs yet. Next: `hivenode submit FILE --wait`.")
        return
    right = ("STEP", "LOSS", "ACCURACY")
    listing = table(
        "JOB",
        "NAME",
        "STATE",
        "STEP",
        "LOSS",
        "ACCURACY",
        "STRATEGY",
        "BY",
        "SUBMITTED",
        "",
        right=right,
        whole=("JOB", "STATE", "STEP"),
    )
    for job in found:
        listing.add_row(
            job.job,
            styled(job.name),
            state(job.state),
            f"{job.step}/{job.steps}" if job.steps else "-",
            number(job.loss),
            number(job.accuracy, 3),
            job.strategy or "-",
            styled(job.submitted_by),
            ago(job.submitted_at),
            styled(job.model or brief(job.reason)),
        )
    out.print(fit(out, listing, ("BY", "STRATEGY", "SUBMITTED", "ACCURACY")))


def _show(client: AdminClient, detail: JobDetail) -> None:
    from hivenode.cli.output import ago, console, duration, number, state, styled, table
    from hivenode.cli.plans import show_plan
    from hivenode.cli.watching import names

    out, job = console(), detail.summary
    out.print(styled(f"{job.name} ", "bold").append(f"{job.job} is ").append(state(job.state)))
    if job.reason not in ("", job.state):
        out.print(styled(f"  {job.reason}"))
    took = f", took {duration(job.ended_at - job.submitted_at)}" if job.ended_at else ""
    out.print(styled(f"  submitted by {job.submitted_by} {ago(job.submitted_at)}{took}"))
    out.print(
        f"  step {job.step} of {job.steps or '?'}, epoch {job.epoch} of {job.epochs or '?'},"
        f" loss {number(job.loss)}, accuracy {number(job.accuracy, 3)}"
    )
    if job.model:
        out.print(styled(f"  model {job.model}"))
    if detail.checkpoint_step is not None:
        out.print(styled(f"  checkpoint of step {detail.checkpoint_step} on {', '.join(detail.checkpoint_holders)}"))
    if job.error:
        out.print(styled(f"  {job.error} {job.fix}", "red"))
    if detail.plan is not None:
        out.print()
        show_plan(out, detail.plan, names(client))
    if detail.attempts:
        attempts = table("ATTEMPT", "EPOCH", "STRATEGY", "NODES", "STILL IN IT", "FROM STEP", "OUTCOME", "CAUSE")
        for one in detail.attempts:
            adopted = f" adopted {' '.join(one.adopted)}" if one.adopted else ""
            attempts.add_row(
                str(one.attempt), one.epoch + adopted, one.strategy, styled(" ".join(one.nodes)),
                styled(" ".join(one.members)), str(one.resume_step), one.outcome or "-", styled(one.cause),
            )  # fmt: skip
        out.print(attempts)
    if detail.workers and job.ended_at is None:
        workers = table("NODE", "STATE", "STEP", "LOSS", "SAMPLES/S", "OF THE DATA", "HEARD")
        for worker in detail.workers:
            workers.add_row(
                styled(worker.name), state(worker.state), str(worker.step), number(worker.loss),
                f"{worker.samples_per_second:.0f}", f"{worker.share:.1%}" if worker.share is not None else "-",
                f"{duration(worker.age_seconds)} ago",
            )  # fmt: skip
        out.print(workers)
        for worker in detail.workers:
            if worker.trouble:
                out.print(styled(f"  {worker.name}: {worker.trouble}", "yellow"))


def logs(
    context: typer.Context,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    home: HomeOption = None,
) -> None:
    """What a job's workers said, gathered from all its nodes."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.logbook import Logbook

    book = Logbook(as_json=as_json)
    _, answers = _log(AdminClient(home_of(context, home)), job, follow=follow)
    for answer in answers:
        book.print(answer)
    if answer.missing:
        from hivenode.cli.output import clean

        typer.echo(f"Not reached, so without their lines: {clean(', '.join(answer.missing))}.", err=True)


def _log(client: AdminClient, job: str, *, follow: bool) -> tuple[JobDetail, Iterator[JobLogs]]:
    """The job, and its log: all of it that there is, at least once and, to follow it, until the job has ended."""
    from hivenode.cli.client import segment
    from hivenode.cli.progress import ENDED
    from hivenode.spec.status import JobDetail, JobLogs

    detail = client.get(f"/v1/jobs/{segment(job)}", JobDetail)
    path = f"/v1/jobs/{detail.summary.job}"  # of a name, another may become the newest meanwhile

    def answers() -> Iterator[JobLogs]:
        if follow and detail.summary.state not in ENDED:
            asked_at = float("-inf")
            for notice in client.follow(f"?kind=job&kind=progress&job={detail.summary.job}"):
                if notice is None:
                    now = client.get_if_there(path, JobDetail)
                    ended = now is not None and now.summary.state in ENDED
                else:
                    ended = notice.kind == "job" and notice.data.get("state") in ENDED
                if ended:
                    break
                due = time.monotonic() - asked_at >= LOGS_SECONDS
                if due and (some := client.get_if_there(f"{path}/logs", JobLogs)):
                    yield some
                    asked_at = time.monotonic()
        yield client.get(f"{path}/logs", JobLogs)

    return detail, answers()


def cancel(
    context: typer.Context,
    job: JobArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the job.")] = "cancelled by a person",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """End a job wherever it runs."""
    from hivenode.cli.client import AdminClient, segment
    from hivenode.cli.output import clean, print_json
    from hivenode.spec.status import JobDetail

    detail = AdminClient(home_of(context, home)).post(f"/v1/jobs/{segment(job)}/cancel", JobDetail, {"reason": reason})
    if as_json:
        print_json(detail)
    else:
        typer.echo(f"{clean(detail.summary.name)} ({detail.summary.job}) is {detail.summary.state}.")


def plan(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=FILE_HELP)],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """What would be chosen for a job now, and why; nothing is submitted."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.data import summarised
    from hivenode.cli.output import console, print_json
    from hivenode.cli.plans import show_plan
    from hivenode.cli.watching import names
    from hivenode.spec.breakdown import Breakdown

    spec = _read(file)
    client = AdminClient(home_of(context, home))
    if as_json:
        print_json(client.ask("POST", "/v1/plan", {"spec": spec}))
        return
    out = console()
    plan = client.post("/v1/plan", Breakdown, {"spec": spec})
    for line in summarised(spec.get("data", {})):
        out.print(line)
    show_plan(out, plan, names(client))
