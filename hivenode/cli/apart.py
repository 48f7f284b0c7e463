"""The verbs that load and convert model files, each in a process set apart."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.options import JsonOption
from hivenode.errors import InvalidInput

if TYPE_CHECKING:
    from hivenode.models.apart import Answer, Limits
    from hivenode.models.conversion import Made, Way

MIB = 1 << 20
SHOWN = 200
SHOWN_FINDINGS = 8
WIDEST_DISK = 64

MemoryOption = Annotated[int, typer.Option("--memory", metavar="MIB", min=64, help="Memory it may take.")]
TimeoutOption = Annotated[int, typer.Option("--timeout", metavar="SECONDS", min=1, help="Time it may take.")]


def load(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model file or directory.")],
    tensors: Annotated[
        list[str] | None,
        typer.Option("--tensors", metavar="PATTERN", help="Only tensors called so (`layers.3.*`); again for more."),
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights", help="Weights alone; build nothing that predicts.")
    ] = False,
    memory: MemoryOption = 4096,
    timeout: TimeoutOption = 300,
    as_json: JsonOption = False,
) -> None:
    """Try whether a worker could load a model, in a process set apart: what it would hold, memory and time."""
    from hivenode.models import apart
    from hivenode.models.identify import identify

    work = apart.Load(str(path.resolve()), tensors or [], not weights_only)
    answer = apart.run(work, _limits(memory, timeout), apart.places(path, identify(path)))
    if as_json:
        from hivenode.cli.output import print_json

        print_json(answer)
        return
    _show_loaded(path, answer)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A model file or directory of yours.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new directory for what comes of it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before running what the file says.")] = False,
    run: Annotated[
        bool, typer.Option("--run", help="Use the framework's own loader, also where hivenode's readers would do.")
    ] = False,
    code: Annotated[
        list[Path] | None,
        typer.Option("--code", metavar="DIR", help="A directory with modules the pickle needs; again for more."),
    ] = None,
    memory: MemoryOption = 4096,
    timeout: TimeoutOption = 600,
    as_json: JsonOption = False,
) -> None:
    """Turn a model of yours into files that hold data alone, by its own framework where nothing else can, walled in."""
    from hivenode.models import conversion

    way = conversion.choose(source, run=run)
    if way.run and way.report.safe is not True:
        _ask(source, way, yes=yes)
    made = conversion.convert(way, source, target, _limits(memory, timeout), code or ())
    if as_json:
        from hivenode.cli.output import print_json

        print_json(made)
        return
    _show_made(target, made)


def _limits(memory: int, timeout: int) -> Limits:
    from hivenode.models.apart import Limits

    return Limits(memory * MIB, timeout, timeout * (os.cpu_count() or 1), WIDEST_DISK * memory * MIB // 16)


def _ask(source: Path, way: Way, *, yes: bool) -> None:
    """Say what is about to run, and wait for a yes."""
    from hivenode.cli.output import clean

    say = [f"{source} will be loaded by its own framework, which runs whatever the file says:"]
    findings = way.report.findings
    say += [f"  {finding.what}, {finding.where}: {finding.why}" for finding in findings[:SHOWN_FINDINGS]]
    if len(findings) > SHOWN_FINDINGS:
        say.append(f"  ... and {len(findings) - SHOWN_FINDINGS} more")
    say.append(
        "It runs without network, without new processes, with no files but its own and Python's, and with limits of "
        "memory and time. Walls have had holes: do this only with a file of somebody you trust."
    )
    for line in say:
        typer.secho(clean(line), fg="yellow", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput("Nobody is there to say yes.", fix="Give --yes if you trust who made the file.")
    typer.confirm("Convert it?", abort=True, err=True)


def _show_loaded(path: Path, answer: Answer) -> None:
    from hivenode.cli.output import console, size, styled, table

    out = console()
    out.print(styled(str(path), "bold"))
    lines = table("", "")
    lines.show_header = False
    lines.add_row(styled("model", "dim"), styled(answer.model or "weights alone"))
    lines.add_row(styled("tensors", "dim"), styled(f"{len(answer.tensors):,}"))
    lines.add_row(styled("their bytes", "dim"), styled(size(sum(held.nbytes for held in answer.tensors))))
    lines.add_row(styled("own memory", "dim"), styled(f"{size(answer.own_bytes)}, beside pages mapped from the file"))
    lines.add_row(styled("time", "dim"), styled(f"{answer.seconds:.3f} s"))
    if answer.left_out:
        lines.add_row(styled("left out", "dim"), styled(", ".join(answer.left_out)))
    lines.add_row(styled("walls", "dim"), styled("; ".join(answer.layers)))
    out.print(lines)
    if answer.tensors:
        listing = table("TENSOR", "DTYPE", "SHAPE", "BYTES", right=("BYTES",))
        for held in answer.tensors[:SHOWN]:
            shape = "[" + ", ".join(map(str, held.shape)) + "]"
            listing.add_row(styled(held.name), styled(held.dtype), shape, f"{held.nbytes:,}")
        out.print(listing)
        if len(answer.tensors) > SHOWN:
            out.print(f"... and {len(answer.tensors) - SHOWN} more; --json gives all.")


def _show_made(target: Path, made: Made) -> None:
    from hivenode.cli.output import console, styled

    out = console()
    for name in made.files:
        out.print(styled(str(target / name), "bold"))
    for note in made.notes:
        out.print(styled(f"  {note}"))
    out.print(styled(f"  walls: {'; '.join(made.layers)}", "dim"))
