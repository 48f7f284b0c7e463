"""What is raised where a worker is put out: by itself, and by those who go on without one that is to blame."""

from __future__ import annotations

from collections.abc import Mapping

from hivenode.training.exchange.errors import Absurd, Excluded, NonFinite
from hivenode.training.exchange.membership import BLAMED
from hivenode.training.exchange.messages import Accusation, Reason
from hivenode.training.exchange.views import View

_WHY = {
    Reason.lost: "their connection to it broke",
    Reason.silent: "they heard nothing from it for too long",
    Reason.told: "it was reported lost",
    Reason.unreachable: "they could not reach it",
    Reason.unknown: "it was not on everybody's list of workers",
    Reason.malformed: "it sent bytes that are not of the protocol",
    Reason.nonfinite: "it contributed values that are not finite",
    Reason.absurd: "it contributed values far larger than the others'",
    Reason.left: "it had left",
    Reason.paused: "it stood still for longer than they wait, and nobody is left to ask",
    Reason.behind: "it fell behind",
}


def put_out(verdict: Accusation, me: int, nodes: Mapping[int, str], number: int) -> Excluded | NonFinite | Absurd:
    """The others go on without this worker. `nodes`: ids by rank; `number`: the round it was in."""
    if verdict.reason in BLAMED:
        return blamed(verdict, nodes[me], number, None)
    if verdict.reason is Reason.unreachable and verdict.by in nodes.keys() - {me}:
        return Excluded(
            f"The other workers go on without {nodes[me]}: it and {nodes[verdict.by]} could not reach each other,"
            " whichever dialled.",
            fix="Open or forward worker.ports of one of the two to the other, or join them by a VPN.",
        )
    return Excluded(f"The other workers go on without {nodes[me]}: {_WHY[verdict.reason]}.")


def blamed(accusation: Accusation, node: str, number: int, view: View | None) -> NonFinite | Absurd:
    """What a worker contributed has put it out. `view`: as the errors have it."""
    kind = Absurd if accusation.reason is Reason.absurd else NonFinite
    return kind(node, accusation.round or number, view)
