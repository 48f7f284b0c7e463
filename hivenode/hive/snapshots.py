"""A snapshot: what follows from all events up to a horizon, in the same bytes on every node. Pure.

A file is a row of frames, each with its length before it: the certificate (the signed events by which the seal was
proposed, confirmed and closed), the header, then the states of the folds in pieces. The digest of a snapshot is that of
everything behind the certificate: who confirmed, and in which order, is not part of it.

What takes long is a generator that yields between two portions of work, so that a shell can let others run.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from hivenode.errors import Refused
from hivenode.hive.feeds import UNREADABLE, Cut, Entry, decode_body, signed_part
from hivenode.hive.views import Fold, placed
from hivenode.net.messages import Event
from hivenode.spec.events import Clock, NodeAdmitted, SealClosed, SealConfirmed, SealProposed
from hivenode.spec.values import Digest, NodeId, Role
from hivenode.trust.authority import Grant, open_grant
from hivenode.trust.identity import verify

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work in portions, with a result."""

MAX_BYTES = 256 << 20
"""Of a file."""
MAX_MEMBERS = 4096
MAX_FRAME = 64 << 20
PORTION = 128
"""Events folded between two yields."""
FORMAT = 1

_encode = msgspec.msgpack.Encoder().encode


class Unconfirmed(Refused):
    """Of a seal, not all confirmations are there."""


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """The events that make a seal."""

    proposal: Event
    confirmations: Annotated[tuple[Event, ...], msgspec.Meta(max_length=MAX_MEMBERS)]
    closing: Event


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot says besides the states of the folds."""

    format: int
    number: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    horizon: Clock
    forget: Clock
    history: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=65536)]
    """Digests of all earlier seals."""
    cuts: Annotated[dict[NodeId, Cut], msgspec.Meta(max_length=MAX_MEMBERS)]
    grants: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=4096)], ...], msgspec.Meta(max_length=MAX_MEMBERS * 4)
    ]
    """The latest of each node, as the authority signed them."""
    folds: Annotated[tuple[tuple[str, int], ...], msgspec.Meta(max_length=64)]
    """Name and number of pieces of each state, in the order of the frames."""


_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_certificate = msgspec.msgpack.Decoder(Certificate).decode


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What stands in for the events of a cut."""

    header: Header
    digest: str
    grants: tuple[Grant, ...]
    """Those of the header, decoded and checked."""
    marks: Mapping[str, object]
    """Of each fold, by its topic: where it goes on from."""

    @property
    def members(self) -> dict[str, Grant]:
        """Everyone who has said something below the cut and was not revoked there, with roles."""
        return {g.node: g for g in self.grants if g.node in self.header.cuts and not g.revokes}


def finish(steps: Steps[T]) -> T:
    """Do all of it in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def paced(steps: Steps[T]) -> T:
    """Do it in portions, others running in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


def digest_of(cuts: Mapping[str, Cut]) -> str:
    """The same for the same cuts."""
    return hashlib.sha256(_encode({author: cuts[author] for author in sorted(cuts)})).hexdigest()


@dataclass(frozen=True, slots=True)
class Task:
    """What a snapshot is made of.

    Args:
        cuts, entries: the cut of each feed, and all entries between the last seal and it.
        before: the last seal; None for the first.
        folds: of each, `fresh` makes one to work with.
        marks: where each goes on from, by topic.
    """

    horizon: int
    forget: int
    cuts: Mapping[str, Cut]
    entries: Sequence[Entry]
    before: Snapshot | None
    folds: Sequence[Fold]
    marks: Mapping[str, object]
    authority_key: bytes


def take(task: Task) -> Steps[tuple[Snapshot, bytes]]:
    """Make a snapshot; returns it and its bytes."""
    before = task.before.header if task.before is not None else None
    since = before.horizon if before is not None else 0
    entries = sorted(task.entries, key=lambda entry: placed(entry, since))
    yield
    workers = [fold.fresh() for fold in task.folds]
    for worker in workers:
        worker.back(task.marks[worker.topic])
        yield
    signed = {g.node: (g.serial, raw) for g, raw in _pairs(task.before)}
    for number, entry in enumerate(entries):
        key, body = placed(entry, since), entry.body
        if isinstance(body, NodeAdmitted):
            _note(signed, body.grant, task.authority_key)
        for worker in workers:
            if body is not None and isinstance(body, worker.kinds):
                worker.apply(key[1], key[0], body)
        if number % PORTION == 0:
            yield
    states: list[tuple[str, list[bytes]]] = []
    for worker in workers:
        pieces: list[bytes] = []
        for piece in worker.dump(task.forget):
            pieces.append(piece)
            yield
        states.append((worker.topic, pieces))
    header = Header(
        format=FORMAT,
        number=before.number + 1 if before is not None else 1,
        horizon=task.horizon,
        forget=task.forget,
        history=(*before.history, task.before.digest) if before is not None and task.before is not None else (),
        cuts={author: task.cuts[author] for author in sorted(task.cuts)},
        grants=tuple(signed[node][1] for node in sorted(signed)),
        folds=tuple((topic, len(pieces)) for topic, pieces in states),
    )
    frames = [_encode(header), *(piece for _, pieces in states for piece in pieces)]
    data = b"".join(_framed(frame) for frame in frames)
    yield
    snapshot = yield from read(data, task.folds, task.authority_key)
    return snapshot, data


def sealed_file(certificate: Certificate, data: bytes) -> bytes:
    """What is kept and passed on."""
    return _framed(_encode(certificate)) + data


