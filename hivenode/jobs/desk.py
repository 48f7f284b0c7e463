"""The desk: what this node answers when another node, or itself, asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from hivenode.catalog.holders import Keeper
from hivenode.errors import Refused, Unavailable
from hivenode.hive.papers import Papers
from hivenode.hive.roles import Roles
from hivenode.jobs.executor import Executor
from hivenode.jobs.work import JobLog
from hivenode.net.messages import (
    Adopt,
    Assign,
    AuthorityRequest,
    Have,
    Hold,
    LogsReply,
    LogsRequest,
    ProfileReply,
    ProfileRequest,
    Renew,
    Request,
    Response,
    Start,
    Stop,
    Welcome,
)
from hivenode.spec.values import Role

LOG_REPLY_BYTES = 96 * 1024


class ReadableJobLog(JobLog, Protocol):
    async def read(self, job: str, after: int, limit_bytes: int) -> tuple[Sequence[str], int, bool]:
        """Lines after a number, the number of the last one, and whether there are more."""
        ...


class Desk:
    """Serves requests, after checking that the asker may ask.

    Args:
        enabled: whether this machine's owner lets it work; `max_jobs`: on how many jobs at once.
        worker_host: address that workers listen on for each other; `trusted`: subnets on which they may speak in
            plaintext.
        profile: this machine as measured, given what the request is about; `running` and `paused` are filled in here.
    """

    def __init__(
        self,
        *,
        me: str,
        name: str,
        enabled: bool,
        max_jobs: int,
        roles: Roles,
        executor: Executor,
        worker_host: Callable[[], str],
        trusted: tuple[str, ...],
        keeper: Keeper,
        papers: Papers,
        profile: Callable[[tuple[str, ...]], Awaitable[ProfileReply]],
        job_log: ReadableJobLog,
    ) -> None:
        self._me = me
        self._name = name
        self._enabled = enabled
        self._max_jobs = max_jobs
        self._roles = roles
        self._executor = executor
        self._worker_host = worker_host
        self._trusted = trusted
        self._keeper = keeper
        self._papers = papers
        self._profile = profile
        self._job_log = job_log

    @property
    def paused(self) -> str:
        """Why this node takes no work now; empty when it does."""
        if not self._enabled:
            return "worker.enabled is false in its configuration"
        if not self._roles.may(self._me, Role.worker):
            return "it does not have the worker role"
        if self._executor.running >= self._max_jobs:
            return f"it works on {self._executor.running} jobs already (worker.max_jobs)"
        return ""

    async def serve(self, peer: str, request: Request) -> Response:
        """Answer an authenticated peer. Raises HiveError: the refusal that travels back."""
        match request:
            case Assign() | Start() | Welcome() | Adopt() | Stop():
                return await self._obey(peer, request)
            case Hold():
                return await self._keeper.hold(peer, request)
            case Have():
                return await self._keeper.having(request.digests)
            case ProfileRequest(about=about):
                return msgspec.structs.replace(
                    await self._profile(about),
                    running=self._executor.running,
                    paused=self.paused,
                    address=self._worker_host(),
                    trusted=self._trusted,
                )
            case LogsRequest():
                lines, following, more = await self._job_log.read(request.job, request.after, LOG_REPLY_BYTES)
                return LogsReply(lines=tuple(lines), next=following, more=more)
            case Renew() | AuthorityRequest():
                return await self._papers.serve(peer, request)

    async def ask_ourselves(self, request: Request, timeout: float) -> Response:
        """The same without a wire, at most `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self.serve(self._me, request)
        except TimeoutError:
            raise Unavailable(
                f"Node {self._name} did not answer itself in {timeout:.0f} s.", fix="The machine may be overloaded."
            ) from None

    async def _obey(self, peer: str, order: Assign | Start | Welcome | Adopt | Stop) -> Response:
        if order.epoch.node != peer or not self._roles.may(peer, Role.coordinator):
            raise Refused(
                f"{self._roles.name(peer)} gave an order of epoch {order.epoch}, which is not its own.",
                fix="Only the elected coordinator gives orders.",
            )
        match order:
            case Assign():
                return await self._executor.assign(order)
            case Start():
                return await self._executor.start(order)
            case Welcome():
                return await self._executor.welcome(order)
            case Adopt():
                return await self._executor.adopt(order)
            case Stop():
                return await self._executor.stop(order)
