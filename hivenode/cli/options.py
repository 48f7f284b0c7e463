"""Options that many verbs share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="The node's folder.", show_default=False, file_okay=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine output: JSON on stdout and nothing else.")]


def home_of(context: typer.Context, home: Path | None) -> Path:
    """The verb's --home, else the global one, else `default_home`; absolute."""
    chosen = home or context.obj
    return chosen.expanduser().absolute() if isinstance(chosen, Path) else default_home()


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """As `hivenode.config.default_home`, without importing what checks settings."""
    if chosen := environment.get("HIVENODE_HOME"):
        return Path(chosen).expanduser().absolute()
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    if state and Path(state).name == "hivenode":
        return Path(state)
    return Path.home() / ".hivenode"
