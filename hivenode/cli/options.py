"""Options that many verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hivenode.errors import InvalidInput
from hivenode.home import default_home

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="The node's folder.", show_default=False, file_okay=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine output: JSON on stdout and nothing else.")]
ROLES = ("worker", "submitter", "coordinator", "admin")


def known_roles(roles: list[str] | None) -> list[str] | None:
    """What a --role option was given. Raises InvalidInput: that is no role."""
    for role in roles or ():
        if role not in ROLES:
            raise InvalidInput(f"There is no role {role}.", fix=f"Give {', '.join(ROLES[:-1])} or {ROLES[-1]}.")
    return roles


def home_of(context: typer.Context, home: Path | None) -> Path:
    """The verb's --home, else the global one, else `default_home`; absolute."""
    chosen = home or context.obj
    return chosen.expanduser().absolute() if isinstance(chosen, Path) else default_home()
