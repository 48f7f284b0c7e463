"""One voter, in the hands of a test."""

from __future__ import annotations

import random

from hivenode.hive.election import Effect, Election, ElectionSettings, Persist, Redial, Send
from hivenode.net.messages import Message, VoteReply, VoteRequest
from hivenode.spec.values import ZERO_EPOCH, Epoch

ABC = ("a", "b", "c")


def single(
    me: str = "b",
    *,
    state: bytes | None = None,
    quorum: int = 0,
    alive: tuple[str, ...] = ABC,
    known: tuple[str, ...] = ABC,
    eligible: bool = True,
    kind: type[Election] = Election,
) -> Election:
    election = kind(me, settings=ElectionSettings(quorum=quorum), rng=random.Random(1), state=state)
    election.start(0.0)
    election.electorate(0.0, alive, known, eligible, alive)
    return election


def sent(effects: list[Effect], to: str | None = None) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send) and to in (None, e.peer)]


def restored(effects: list[Effect], **how: object) -> Election:
    (state,) = [e.state for e in effects if isinstance(e, Persist)]
    return single(state=state, **how)  # type: ignore[arg-type]


def granted(effects: list[Effect]) -> bool:
    (reply,) = [m for m in sent(effects) if isinstance(m, VoteReply)]
    return reply.granted


def elected(election: Election, counter: int = 1) -> list[Effect]:
    """Make `b` the leader among three."""
    effects = election.tick(election.deadline())
    asked = sent(effects)[0]
    assert asked == VoteRequest(Epoch(counter, "b"), True)
    effects = election.receive(3.0, "a", VoteReply(Epoch(counter, "b"), True, True, ZERO_EPOCH))
    assert sent(effects) == [VoteRequest(Epoch(counter, "b"), False)] * 2
    effects = election.receive(3.0, "a", VoteReply(Epoch(counter, "b"), False, True, Epoch(counter, "b")))
    assert election.leading
    return effects


def redialled(effects: list[Effect]) -> list[str]:
    return [effect.peer for effect in effects if isinstance(effect, Redial)]