def open_file(file: bytes) -> tuple[Certificate, bytes]:
    """The certificate and the snapshot's bytes. Raises Refused."""
    try:
        frame = next(_frames(file))
        return _decode_certificate(frame), file[4 + len(frame) :]
    except (*UNREADABLE, StopIteration, Refused) as error:
        raise _malformed(str(error)) from error


def read(data: bytes, folds: Iterable[Fold], authority_key: bytes) -> Steps[Snapshot]:
    """Decode a snapshot, every grant of it checked. Raises Refused: it is not a snapshot."""
    state = hashlib.sha256()
    frames = _frames(data)
    try:
        frame = next(frames)
        state.update(_framed(frame))
        header = _decode_header(frame)
        workers = [fold.fresh() for fold in folds]
        if header.format != FORMAT or [topic for topic, _ in header.folds] != [w.topic for w in workers]:
            raise Refused("It was made by another version of hivenode.", fix="Run the same version on all nodes.")
        if len(header.history) != header.number - 1:
            raise Refused("Its history has gaps.", fix="Look at who sent it.")
        yield
        grants = list[Grant]()
        for signed in header.grants:
            grants.append(open_grant(signed, authority_key))
            if len(grants) % PORTION == 0:
                yield
        for worker, (_, count) in zip(workers, header.folds, strict=True):
            for _ in range(count):
                frame = next(frames)
                state.update(_framed(frame))
                worker.load(frame)
                yield
    except (*UNREADABLE, StopIteration, Refused) as error:
        raise _malformed(str(error)) from error
    if next(frames, None) is not None:
        raise _malformed("something follows it")
    return Snapshot(header, state.hexdigest(), tuple(grants), {w.topic: w.mark() for w in workers})


def judge(certificate: Certificate, snapshot: Snapshot, hive_id: str) -> Steps[None]:
    """Whether this seal binds everyone. What counts is the snapshot's own word on who was a member, so the judgement
    is the same for everyone, whatever else they know.

    Raises:
        Unconfirmed: somebody did not confirm it who had to.
        Refused: it was not proposed and closed by a coordinator, or is wrong in another way.
    """
    header, members = snapshot.header, snapshot.members
    proposal, closing = decode_body(certificate.proposal.body), decode_body(certificate.closing.body)
    author = certificate.proposal.author
    if not isinstance(proposal, SealProposed) or not isinstance(closing, SealClosed):
        raise _invalid("no proposal or no closing")
    if {proposal.digest, closing.digest} != {snapshot.digest} or digest_of(header.cuts) != proposal.cut:
        raise _invalid("its proposal is of another snapshot")
    if (proposal.number, proposal.horizon, proposal.forget) != (header.number, header.horizon, header.forget):
        raise _invalid("its proposal says something else")
    if closing.number != header.number or certificate.closing.author != author:
        raise _invalid("it was closed by another node")
    if certificate.closing.seq <= certificate.proposal.seq or proposal.epoch.node != author:
        raise _invalid("it was closed before it was proposed, or not by the coordinator of its epoch")
    if author not in members or Role.coordinator not in members[author].roles:
        raise _invalid("its author was no coordinator")
    if missing := [node for node in header.cuts if node not in {grant.node for grant in snapshot.grants}]:
        raise _invalid(f"the grant of {missing[0]} is missing")
    confirmed = {author: None}
    for number, event in enumerate(certificate.confirmations):
        body = decode_body(event.body)
        if not isinstance(body, SealConfirmed) or (body.number, body.digest) != (header.number, snapshot.digest):
            raise _invalid("a confirmation is of something else")
        if event.author in members:
            _verify(event, members[event.author], hive_id)
            confirmed[event.author] = None
        if number % PORTION == 0:
            yield
    for event in (certificate.proposal, certificate.closing):
        _verify(event, members[author], hive_id)
    silent = [node for node in members if node not in confirmed and node not in closing.excused]
    if silent:
        raise Unconfirmed(
            f"A seal is not valid: {members[silent[0]].name} ({silent[0]}) has not confirmed it.",
            fix="Look at who sent it.",
        )
    if too_many(members, confirmed):
        raise _invalid("most coordinators were left out")


def too_many(members: Mapping[str, Grant], confirmed: Iterable[str]) -> bool:
    """Whether more than half of the coordinators would be left out."""
    coordinators = {node for node, grant in members.items() if Role.coordinator in grant.roles}
    return 2 * len(coordinators.difference(confirmed)) > len(coordinators)


def _verify(event: Event, grant: Grant, hive_id: str) -> None:
    if not verify(grant.public_key, event.signature, signed_part(hive_id, event)):
        raise _invalid(f"a signature of {grant.name} is wrong")


def _pairs(snapshot: Snapshot | None) -> Iterable[tuple[Grant, bytes]]:
    return zip(snapshot.grants, snapshot.header.grants, strict=True) if snapshot is not None else ()


def _note(signed: dict[str, tuple[int, bytes]], raw: bytes, authority_key: bytes) -> None:
    try:
        grant = open_grant(raw, authority_key)
    except Refused:
        return  # a forged grant grants nothing; the feed that carries it is otherwise valid
    if grant.node not in signed or (grant.serial, raw) > signed[grant.node]:
        signed[grant.node] = (grant.serial, raw)


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size > MAX_FRAME or at + 4 + size > len(data):
            raise Refused("It ends too early.", fix="Fetch it again.")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _malformed(why: str) -> Refused:
    return Refused(f"A snapshot cannot be read: {why}", fix="Look at who sent it; run the same version on all nodes.")


def _invalid(why: str) -> Refused:
    return Refused(f"A seal is not valid: {why}.", fix="Look at who sent it.")
