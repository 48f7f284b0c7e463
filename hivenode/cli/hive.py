"""Verbs about the hive: who is in it, who may come in, what happens."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of, known_roles

if TYPE_CHECKING:
    from hivenode.cli.client import AdminClient
    from hivenode.spec.status import Notice, Status

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DEFAULT_ROLES = ("coordinator", "worker", "submitter")
REJOIN_SECONDS = 20.0


def status(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """This node and the members of its hive, as it sees them."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import print_json
    from hivenode.spec.status import Status

    client = AdminClient(home_of(context, home))
    if as_json:
        print_json(client.ask("GET", "/v1/status"))
    else:
        _show(client.get("/v1/status", Status))


def _show(status: Status) -> None:
    from hivenode.cli.output import clean, console, duration, short, state, styled, table

    out = console()
    for sentence in status.health:
        out.print(styled(f"! {clean(sentence)}", "yellow"))
    out.print(
        styled(clean(status.name), "bold"),
        f"of hive {short(status.hive)} · epoch {clean(status.epoch)} · up {duration(status.uptime_seconds)}"
        f" · {status.admin_url}",
    )
    members = table("", "NAME", "STATE", "ROLES", "RTT", "LINE", "ADDRESS", "NODE", right=("RTT", "LINE"))
    for member in status.members:
        rtt = "" if member.self else "-" if member.latency_ms is None else f"{member.latency_ms:.1f} ms"
        line = "" if member.self else "-" if member.bandwidth is None else f"{member.bandwidth / 1e6:.3g} MB/s"
        roles = [f"{role} (elected)" if role == "coordinator" and member.coordinator else role for role in member.roles]
        members.add_row(
            "*" if member.self else "",
            styled(member.name, "bold" if member.coordinator else ""),
            state(member.state),
            styled(" ".join(roles)),
            rtt,
            line,
            styled(member.addresses[0] if member.addresses else ""),
            short(member.node),
        )
    out.print(members)
    facts = status.facts
    out.print(f"{facts.events} events beyond seal {facts.seals} · journal {facts.journal_bytes / 1e6:.1f} MB")
    if len(status.members) < 2:
        out.print("A hive of one. Next: `hivenode invite` prints what to type on a second machine.")
    elif status.jobs_running:
        out.print(f"{status.jobs_running} open job(s): `hivenode jobs`.")
    else:
        out.print("No open job. Next: `hivenode submit FILE --wait`.")


def invite(
    context: typer.Context,
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            callback=known_roles,
            help="worker, submitter, coordinator or admin; give it again for more. [default: all but admin]",
            show_default=False,
        ),
    ] = None,
    uses: Annotated[int, typer.Option(min=1, max=10_000, help="How many machines may use it.")] = 1,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it is valid: 30m, 1h, 7d.")] = "1h",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Make a token with which another machine joins this hive."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import duration, print_json
    from hivenode.spec.status import InviteIssued

    body = {"roles": role or DEFAULT_ROLES, "uses": uses, "expires_seconds": _seconds(expires)}
    client = AdminClient(home_of(context, home))
    if as_json:
        print_json(client.ask("POST", "/v1/invites", body))
        return
    issued = client.post("/v1/invites", InviteIssued, body)
    left = duration(issued.expires_at - time.time())
    times = "once" if issued.uses == 1 else f"{issued.uses} times"
    typer.echo(f"On the other machine, within {left} ({times}; as {', '.join(issued.roles)}):\n", err=True)
    typer.echo(f"hivenode up --detach --join {issued.token}")
    typer.echo("\nIf its daemon runs already: `hivenode join TOKEN`.", err=True)


def _seconds(text: str) -> float:
    from hivenode.errors import InvalidInput

    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", text.strip())
    if found is None:
        raise InvalidInput(f"--expires {text!r} is not a length of time.", fix="Give 90s, 30m, 1h or 7d.")
    return float(found[1]) * _UNITS[found[2]]


def join(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="As printed by `hivenode invite`.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Leave the present hive, if it has no open jobs, and join the token's."""
    from hivenode.cli.client import AdminClient
    from hivenode.errors import Unavailable

    client = AdminClient(home_of(context, home))
    try:
        client.endpoint()
    except Unavailable as error:
        raise Unavailable(error.sentence, fix="Start one right in that hive: `hivenode up --join TOKEN`.") from None
    joined(client, "/v1/join", {"token": token}, as_json=as_json)


def joined(client: AdminClient, path: str, body: dict[str, str], *, as_json: bool) -> None:
    """Have the daemon go over to another hive, wait until it is there, and say so."""
    from hivenode.cli.output import print_json, short
    from hivenode.spec.status import JoinResult, Status

    result = client.post(path, JoinResult, body)
    # The node takes itself down and up in the new hive; that its stream is there again tells that it is done.
    for notice in client.follow(patience=REJOIN_SECONDS):
        now = client.get_if_there("/v1/status", Status) if notice is None else None
        if now is not None and now.hive == result.hive:
            break
    if as_json:
        print_json(result)
    else:
        typer.echo(f"Joined hive {short(result.hive)} as {', '.join(result.roles)}. Next: `hivenode status`.")


def events(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Follow what happens until Ctrl-C; with --json one object a line."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import console, print_json_line, styled

    out, client = console(), AdminClient(home_of(context, home))
    client.ask("GET", "/v1/status")  # a daemon that goes away is waited for; one that never was is not
    for notice in client.follow():
        if notice is None:
            continue
        if as_json:
            print_json_line(notice)
        else:
            clock = time.strftime("%H:%M:%S", time.localtime(notice.at))
            out.print(styled(f"{clock}  {notice.kind:<11}"), styled(describe(notice)))


def describe(notice: Notice) -> str:
    """One line on a notice."""
    from hivenode.cli.output import number

    data = notice.data
    match notice.kind:
        case "member":
            before = f" (was {data['was']})" if data.get("was") else ""
            return f"{data.get('name')} is {data.get('state')}{before}"
        case "coordinator" if data.get("node"):
            return f"{data.get('name')} coordinates, epoch {data.get('epoch')}"
        case "coordinator":
            waiting = f"; {data['waiting']}" if data.get("waiting") else ""
            return f"nobody coordinates (epoch counter {data.get('counter')}){waiting}"
        case "job":
            return f"{data.get('name')} ({data.get('job')}) is {data.get('state')}: {data.get('reason')}"
        case "progress":
            return (
                f"{data.get('job')} on {data.get('name')}: step {data.get('step')} of {data.get('steps')}, "
                f"loss {number(data.get('loss'))}, {data.get('samples_per_second') or 0.0:.0f} samples/s"
            )
        case "model":
            return f"{data.get('model')} registered, from job {data.get('job')}"
        case "missed" if data.get("count"):
            return f"{data.get('count')} notices were told too quickly, or too long ago"
        case "missed":
            return "the daemon was restarted, and what it told meanwhile is not known"
        case _:
            return " ".join(f"{key}={value}" for key, value in data.items())
