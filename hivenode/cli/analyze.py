"""The verb that says what a model takes, and where it fits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of
from hivenode.errors import HiveError, NotFound, Unavailable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from hivenode.models.analyze import Analysis, Options
    from hivenode.models.analyze.quantities import Quantity
    from hivenode.models.identify import Report
    from hivenode.spec.capacity import NodeCapacity
    from hivenode.spec.job import JobSpec
    from hivenode.spec.tracing import TraceNumbers, TraceOrder

QUANTITIES = (
    ("weights", "weights"), ("gradients", "gradients"), ("optimizer_state", "optimizer state"),
    ("activations", "activations"), ("kv_cache", "keys and values"), ("inference_memory", "memory, inference"),
    ("training_memory", "memory, training"), ("inference_flops", "FLOPs, inference"), ("step_flops", "FLOPs, step"),
)  # fmt: skip


def analyze(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model file, a model directory, or a job in TOML.")],
    batch: Annotated[int | None, typer.Option("--batch", "-b", help="Samples at once; 1, or the job's.")] = None,
    sequence: Annotated[int | None, typer.Option("--sequence", "-s", help="Tokens or steps of each sample.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Training only.")] = False,
    infer: Annotated[bool, typer.Option("--infer", help="Inference only.")] = False,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", "-o", help="sgd, momentum, adam, adamw, adam8bit, ...")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16, float16, float64 or mixed; else as stored.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Run it without storage in a worker, where that can be done.")
    ] = True,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """What a model takes: memory, FLOPs and time, each with its range and how it is known, and which nodes it fits."""
    from hivenode.models.analyze import analyze as analyze_model
    from hivenode.models.analyze import analyze_zoo, order_for, order_for_zoo, place
    from hivenode.models.analyze.quantities import check
    from hivenode.models.identify import identify

    job = _job(path)
    options = _options(job, batch, sequence, train, infer, optimizer, dtype)
    check(options)
    numbers: TraceNumbers | None = None
    untraced = "not asked for"
    if job is not None:
        if trace:
            numbers, untraced = _traced(order_for_zoo(job, options), as_json)
        found = analyze_zoo(path, job, options, numbers)
    else:
        report = identify(path)
        if trace and _is_readable(report):
            numbers, untraced = _traced(order_for(path, report, options), as_json)
        found = analyze_model(path, report, options, numbers)
    if numbers is None and trace:
        found.notes.append(f"Not traced: {untraced.rstrip('.')}. The figures are by rule.")
    nodes, source = _nodes(home_of(context, home), found)
    place(found, nodes, source)
    if as_json:
        from hivenode.cli.output import print_json

        print_json(found.to_dict())
    else:
        _show(found)


def _job(path: Path) -> JobSpec | None:
    """A job file is told by its ending."""
    if path.suffix != ".toml":
        return None
    from hivenode.cli.jobs import located
    from hivenode.models.keras_configs.files import embedded
    from hivenode.spec.job import read_job

    job = located(read_job(path), path.absolute().parent)
    return job.model_copy(update={"model": embedded(job.model)})


def _options(
    job: JobSpec | None,
    batch: int | None,
    sequence: int | None,
    train: bool,
    infer: bool,
    optimizer: str | None,
    dtype: str | None,
) -> Options:
    """What is left out is the job's, or the usual."""
    from hivenode.models.analyze import Options

    if job is not None:
        momentum = job.training.optimizer == "sgd" and job.training.momentum > 0
        optimizer = optimizer or ("momentum" if momentum else job.training.optimizer)
        batch = job.training.batch_size if batch is None else batch
    both = train == infer
    return Options(
        batch=1 if batch is None else batch,
        sequence=sequence,
        train=train or both,
        infer=infer or both,
        optimizer=optimizer or "adam",
        dtype=dtype,
    )


def _is_readable(report: Report) -> bool:
    """Or it is a configuration whose weights alone are missing."""
    return report.error is None or (report.error.code == NotFound.code and report.model is not None)


def _traced(order: TraceOrder | str, quiet: bool) -> tuple[TraceNumbers | None, str]:
    """Numbers, or why there are none."""
    if isinstance(order, str):
        return None, order
    from hivenode.admin.alone import trace
    from hivenode.cli.output import console

    try:
        if quiet or not sys.stderr.isatty():
            return trace(order), ""
        with console(stderr=True).status("tracing the model in a worker ..."):
            return trace(order), ""
    except HiveError as error:
        return None, error.sentence


