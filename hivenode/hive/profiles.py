"""SWIM's numbers: memberlist's LAN, WAN and local defaults, and the formulas that scale them with the hive's
size."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """All times in seconds."""

    probe_interval: float
    """One member is probed per interval."""
    probe_timeout: float
    """Without a direct answer by then, others are asked to probe."""
    indirect_checks: int
    """How many others are asked."""
    suspicion_mult: int
    """Shortest suspicion, in probe intervals per decade of members."""
    suspicion_max_mult: int
    """Longest suspicion (nobody confirms it) over the shortest."""
    retransmit_mult: int
    """Times a statement is passed on, per decade of members."""
    gossip_interval: float
    gossip_fanout: int
    gossip_to_dead: float
    """How long the dead still get gossip, so that they can refute."""
    push_pull_interval: float
    """Between exchanges of the whole membership with one random member."""
    refusal_confirm: float
    """A second refused dial at least this long after the first makes a member dead."""
    forget_after: float = 7 * 86400.0
    """Dead and departed members are dropped from the list after this long."""
    lag_threshold: float = 0.1
    """An own event loop this late counts against our own health, not against others."""
    max_health: int = 7
    """Worst local health score; the probe interval is stretched by score + 1."""
    gossip_bytes: int = 16 * 1024
    """Encoded statements at most in one gossip, ping or ack."""
    push_pull_bytes: int = 96 * 1024
    """Encoded statements at most in one piece of a push-pull; a frame holds 128 KiB."""
    whole_push_pull: int = 64
    """Members up to which a push-pull carries everything; above, only what differs by its sums."""
    sums_interval: float = 1.0
    """A whole membership is compared by sums at most once in this time on behalf of others."""
    near_probes: int = 4
    """Where there are links to some members only, all but one in so many probes go to them: a member is probed as
    often as ever, by its neighbours, and dials are saved. The one in so many goes round all members."""
    max_members: int = 10_000
    """Members remembered at most, and as many tombstones."""
    max_relays: int = 256
    """Indirect probes carried out for others at one time; beyond that the answer is Nack at once."""


PROFILES: dict[str, Profile] = {
    "lan": Profile(
        probe_interval=1.0, probe_timeout=0.5, indirect_checks=3, suspicion_mult=4, suspicion_max_mult=6,
        retransmit_mult=4, gossip_interval=0.2, gossip_fanout=3, gossip_to_dead=30.0, push_pull_interval=30.0,
        refusal_confirm=0.7,
    ),
    "wan": Profile(
        probe_interval=5.0, probe_timeout=3.0, indirect_checks=3, suspicion_mult=6, suspicion_max_mult=6,
        retransmit_mult=4, gossip_interval=0.5, gossip_fanout=4, gossip_to_dead=60.0, push_pull_interval=60.0,
        refusal_confirm=2.0,
    ),
    "local": Profile(
        probe_interval=1.0, probe_timeout=0.2, indirect_checks=1, suspicion_mult=3, suspicion_max_mult=6,
        retransmit_mult=2, gossip_interval=0.1, gossip_fanout=3, gossip_to_dead=15.0, push_pull_interval=15.0,
        refusal_confirm=0.7,
    ),
}  # fmt: skip


def suspicion_min(profile: Profile, n: int) -> float:
    """Shortest time from suspicion to death among `n` members, seconds."""
    return profile.suspicion_mult * max(1.0, math.log10(max(1, n))) * profile.probe_interval


def patience(profile: Profile, n: int) -> float:
    """How long a member that failed its probe is asked again before others are told, seconds: one probe interval per
    decade of members beyond the first ten. What is told goes to everybody, and so does the denial; in a large hive
    whatever goes wrong now and then goes wrong somewhere all the time."""
    return (max(1.0, math.log10(max(1, n))) - 1.0) * profile.probe_interval


def confirmations_wanted(profile: Profile, n: int) -> int:
    """Independent further accusers that shorten a suspicion to its minimum; 0 where so many cannot exist."""
    k = profile.suspicion_mult - 2
    return k if n - 2 >= k else 0


def retransmit_limit(profile: Profile, n: int) -> int:
    """Times each statement is passed on among `n` members."""
    return profile.retransmit_mult * math.ceil(math.log10(n + 1))


def push_pull_interval(profile: Profile, n: int) -> float:
    """Seconds between push-pulls; stretched above 32 members, where each costs more and more nodes do it."""
    if n <= 32:
        return profile.push_pull_interval
    return profile.push_pull_interval * (math.ceil(math.log2(n) - 5) + 1)
