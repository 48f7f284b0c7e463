"""Verbs about members: who is known, who is shown out, who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of, known_roles

if TYPE_CHECKING:
    from rich.console import Console

    from hivenode.spec.members import Peers

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A member's name, id, or the beginning of its id.")]


def peers(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Everybody this node knows of: members, those at the door, and those shown out."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import console, print_json
    from hivenode.spec.members import Peers

    client = AdminClient(home_of(context, home))
    if as_json:
        print_json(client.ask("GET", "/v1/peers"))
    else:
        _show(console(), client.get("/v1/peers", Peers))


def _show(out: Console, found: Peers) -> None:
    from hivenode.cli.output import ago, short, state, styled, table

    known = table("NAME", "STATE", "ROLES", "LINK", "HEARD", "ADDRESS", "NODE", "LAST ERROR")
    for peer in found.known:
        known.add_row(
            styled(peer.name, "bold" if peer.coordinator else ""),
            state(peer.state),
            styled(" ".join(peer.roles)),
            "self" if peer.self else "yes" if peer.linked else "no",
            "" if peer.self else "-" if peer.last_contact is None else ago(peer.last_contact),
            styled(peer.addresses[0] if peer.addresses else ""),
            short(peer.node),
            styled(peer.last_error),
        )
    out.print(known)
    if found.pending:
        pending = table("PENDING", "ADDRESS", "WHEN", "WHY", "DETAIL", "NODE")
        words = {"heard": "heard nearby"}
        for each in found.pending:
            pending.add_row(
                styled(each.name or "?"), styled(each.address), ago(each.at),
                styled(f"turned away: {each.why}" if each.inbound else words.get(each.why, f"dialled: {each.why}")),
                styled(each.detail + (f" ({each.times} times)" if each.times > 1 else "")),
                short(each.node),
            )  # fmt: skip
        out.print(pending)
    if found.revoked:
        revoked = table("REVOKED", "WHEN", "REASON", "CAME BACK", "NODE")
        for gone in found.revoked:
            revoked.add_row(
                styled(gone.name),
                ago(gone.at),
                styled(gone.reason),
                "no" if gone.tried_at is None else ago(gone.tried_at),
                short(gone.node),
            )
        out.print(revoked)


def revoke(
    context: typer.Context,
    node: NodeArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Told to the node and kept with the fact.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Shut a member out for good: nobody links with it or takes in what it says. On a node with the admin role."""
    _change(context, home, node, "revoke", {"reason": reason}, as_json)


def grant(
    context: typer.Context,
    node: NodeArgument,
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            metavar="ROLE",
            callback=known_roles,
            help="worker, submitter, coordinator or admin; again for more.",
        ),
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Give a member these roles instead of those it has; also lets a revoked one in again. Takes the admin role."""
    _change(context, home, node, "grant", {"roles": role}, as_json)


def forget(context: typer.Context, node: NodeArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Take a member that is gone for good off every node's list. On a node with the admin role."""
    _change(context, home, node, "forget", {}, as_json)


def _change(
    context: typer.Context, home: Path | None, node: str, deed: str, body: dict[str, object], as_json: bool
) -> None:
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import clean, print_json
    from hivenode.spec.members import MemberChanged

    client = AdminClient(home_of(context, home))
    path = f"/v1/members/{quote(node, safe='')}/{deed}"
    changed = client.post(path, MemberChanged, body)
    if as_json:
        print_json(changed)
    elif changed.roles:
        typer.echo(f"{clean(changed.name)} is {', '.join(changed.roles)} now.")
    else:
        typer.echo(f"{clean(changed.name)} is no member any more. `hivenode grant` would let it in again.")
