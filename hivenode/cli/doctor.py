"""The verb that finds out what is wrong between this node and the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from hivenode.cli.options import HomeOption, JsonOption, home_of
from hivenode.errors import Unavailable

if TYPE_CHECKING:
    from rich.console import Console

    from hivenode.spec.members import Diagnosis, PeerExamined, ProbedAddress


def doctor(
    context: typer.Context,
    peer: Annotated[
        str, typer.Argument(metavar="[PEER]", help="One member only: its name, id, or the beginning of its id.")
    ] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Examine this node's connections, and say what to do about what is wrong. Exit code 5 if anything is."""
    from hivenode.cli.client import AdminClient
    from hivenode.cli.output import console, print_json
    from hivenode.spec.members import Diagnosis

    found = AdminClient(home_of(context, home)).get(f"/v1/doctor?peer={quote(peer, safe='')}", Diagnosis)
    if as_json:
        print_json(found)
    else:
        _show(console(), found)
    if not found.healthy:
        raise typer.Exit(Unavailable.exit_code)


def _show(out: Console, found: Diagnosis) -> None:
    from hivenode.cli.output import clean, styled

    for check in found.checks:
        out.print(_mark(check.ok), styled(f"{check.about}: {check.found}"))
        if check.fix:
            out.print(styled(f"  {clean(check.fix)}", "yellow"))
    for peer in found.peers:
        out.print(_mark(peer.ok), styled(f"{peer.found}"))
        if peer.fix:
            out.print(styled(f"  {clean(peer.fix)}", "yellow"))
        out.print(styled(f"  {_state(peer)}", "dim"))
        for address in peer.addresses:
            out.print(styled(f"  {_probed(address)}", "dim"))
    if not found.peers:
        out.print("No other member is known. `hivenode invite` prints what to type on a second machine.")
    elif found.healthy:
        out.print("All is well.")


def _mark(ok: bool) -> object:
    from hivenode.cli.output import styled

    return styled("ok  " if ok else "BAD ", "green" if ok else "red")


def _state(peer: PeerExamined) -> str:
    from hivenode.cli.output import ago

    parts = [
        peer.state,
        "linked" if peer.linked else "not linked",
        f"version {peer.version or 'unknown'}",
        f"multicast heard {ago(peer.multicast_at)}" if peer.multicast_at is not None else "multicast never heard",
        f"last heard {ago(peer.last_contact)}" if peer.last_contact is not None else "never heard",
    ]
    return ", ".join(parts) + (f"; last error: {peer.last_error}" if peer.last_error else "")


def _probed(probed: ProbedAddress) -> str:
    skew = "" if probed.skew_seconds is None else f", clock {probed.skew_seconds:+.1f} s"
    if probed.error:
        steps = "TLS identity right, but " if probed.identity else "TCP reached, but " if probed.tcp else ""
        return f"{probed.address}: {steps}{probed.error}{skew}"
    build = f", build {probed.build}, protocol {probed.protocols}" if probed.build else ""
    return f"{probed.address}: TCP reached, TLS identity right{build}{skew}"
