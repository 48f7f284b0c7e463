"""What the failure detector and the election, which are pure, have their shells do on the links to others."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.net.messages import Message


@dataclass(frozen=True, slots=True)
class Send:
    """Best effort: dropped if there is no link to `peer`."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Redial:
    """Dial `peer` now, whatever the backoff says. If it is linked, the link is silent: have a fresh one take its place
    if it is stalled."""

    peer: str
