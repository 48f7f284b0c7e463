"""Starting and stopping the daemon of a home."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of
from hivenode.home import Home

if TYPE_CHECKING:
    from hivenode.spec.status import Status

STOP_SECONDS = 30.0


def up(
    context: typer.Context,
    join: Annotated[
        str | None,
        typer.Option("--join", metavar="TOKEN", help="First start only: join this hive instead of founding one."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready; it runs on.")] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings; otherwise hivenode.toml in the home.", dir_okay=False)
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What people call this node.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="For other nodes; 0: any free one.")] = None,
    admin_port: Annotated[int | None, typer.Option(min=0, max=65535, help="For this machine; 0: any free one.")] = None,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    home: HomeOption = None,
) -> None:
    """Start this machine's daemon. The first start makes its key and a hive of one."""
    where = home_of(context, home)
    if detach:
        _detach(where, join, config, name, port, admin_port)
        return
    from hivenode.cli.daemons import Report, tell
    from hivenode.daemon import run
    from hivenode.errors import HiveError

    overrides: dict[str, dict[str, object]] = {}
    for section, key, value in (("node", "name", name), ("network", "port", port), ("admin", "port", admin_port)):
        if value is not None:
            overrides.setdefault(section, {})[key] = value

    def on_ready(status: Status) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            tell(ready_fd, Report(ready=status))
            ready_fd = None
        elif sys.stdout.isatty():
            _announce(status, "Ctrl-C stops it.")

    try:
        if config is None:
            _first_settings(where, overrides)
        code = run(where, config, join_token=join, overrides=overrides, on_ready=on_ready)
    except HiveError as error:
        if ready_fd is not None:
            tell(ready_fd, Report(error=error.to_dict()))
        raise
    raise typer.Exit(code)


def _first_settings(home: Path, overrides: dict[str, dict[str, object]]) -> None:
    """Before the first start: hivenode.toml with every setting and its reason, commented out but for those that were
    given, so that the next start is as this one."""
    import json
    import re

    from hivenode.config import FILE, load_settings, render

    path = home / FILE
    if path.exists() or Home(home).key.exists():
        return
    load_settings(home, None, overrides)  # nothing is written that would not be read
    section = ""
    lines = [
        "# Settings of this hivenode daemon. Every setting is here with its default; take the # off what you change.",
        "",
    ]
    _, _, body = render().partition("\n\n")
    for line in body.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = found[1]
        if found := re.match(r"(\w+) = ", line):
            given = overrides.get(section, {}).get(found[1])
            line = f"#{line}" if given is None else f"{found[1]} = {json.dumps(given)}"
        lines.append(line)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _detach(
    home: Path, join: str | None, config: Path | None, name: str | None, port: int | None, admin_port: int | None
) -> None:
    from hivenode.cli.daemons import start

    given: dict[str, object] = {
        "--join": join,
        "--config": config.absolute() if config is not None else None,
        "--name": name,
        "--port": port,
        "--admin-port": admin_port,
    }
    arguments = [f"{option}={value}" for option, value in given.items() if value is not None]
    daemon = start(home, arguments)
    _announce(
        daemon.wait_ready(), f"It runs on (process {daemon.process.pid}, log {daemon.log}); `hivenode down` stops it."
    )


def _announce(status: Status, ending: str) -> None:
    from hivenode.cli.output import clean, console, styled

    out = console()
    out.print(styled(f"{clean(status.name)} is up.", "bold green"))
    out.print(f"  node       {status.node}")
    out.print(f"  hive       {status.hive}")
    out.print(f"  addresses  {clean(', '.join(status.addresses))}")
    out.print(f"  admin      {status.admin_url}")
    out.print(f"  home       {status.home}")
    alone = len(status.members) < 2
    step = "`hivenode invite` for a second machine, or `hivenode submit FILE`" if alone else "`hivenode status`"
    out.print(f"Next: {step}. {ending}")


def down(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Stop this machine's daemon, and wait until it has ended."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.daemons import wait_end
    from hivenode.cli.output import print_json
    from hivenode.errors import Unavailable

    client = AdminClient(home_of(context, home))
    pid = client.endpoint().pid
    client.ask("POST", "/v1/stop")
    if not wait_end(pid, STOP_SECONDS):
        raise Unavailable(
            f"The daemon (process {pid}) has not ended after {STOP_SECONDS:.0f} s.",
            fix=f"Look at its log; `kill -9 {pid}` ends it, and loses nothing that was accepted.",
        )
    if as_json:
        print_json({"stopped": pid})
    else:
        typer.echo(f"Stopped (process {pid}).")
