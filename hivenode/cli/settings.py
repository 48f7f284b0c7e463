"""What this installation and this home are set to."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of

app = typer.Typer(name="config", help="The settings of a node.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    pass


@app.command()
def show(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="As for `up`.", dir_okay=False)] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """The settings in force: defaults, and what the node's hivenode.toml changes (marked)."""
    from hivenode.cli.output import console, print_json, styled
    from hivenode.config import FILE, Settings, load_settings

    where = home_of(context, home)
    path = config or where / FILE
    settings = load_settings(where, config)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    out = console()
    out.print(styled(f"# {path}" if path.exists() else f"# {path} is not there: all is default", "dim"))
    plain = settings.model_dump(mode="json")
    usual = Settings().model_dump(mode="json")
    for section, values in plain.items():
        out.print()
        out.print(styled(f"[{section}]", "bold"))
        for key, value in values.items():
            changed = usual[section][key] != value
            line = f"{key} = {_toml(value)}"
            out.print(
                styled(f"{line}  # default: {_toml(usual[section][key])}" if changed else line, "green" * changed)
            )


def _toml(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def version(as_json: JsonOption = False) -> None:
    """The version of hivenode and of the Python it runs on."""
    from hivenode import __version__

    if as_json:
        from hivenode.cli.output import print_json

        print_json({"hivenode": __version__, "python": platform.python_version()})
    else:
        typer.echo(f"hivenode {__version__} (Python {platform.python_version()})")