def _nodes(home: Path, found: Analysis) -> tuple[tuple[NodeCapacity, ...], str]:
    """The hive's, as the daemon hears of them; without a daemon this machine alone."""
    from hivenode.cli.client import AdminClient
    from hivenode.spec.capacity import HiveCapacity

    try:
        hive = AdminClient(home).get("/v1/capacity", HiveCapacity)
    except Unavailable:
        from hivenode.admin.alone import this_machine

        return (this_machine(home),), f"this machine alone: no daemon runs for {home}"
    if hive.missing:
        found.notes.append(f"No answer from {', '.join(hive.missing)}.")
    return hive.nodes, "the hive, as each node measured itself"


# --- for a person --------------------------------------------------------------------------------------------------


def _show(found: Analysis) -> None:
    from hivenode.cli.output import console, styled, table

    out = console()
    out.print(styled(found.path, "bold"))
    asked = found.options
    facts = [found.model or found.architecture or "unknown model"]
    if found.parameters:
        facts.append(f"{found.parameters:,} parameters, {found.complexity}")
    facts.append(f"batch {asked.batch}" + (f", sequence {asked.sequence}" if asked.sequence else ""))
    if found.gradients is not None:
        facts.append(asked.optimizer)
    out.print(styled("  " + " · ".join(facts)))
    lines = table("", "VALUE", "RANGE", "KNOWN BY", "", right=("VALUE", "RANGE"))
    for name, words in QUANTITIES:
        quantity = getattr(found, name)
        if quantity is None:
            continue
        exact = quantity.low == quantity.high
        lines.add_row(
            styled(words),
            styled(_amount(quantity, quantity.value), "bold"),
            styled("" if exact else f"{_amount(quantity, quantity.low)} - {_amount(quantity, quantity.high)}"),
            styled(quantity.method.value, {"exact": "green", "traced": "cyan"}.get(quantity.method.value, "yellow")),
            styled(quantity.why, "dim"),
        )
    out.print(lines)
    _show_nodes(out, found)
    for note in found.notes:
        out.print(styled(f"  {note}", "yellow"))


def _show_nodes(out: Console, found: Analysis) -> None:
    from hivenode.cli.output import size, styled, table

    if not found.nodes:
        return
    listing = table("NODE", "ROOM", "INFERENCE", "TAKES", "TRAINING", "STEP", right=("ROOM", "TAKES", "STEP"))
    for node in found.nodes:
        name = node.name + (" (this one)" if node.self and len(found.nodes) > 1 else "")
        listing.add_row(
            styled(name + (f", paused: {node.paused}" if node.paused else ""), "bold"),
            size(node.room_bytes),
            _fits(node.inference),
            _time(node.inference_seconds),
            _fits(node.training),
            _time(node.step_seconds),
        )
    out.print(listing)
    out.print(styled(f"  Room and speed: {found.nodes_from}.", "dim"))
    for whole in found.together:
        one = any(getattr(node, whole.purpose) for node in found.nodes)
        if one:
            continue
        if whole.nodes > 1:
            said = (
                f"{whole.purpose} fits no node alone; {whole.nodes} together have the room: {', '.join(whole.names)}."
            )
        else:
            said = (
                f"{whole.purpose} fits nowhere: it needs {size(whole.needed_bytes)}, all nodes together have room for "
                f"{size(whole.offered_bytes)}."
            )
        out.print(styled(f"  {said[0].upper()}{said[1:]}", "red" if whole.nodes == 0 else "yellow"))


def _amount(quantity: Quantity, value: float) -> str:
    from hivenode.cli.output import size

    if quantity.unit == "bytes":
        return size(value)
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:.3g} EFLOP"


def _fits(verdict: bool | None) -> Text:
    from hivenode.cli.output import styled

    return styled(*{True: ("fits", "green"), False: ("too large", "red"), None: ("-", "dim")}[verdict])


def _time(seconds: Quantity | None) -> str:
    if seconds is None:
        return "-"
    value = seconds.value
    if value < 1:
        return f"{value * 1000:.3g} ms"
    from hivenode.cli.output import duration

    return duration(value)
