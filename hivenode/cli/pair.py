"""The verb that lets a machine in with a short code: it shows one on a member, and takes one on the new machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.hive import DEFAULT_ROLES, joined
from hivenode.cli.options import HomeOption, JsonOption, home_of, known_roles

if TYPE_CHECKING:
    from hivenode.cli.client import AdminClient
    from hivenode.spec.members import PairingStatus


def pair(
    context: typer.Context,
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="On the new machine: what the member shows."),
    ] = None,
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="Of the member, if it is not found: HOST or HOST:PORT.")
    ] = "",
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            callback=known_roles,
            help="What the newcomer may do: worker, submitter, coordinator or admin; again for more. "
            "[default: all but admin]",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Let a machine in with a code of nine digits: show it here, type it there within ten minutes."""
    from hivenode.cli.client import AdminClient
    from hivenode.errors import InvalidInput

    client = AdminClient(home_of(context, home))
    if code is None:
        _show(client, role or list(DEFAULT_ROLES), as_json=as_json)
        return
    if role is not None:
        raise InvalidInput("--role is for the member that shows the code.", fix="Leave it out here.")
    joined(client, "/v1/pair/join", {"code": code, "address": address}, as_json=as_json)


def _show(client: AdminClient, roles: list[str], *, as_json: bool) -> None:
    """Show a code until somebody has joined with it. Raises the HiveError of how it ended."""
    from hivenode.cli.output import clean, print_json_line
    from hivenode.spec.members import PairingStatus

    status = client.post("/v1/pair", PairingStatus, {"roles": roles})
    ours = status.ends_at
    try:
        if as_json:
            print_json_line(status)
        else:
            typer.echo(f"On the new machine, where its daemon runs (as {', '.join(status.roles)}):\n", err=True)
            typer.echo(f"hivenode pair {status.code}")
            typer.echo("\nThere is one guess: a wrong code makes this one void. Ctrl-C takes it back.", err=True)
        status = _wait(client, status, quiet=as_json)
    except KeyboardInterrupt:
        if client.get("/v1/pair", PairingStatus).ends_at == ours:
            client.post("/v1/pair/stop", PairingStatus, {})
        raise
    if as_json:
        print_json_line(status)
    elif status.state == "joined":
        typer.echo(f"{clean(status.detail)} Next: `hivenode status`.")
    _judge(status)


def _wait(client: AdminClient, status: PairingStatus, *, quiet: bool) -> PairingStatus:
    """Until the code is used, void or over; the seconds that are left are counted down on a terminal."""
    import sys

    from hivenode.cli.output import clean
    from hivenode.spec.members import PairingStatus

    ours, counted = status.ends_at, sys.stderr.isatty() and not quiet
    told = ""
    while status.state in ("open", "paired"):
        if counted and status.state == "open":
            left = max(0, round(status.ends_at - time.time()))
            typer.echo(f"\r  waiting, {left // 60}:{left % 60:02d} left ", err=True, nl=False)
        if status.state == "paired" and status.detail != told:
            told = status.detail
            if not quiet:
                typer.echo(("\r" if counted else "") + clean(told), err=True)
        status = client.get(f"/v1/pair?unlike={status.state}", PairingStatus)
        if status.ends_at != ours:
            status = PairingStatus("closed", detail="A newer code was made.", ends_at=ours)
    if counted:
        typer.echo("\r" + " " * 24 + "\r", err=True, nl=False)
    return status


def _judge(status: PairingStatus) -> None:
    from hivenode.errors import Conflict, Refused, Unavailable

    again = "Run `hivenode pair` again for a new code."
    match status.state:
        case "void":
            raise Refused(f"The code is void. {status.detail}", fix=again)
        case "expired" | "none":
            raise Unavailable(f"The code has expired. {status.detail}".strip(), fix=again)
        case "closed":
            raise Conflict(f"The code is void. {status.detail}", fix=again)
