"""Request and reply between two nodes whose links are two functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hivenode.errors import Exhausted, HiveError, NotFound, Unavailable
from hivenode.net.calls import MAX_IN_FLIGHT, Calls
from hivenode.net.messages import (
    Call,
    Held,
    Hold,
    LogsReply,
    LogsRequest,
    Message,
    ProfileRequest,
    Reply,
    Request,
    Response,
)
from hivenode.spec.values import BlobRef

DIGEST = "0" * 64
Serve = Callable[[str, Request], Awaitable[Response]]


class Pair:
    """Two nodes, `a` and `b`; messages cross on the next turn of the loop while `up`."""

    def __init__(self, serve: Serve) -> None:
        self.up = True
        self.crossed: list[Message] = []
        self.a = Calls(self._to("b", "a"), self._nothing)
        self.b = Calls(self._to("a", "b"), serve)

    def _to(self, target: str, sender: str) -> Callable[[str, Message], bool]:
        def send(peer: str, message: Message) -> bool:
            assert peer == target
            assert isinstance(message, Call | Reply)
            if self.up:
                self.crossed.append(message)
                asyncio.get_running_loop().call_soon(getattr(self, target).received, sender, message)
            return self.up

        return send

    async def _nothing(self, peer: str, request: Request) -> Response:
        raise AssertionError("nobody asks a")


class Answers:
    """What `b` does with a request."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.started = 0
        self.cancelled = 0

    async def serve(self, peer: str, request: Request) -> Response:
        match request:
            case Hold(blob=blob):
                return Held(digest=blob.digest)
            case LogsRequest(job="job-missing"):
                raise NotFound("There is no job job-missing.", fix="List jobs.")
            case LogsRequest(job="job-defect"):
                raise ZeroDivisionError("a defect")
            case _:
                self.started += 1
                try:
                    await self.go_on.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
                return LogsReply(lines=(), next=0, more=False)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def pair(answers: Answers) -> AsyncIterator[Pair]:
    pair = Pair(answers.serve)
    yield pair
    await pair.a.close()
    await pair.b.close()


HOLD = Hold(blob=BlobRef(DIGEST, 1))
SLOW = ProfileRequest()


async def test_a_call_is_answered(pair: Pair) -> None:
    assert await pair.a.call("b", HOLD, 5.0) == Held(digest=DIGEST)


async def test_answers_find_their_questions_in_any_order(pair: Pair, answers: Answers) -> None:
    slow = asyncio.create_task(pair.a.call("b", SLOW, 5.0))
    quick = await pair.a.call("b", HOLD, 5.0)
    answers.go_on.set()
    assert quick == Held(digest=DIGEST)
    assert isinstance(await slow, LogsReply)


async def test_a_refusal_travels_back_as_the_same_error(pair: Pair) -> None:
    with pytest.raises(NotFound) as caught:
        await pair.a.call("b", LogsRequest(job="job-missing"), 5.0)
    assert caught.value.sentence == "There is no job job-missing."
    assert caught.value.fix == "List jobs."


async def test_a_defect_in_a_handler_becomes_a_failure_and_is_logged(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HiveError, match="ZeroDivisionError"):
        await pair.a.call("b", LogsRequest(job="job-defect"), 5.0)
    assert any(record.exc_info for record in caplog.records)


async def test_no_answer_in_time_is_unavailable(pair: Pair) -> None:
    with pytest.raises(Unavailable, match="did not answer ProfileRequest within"):
        await pair.a.call("b", SLOW, 0.01)


async def test_no_link_is_unavailable_at_once(pair: Pair) -> None:
    pair.up = False
    with pytest.raises(Unavailable, match="could not be sent"):
        await pair.a.call("b", HOLD, 3600.0)


async def test_a_link_that_goes_down_fails_its_calls_at_once(pair: Pair, answers: Answers) -> None:
    call = asyncio.create_task(pair.a.call("b", SLOW, 3600.0))
    while not answers.started:
        await asyncio.sleep(0)
    pair.a.link_down("b")
    with pytest.raises(Unavailable, match="went down"):
        await call


async def test_a_late_answer_is_ignored(pair: Pair, answers: Answers) -> None:
    with pytest.raises(Unavailable):
        await pair.a.call("b", SLOW, 0.01)
    answers.go_on.set()
    assert await pair.a.call("b", HOLD, 5.0) == Held(digest=DIGEST)


async def test_an_answer_counts_only_from_the_node_that_was_asked(pair: Pair, answers: Answers) -> None:
    call = asyncio.create_task(pair.a.call("b", SLOW, 5.0))
    while not answers.started:
        await asyncio.sleep(0)
    asked = next(message for message in pair.crossed if isinstance(message, Call))
    pair.a.received("c", Reply(id=asked.id, response=Held(digest="f" * 64)))
    answers.go_on.set()
    assert isinstance(await call, LogsReply)


async def test_calls_under_way_are_bounded_on_both_sides(pair: Pair, answers: Answers) -> None:
    calls = [asyncio.create_task(pair.a.call("b", SLOW, 5.0)) for _ in range(MAX_IN_FLIGHT)]
    while answers.started < MAX_IN_FLIGHT:
        await asyncio.sleep(0)
    with pytest.raises(Exhausted):
        await pair.a.call("b", HOLD, 5.0)
    # A peer that does not keep the bound is refused.
    pair.b.received("a", Call(id=10_000, request=HOLD))
    refusal = pair.crossed[-1]
    assert isinstance(refusal, Reply)
    assert refusal.id == 10_000
    assert refusal.response.code == "exhausted"  # type: ignore[union-attr]
    answers.go_on.set()
    await asyncio.gather(*calls)
    assert await pair.a.call("b", HOLD, 5.0) == Held(digest=DIGEST)


async def test_closing_ends_handlers_and_calls(pair: Pair, answers: Answers) -> None:
    call = asyncio.create_task(pair.a.call("b", SLOW, 3600.0))
    while not answers.started:
        await asyncio.sleep(0)
    await pair.b.close()
    assert answers.cancelled == 1
    await pair.a.close()
    with pytest.raises(Unavailable):
        await call
    with pytest.raises(Unavailable):
        await pair.a.call("b", HOLD, 5.0)
