"""What is wrong with a node, in sentences for its person, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from hivenode.hive.inbox import AUTHOR_BYTES_PER_SECOND
from hivenode.hive.replication import Replication
from hivenode.hive.roles import Roles
from hivenode.hive.sealer import Sealer


def complaints(
    me: str, troubles: Mapping[str, str], roles: Roles, replication: Replication, sealer: Sealer
) -> tuple[str, ...]:
    """Empty when all is well.

    Args:
        troubles: sentences gathered elsewhere, by cause.
    """
    found = [trouble for trouble in troubles.values() if trouble]
    if (grant := roles.grant(me)) is not None and grant.revokes:
        reason = grant.reason.rstrip(". ") or "no reason was given"
        found.append(
            f"This node was revoked from its hive: {reason}. It takes no part any more. Ask an admin to grant it roles "
            "again, or `hivenode join` another hive."
        )
    if replication.trouble:
        found.append(replication.trouble)
    if replication.quarantined or me in replication.feeds.forked:
        found.append(
            "Another member found two branches of this node's own feed and takes nothing more of it: give this node a "
            "new home and invite it again."
        )
    found.extend(
        f"The clock of {roles.name(author)} is {hours:.0f} hours ahead of this machine's; nothing it says is taken in "
        "until they agree. Set the clocks (`timedatectl set-ntp true`)."
        for author, hours in sorted(replication.ahead.items())
    )
    found.extend(
        f"The feed of {_name(author, roles, replication)} forked at event {seq} (restored from a backup, or one key on "
        "two machines): nothing it says is taken in. Give it a new home and invite it again."
        for author, seq in sorted(replication.feeds.forked.items())
        if author != me
    )
    found.extend(sealer.alarms[cause] for cause in sorted(sealer.alarms))
    found.extend(
        f"{roles.name(author)} states more than {AUTHOR_BYTES_PER_SECOND >> 10} KiB/s; it is taken in slowly. Look at "
        f"what runs there; `hivenode revoke {roles.name(author)}` shuts it out."
        for author in replication.excessive
    )
    return tuple(found)


def _name(author: str, roles: Roles, replication: Replication) -> str:
    """Also of one whose own grant does not count any more."""
    held = replication.feeds.grants.get(author)
    return held.name if held is not None else roles.name(author)
