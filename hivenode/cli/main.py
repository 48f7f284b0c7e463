"""Entry of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from hivenode import dumpable
from hivenode.cli import (
    analyze,
    apart,
    data,
    demo,
    doctor,
    hive,
    identify,
    jobs,
    lifecycle,
    members,
    models,
    pair,
    settings,
)
from hivenode.cli.options import HomeOption
from hivenode.errors import HiveError

INTERRUPTED = 130

app = typer.Typer(
    name="hivenode",
    help="Pools the machines you own into one place to train machine-learning models, with no central server.",
    epilog="First steps: `hivenode demo`, or `hivenode up` and then `hivenode status`. Exit codes: docs/cli.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def everything(context: typer.Context, home: HomeOption = None) -> None:
    context.obj = home


def _add(panel: str, *verbs: Callable[..., Any]) -> None:
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)


_add("This node", lifecycle.up, lifecycle.down, hive.status, hive.events, doctor.doctor)
_add("The hive", hive.invite, hive.join, pair.pair, members.peers, members.grant, members.revoke, members.forget)
_add("Jobs", jobs.submit, jobs.jobs, jobs.watch, jobs.logs, jobs.tensorboard, jobs.cancel, jobs.plan)
_add("Models", models.models, models.predict, identify.identify, analyze.analyze, apart.load, apart.convert)
_add("More", demo.demo, settings.version)
app.add_typer(data.app, name="data", rich_help_panel="Jobs")
app.add_typer(settings.app, name="config", rich_help_panel="More")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="hivenode")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except HiveError as error:
        _report(error, as_json="--json" in given and "demo" not in given)  # the demo's line says how it went
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _report(error: HiveError, *, as_json: bool) -> None:
    from hivenode.cli.output import clean, print_json

    if as_json:
        print_json({"error": error.to_dict()})
    typer.secho(f"Error: {clean(error.sentence)}", fg="red", err=True)
    typer.echo(f"       {clean(error.fix)}", err=True)


def run() -> None:
    """The `hivenode` script."""
    dumpable.forbid()  # some verbs have processes set apart that run under the same user
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `hivenode jobs | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    run()
