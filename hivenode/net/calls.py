"""Request and reply on top of links: numbered calls, deadlines, and a bound on how many are under way.

Works over any transport and in virtual time: all waiting is on the running event loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from hivenode.errors import Exhausted, HiveError, Unavailable, from_dict
from hivenode.logs import get_logger
from hivenode.net.messages import Call, Failure, Message, Reply, Request, Response

log = get_logger("calls")

MAX_IN_FLIGHT = 32
"""Calls under way per peer, each way."""
SLOW_SECONDS = 5.0
"""A request served slower than this is logged."""


class Calls:
    """Both ends of request/reply for one node.

    Args:
        send: puts a message on the link to a peer; False if there is none.
        serve: answers a peer's request; a HiveError it raises travels back to the caller.
    """

    def __init__(
        self,
        send: Callable[[str, Message], bool],
        serve: Callable[[str, Request], Awaitable[Response]],
    ) -> None:
        self._send = send
        self._serve = serve
        self._next_id = 0
        self._waiting: dict[str, dict[int, asyncio.Future[Response]]] = defaultdict(dict)
        self._serving: dict[str, dict[asyncio.Task[None], None]] = defaultdict(dict)
        self._closed = False

    async def call(self, peer: str, request: Request, timeout: float) -> Response:
        """Ask a linked peer and wait for its answer, at most `timeout` seconds.

        Raises:
            HiveError: the peer's refusal, rebuilt.
            Unavailable: no link, the link went down, or no answer in time (the request may have been carried out).
            Exhausted: too many calls to this peer are under way.
        """
        what = type(request).__name__
        waiting = self._waiting[peer]
        if len(waiting) >= MAX_IN_FLIGHT:
            raise Exhausted(f"{MAX_IN_FLIGHT} requests to {peer} are under way.", fix="Try again in a moment.")
        self._next_id += 1
        number = self._next_id
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        if self._closed or not self._send(peer, Call(id=number, request=request)):
            raise _unreachable(peer, f"{what} could not be sent to {peer}: there is no link, or it is congested.")
        waiting[number] = answer
        try:
            async with asyncio.timeout(timeout):
                response = await answer
        except TimeoutError:
            raise _unreachable(peer, f"{peer} did not answer {what} within {timeout:g} s.") from None
        finally:
            waiting.pop(number, None)
        if isinstance(response, Failure):
            raise from_dict({"code": response.code, "message": response.message, "fix": response.fix})
        return response

    def received(self, peer: str, message: Call | Reply) -> None:
        """Hand in what arrived from an authenticated peer."""
        if isinstance(message, Reply):
            answer = self._waiting[peer].get(message.id)
            if answer is not None and not answer.done():
                answer.set_result(message.response)
            return
        serving = self._serving[peer]
        if self._closed:
            return
        if len(serving) >= MAX_IN_FLIGHT:
            busy = Exhausted(f"{MAX_IN_FLIGHT} requests of yours are under way here.", fix="Try again in a moment.")
            self._send(peer, Reply(id=message.id, response=_failure(busy)))
            return
        task = asyncio.get_running_loop().create_task(
            self._answer(peer, message), name=f"call {type(message.request).__name__} of {peer}"
        )
        serving[task] = None
        task.add_done_callback(lambda done: serving.pop(done, None))

    def link_down(self, peer: str) -> None:
        """Fail what was asked of this peer. What it asked of us goes on; the answer is lost with the link."""
        for answer in self._waiting.pop(peer, {}).values():
            if not answer.done():
                answer.set_exception(_unreachable(peer, f"The link to {peer} went down before it answered."))

    async def close(self) -> None:
        """Fail all outstanding calls and cancel all handlers; returns when they have ended."""
        self._closed = True
        for peer in list(self._waiting):
            self.link_down(peer)
        tasks = [task for serving in self._serving.values() for task in serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, peer: str, call: Call) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            response = await self._serve(peer, call.request)
        except HiveError as error:
            response = _failure(error)
        except Exception as error:
            log.exception("a request failed unexpectedly", peer=peer, request=type(call.request).__name__)
            response = _failure(
                HiveError(
                    f"The request failed unexpectedly: {type(error).__name__}.",
                    fix="Look at the other node's log; this is a defect.",
                )
            )
        took = loop.time() - started
        if took > SLOW_SECONDS:
            log.info("slow request", peer=peer, request=type(call.request).__name__, seconds=round(took, 3))
        if not self._send(peer, Reply(id=call.id, response=response)):
            log.debug("an answer was lost with its link", peer=peer, request=type(call.request).__name__)


def _failure(error: HiveError) -> Failure:
    return Failure(code=error.code, message=error.sentence[:2000], fix=error.fix[:2000])


def _unreachable(peer: str, sentence: str) -> Unavailable:
    return Unavailable(sentence, fix=f"See whether {peer} is alive: hivenode members.")
