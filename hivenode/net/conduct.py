"""What a peer may do on its link: how fast, how long beyond that, and for how long it is kept out after breaking the
protocol. Pure.

Rates are generous multiples of what an honest node sends at its busiest; they bound what one member can make another
work. Beyond its rate a link is read more slowly, which slows an honest sender down and leaves a hostile one to its own
full buffers; dropping would break the order that the replication relies on. Who keeps it up is no honest node. Bursts
leave room for what a queue (1,024 messages) holds back while a network stalls, and lets go of at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hivenode.net.codec import ProtocolError
from hivenode.net.messages import (
    Ack,
    Call,
    FeedDelta,
    FeedHeads,
    Gossip,
    Heartbeat,
    HeartbeatAck,
    Nack,
    Ping,
    PingRequest,
    Progress,
    PushPull,
    Reply,
    VoteReply,
    VoteRequest,
    Waiting,
)


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens a second, and how many may be taken at once. A message costs one, and one more per `CHARGE_BYTES`."""

    per_second: float
    burst: float


class Control:
    """Stands for the websocket's own pings and pongs."""


CHARGE_BYTES = 16 * 1024
OTHERS = Rate(50, 200)
"""Kinds of message that are not named below."""
RATES: Mapping[type, Rate] = {
    # Aiohttp pings every 20 s.
    Control: Rate(5, 50),
    # Heartbeats go out twice a second, answered once each; an election adds a few.
    VoteRequest: Rate(50, 200),
    VoteReply: Rate(50, 200),
    Heartbeat: Rate(50, 200),
    HeartbeatAck: Rate(50, 200),
    # One probe a second, and relayed ones of everybody who suspects somebody.
    Ping: Rate(100, 1200),
    Ack: Rate(100, 1200),
    PingRequest: Rate(100, 1200),
    Nack: Rate(100, 1200),
    # Five times a second, and corrections of what the other said.
    Gossip: Rate(50, 1200),
    # Every 30 s; ten thousand members are 32 pieces of 7 tokens each.
    PushPull: Rate(20, 400),
    # At most 32 are under way.
    Call: Rate(200, 500),
    Reply: Rate(200, 500),
    # Every 5 s, and one for each 64 KiB that a node lacks.
    FeedHeads: Rate(20, 200),
    FeedDelta: Rate(200, 1000),
    # Twice a second for each job a node works on, of which there may be 256.
    Progress: Rate(600, 2000),
    # Every few seconds for each job that waits.
    Waiting: Rate(100, 2000),
}
FLOOD_SECONDS = 5.0
"""Who exceeds a rate for so long without a pause is disconnected."""
PATIENT = (FeedDelta, Progress, Waiting)
"""Kinds that an honest node may send for longer than that: a long queue of jobs, a slow receiver."""

MESSAGE_BYTES = 64
"""What TLS and the websocket add to a message, at most, when each travels alone."""
UNREAD_BYTES = 32 << 20
"""What may have arrived at our machine beyond the messages read: the system's receive buffers (6 MiB on Linux unless
set otherwise), a message that is not whole yet, and much room for error."""


class TokenBucket:
    """Pays out `rate` tokens a second, at most `burst` at once. Going into debt costs the caller a wait."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, tokens: float, now: float) -> float:
        """Take tokens; returns the seconds to wait before going on (0 when there were enough)."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - tokens
        self._at = now
        return max(0.0, -self._tokens / self._rate)

    @property
    def rested(self) -> bool:
        """At least half full when tokens were last taken."""
        return self._tokens >= self._burst / 2


class Intake:
    """What one link brings in. `rates` beat `RATES`; an entry for `object` stands for every kind."""

    def __init__(self, rates: Mapping[type, Rate]) -> None:
        self._rates = rates
        self._buckets: dict[type, TokenBucket] = {}
        self._flooding: dict[type, float] = {}
        self._bytes = 0

    def take(self, kind: type, size: int, now: float) -> float:
        """Note a message; returns the seconds to wait before the next one is read.

        Raises:
            ProtocolError: this kind has come too fast for too long.
        """
        self._bytes += size + MESSAGE_BYTES
        bucket = self._buckets.get(kind)
        if bucket is None:
            rate = self._rates.get(kind) or self._rates.get(object) or RATES.get(kind, OTHERS)
            bucket = self._buckets[kind] = TokenBucket(rate.per_second, rate.burst, now)
        wait = bucket.take(1 + size // CHARGE_BYTES, now)
        if wait:
            since = self._flooding.setdefault(kind, now)
            if now - since > FLOOD_SECONDS and kind not in PATIENT:
                raise ProtocolError(f"{kind.__name__} messages came too fast for {FLOOD_SECONDS:.0f} s")
        elif bucket.rested:
            self._flooding.pop(kind, None)
        return wait

    def reconcile(self, arrived: int) -> None:
        """Compare with the bytes that have arrived on the connection in all.

        Raises:
            ProtocolError: far more than the messages they made: frames that never become one.
        """
        if arrived - self._bytes > UNREAD_BYTES:
            raise ProtocolError(f"{arrived - self._bytes} bytes came that are no messages")


FIRST_SECONDS = 2.0
LONGEST_SECONDS = 300.0
FORGIVEN_SECONDS = 600.0
MAX_REMEMBERED = 4096


@dataclass(slots=True)
class _Record:
    strikes: int
    until: float
    at: float


@dataclass
class Conduct:
    """Who has broken the protocol lately: kept out for 2 s, twice as long each time, at most 5 minutes; forgiven after
    10 minutes without another offence. Short at first, because a defect is likelier than malice."""

    _records: dict[str, _Record] = field(default_factory=dict)

    def strike(self, peer: str, now: float) -> None:
        held = self._records.pop(peer, None)
        strikes = held.strikes + 1 if held is not None and now - held.at < FORGIVEN_SECONDS else 1
        seconds = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(strikes - 1, 16))
        self._records[peer] = _Record(strikes, now + seconds, now)
        if len(self._records) > MAX_REMEMBERED:
            del self._records[next(iter(self._records))]

    def kept_out(self, peer: str, now: float) -> float:
        """For how many seconds more."""
        held = self._records.get(peer)
        return max(0.0, held.until - now) if held is not None else 0.0
