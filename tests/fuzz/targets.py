"""What is fuzzed: the codec, and the pure cores that see what came through it. Each target takes messages or bytes and
raises only if something is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import msgspec

from hivenode.catalog.models import Catalogue, Holders
from hivenode.hive.ballots import ElectionSettings
from hivenode.hive.election import Election
from hivenode.hive.feeds import Entry, Feeds, decode_body, encode_body
from hivenode.hive.inbox import Allowance, Inbox
from hivenode.hive.profiles import PROFILES
from hivenode.hive.roles import Roles
from hivenode.hive.swim import Swim
from hivenode.hive.views import Views
from hivenode.jobs.ledger import Ledger
from hivenode.jobs.live import Live
from hivenode.net.codec import ProtocolError, decode, encode
from hivenode.net.messages import Event, FeedDelta, Message, Progress
from hivenode.planning.qtable import Experience
from hivenode.spec.events import NodeAdmitted
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority
from tests.fuzz.messages import KEYS, NODES

AUTHORITY = Authority.from_seed(b"fuzz")
ME = NODES[0]


def parts(data: bytes) -> list[bytes]:
    """Bytes cut up: each part is led by its length in two bytes."""
    found: list[bytes] = []
    while len(data) > 2 and len(found) < 64:
        length = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + length])
        data = data[2 + length :]
    return found


def decoded(frames: Iterable[bytes]) -> list[Message]:
    """Those frames that are messages; a message that was read can be written, and is read the same again."""
    found: list[Message] = []
    for frame in frames:
        try:
            message = decode(frame)
        except ProtocolError:
            continue
        again = encode(message)
        assert encode(decode(again)) == again
        found.append(message)
    return found


def swim(heard: Iterable[Message]) -> None:
    """The failure detector believes every signature here, so that the depths are reached."""
    core = Swim(
        ME, name="me", addresses=("127.0.0.1:1",), version="1", boot=3, profile=PROFILES["lan"],
        rng=random.Random(1), sign=lambda data: bytes(64), verify=lambda node, signature, data: True,
    )  # fmt: skip
    now = 0.0
    core.start(now)
    for peer in NODES[1:]:
        core.link_up(now, peer)
    for number, message in enumerate(heard):
        now += 0.3
        core.receive(now, NODES[1 + number % 3], message)
        if core.deadline() <= now:
            core.tick(now)
        own = core.members[ME]
        assert own.boot == 3, "nobody says in which life we are"
        assert own.name == "me"
        assert len(core.members) <= PROFILES["lan"].max_members


def election(heard: Iterable[Message]) -> None:
    core = Election(ME, settings=ElectionSettings(), rng=random.Random(1), state=None)
    now = 0.0
    core.start(now)
    core.electorate(now, tuple(NODES), tuple(NODES), True)
    highest = core.highest
    for number, message in enumerate(heard):
        now += 0.3
        core.receive(now, NODES[1 + number % 3], message)
        if core.deadline() <= now:
            core.tick(now)
        assert core.highest >= highest, "an epoch once obeyed or voted for is never forgotten"
        highest = core.highest


def feeds(heard: Iterable[Message]) -> None:
    held, inbox, allowance = Feeds(AUTHORITY.hive_id, AUTHORITY.public_key), Inbox(), Allowance()
    for number, message in enumerate(heard):
        if isinstance(message, FeedDelta):
            inbox.put(NODES[number % 4], message)
    for waiting in inbox.take(1 << 30):
        events = allowance.allowed(waiting[1].events, 1.0)
        found = held.examine(events)
        assert not found.fresh, "no grant here is of the authority"
    assert not held.forked


def folds(said: Iterable[tuple[int, int, bytes]]) -> None:
    """Bodies of events as (author's number, clock, encoded body), of members with all roles: folded in whatever order,
    the views are equal."""
    entries = [
        _entry(key.node_id, 1, 0, encode_body(NodeAdmitted(AUTHORITY.grant(key.public_key, "x", tuple(Role), 1))))
        for key in KEYS
    ]
    for seq, (number, hlc, body) in enumerate(said, 2):
        entries.append(_entry(NODES[number % 4], seq, hlc, body))
    marks = []
    for order in (entries, entries[::-1]):
        ledger = Ledger(AUTHORITY.public_key)
        all_folds = (Roles(AUTHORITY.public_key), ledger, Holders(), Experience())
        views = Views(all_folds)
        for entry in order:
            views.add([entry])
        Catalogue(ledger.models).versions  # noqa: B018 (it must not raise)
        marks.append(msgspec.msgpack.encode([fold.mark() for fold in all_folds], order="deterministic"))
    assert marks[0] == marks[1]


def _entry(author: str, seq: int, hlc: int, body: bytes) -> Entry:
    return Entry(Event(author, seq, bytes(32), hlc, body, bytes(64)), decode_body(body), b"")


def progress(heard: Iterable[Message]) -> None:
    live = Live()
    for message in heard:
        if isinstance(message, Progress):
            live.hear(message, 0.0)
            live.state(message.job, message.attempt, message.node)
            live.of(message.job, message.attempt)


Core = Callable[[Iterable[Message]], None]
CORES: tuple[Core, ...] = (swim, election, feeds, progress)


def everything(data: bytes) -> None:
    """All targets on the same bytes."""
    cut = parts(data)
    heard = decoded(cut)
    for core in CORES:
        core(heard)
    folds((part[0], int.from_bytes(part[1:9], "big") >> 1, part[9:]) for part in cut if len(part) > 9)
