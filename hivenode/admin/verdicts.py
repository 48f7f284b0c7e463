"""What the doctor's findings mean: the one thing that is the matter with a peer, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hivenode.net.link import PROTOCOL_VERSIONS
from hivenode.net.probing import Probe
from hivenode.net.transport import LinkEnd, Refusing
from hivenode.trust.certificates import gap

MAX_SKEW_SECONDS = 10.0
SET_CLOCKS = "Have both machines set their clocks by the network: `timedatectl set-ntp true`."


@dataclass(frozen=True)
class Findings:
    """What is known of one peer.

    Args:
        name: as people know it.
        state: of a member, "" if it is none.
        revoked: whether it is.
        linked: whether there is a link.
        probes: of its addresses, just now.
        failure: why our latest dial failed, "" if it did not.
        turned_away: why we turned it away when it came last, "" if we did not.
        offence: how it broke the protocol when it was heard last, and from where; "" if it did not.
        holders: names of the members that keep the authority's key.
    """

    name: str
    state: str
    revoked: bool
    linked: bool
    probes: Sequence[Probe]
    failure: str
    turned_away: str
    offence: str
    holders: str


def verdict(found: Findings) -> tuple[str, str]:
    """What is the matter, and what to do; the latter is empty when all is well."""
    name = found.name
    if found.revoked:
        back = f" It came back and was turned away: {found.turned_away}" if found.turned_away else ""
        return f"{name} was revoked.{back}", f"`hivenode grant {name} --role ROLE` lets it in again."
    answered = any(probe.tcp for probe in found.probes)
    if found.state == "left" and not answered:
        return f"{name} was stopped by its owner.", f"Start it there with `hivenode up`; `hivenode forget {name}`."
    good = [probe for probe in found.probes if not probe.error]
    for probe in good:
        if mismatch := _versions(name, probe):
            return mismatch
    if found.offence and not found.linked:
        fix = f"Run the same version on both machines. If {name} may be in wrong hands: `hivenode revoke {name}`."
        return f"{name} broke the protocol: {found.offence}.", fix
    if not found.probes:
        fix = f"Start it, or name its address in network.seeds. If it is gone for good: `hivenode forget {name}`."
        return f"No address of {name} is known.", fix
    skews = [probe.skew_seconds for probe in found.probes if probe.skew_seconds is not None]
    if skews and abs(skew := min(skews, key=abs)) > MAX_SKEW_SECONDS:
        worst = next((f" So {probe.error}." for probe in found.probes if probe.error and not good), "")
        return f"The clock of {name} is {gap(skew)} this machine's.{worst}", SET_CLOCKS
    if good and found.linked:
        return f"{name} is linked and answers at {good[0].address}.", ""
    if good:
        said = found.turned_away and f"it was turned away here: {found.turned_away}"
        why = said or found.failure
        return (
            f"{name} answers at {good[0].address}, but there is no link{f': {why}' if why else ''}.",
            f"Wait a moment and ask again; then look at the log of {name}, and run `hivenode doctor` there.",
        )
    return _unreachable(found)


def _versions(name: str, probe: Probe) -> tuple[str, str] | None:
    """Whether it speaks no version of the protocol that we speak."""
    try:
        oldest, newest = (int(part) for part in probe.protocols.split("-"))
    except ValueError:
        return None
    ours_oldest, ours_newest = PROTOCOL_VERSIONS
    if oldest <= ours_newest and ours_oldest <= newest:
        return None
    where = f"on {name}" if newest < ours_oldest else "on this machine"
    return (
        f"{name} (build {probe.build or 'unknown'}) speaks protocol {probe.protocols} and this node "
        f"{ours_oldest}-{ours_newest}: they cannot talk.",
        f"Update hivenode {where}, then restart its daemon.",
    )


def _unreachable(found: Findings) -> tuple[str, str]:
    """The probe that came furthest says most."""
    name = found.name
    best = max(found.probes, key=lambda probe: (probe.identity, probe.tcp, probe.why is LinkEnd.refused))
    what = f"{name} at {best.address}: {best.error}."
    if best.fault is Refusing.expired:
        late = "this node" if best.refused else name
        return what, f"{late[0].upper()}{late[1:]} gets a new one as soon as it reaches {found.holders}: start it."
    if best.fault is Refusing.revoked:
        return what, "Ask an admin of the hive to grant this node roles again, or join with a new invite."
    if best.fault is Refusing.hive:
        return what, (
            f"Run `hivenode status` on {name}: if it has gone over to another hive, `hivenode forget {name}` here; if "
            "not, another daemon has its address: correct network.advertise there."
        )
    if found.linked:
        return (
            f"{name} is linked because it dialled this node; it cannot be dialled at {best.address}: {best.error}.",
            f"Open its port in the firewall of {name}, or correct network.advertise there.",
        )
    if best.identity and best.why is LinkEnd.protocol:
        return what, "Run the same version of hivenode on both machines."
    if best.identity:
        return what, f"Look at what {name} logs about this node; it may hold it revoked."
    if best.tcp and best.why is LinkEnd.identity:
        return what, f"Something else has that address: see in `hivenode status` on {name} where it listens."
    if best.why is LinkEnd.refused:
        return what, "The machine is there and hivenode is not: start it there with `hivenode up`, on the same port."
    fix = f"Is {name} switched on and on this network? Then allow TCP to {best.address} in the firewalls between."
    return what, fix
