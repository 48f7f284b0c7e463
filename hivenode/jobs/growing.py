"""Letting more nodes take part in an attempt that runs: nodes that were not there when it was planned, and those that
it has lost and that are back."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from hivenode.errors import HiveError
from hivenode.jobs.ledger import Attempt, AttemptName, Job, Ledger
from hivenode.jobs.proposals import Proposer
from hivenode.jobs.results import Append
from hivenode.logs import get_logger
from hivenode.net.messages import Assign, Endpoint, Request, Response, Standing, Start, Stop, Welcome
from hivenode.spec.events import AttemptGrown
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Engine, Epoch, Share, Strategy

ASSIGN_SECONDS = 90.0
ORDER_SECONDS = 5.0
AGAIN_SECONDS = 15.0
"""Between two invitations of one node."""
INVITATIONS = 5
"""Of one node to one attempt."""

log = get_logger("growing")


class Growing:
    """Used by the coordinator, for one attempt after the other.

    Args:
        ask: asks a node and awaits the answer, an error being one too (peer, request, timeout seconds).
        now: seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        proposer: Proposer,
        ask: Callable[[str, Request, float], Awaitable[Response | HiveError]],
        append: Append,
        now: Callable[[], float],
    ) -> None:
        self._ledger, self._proposer, self._ask, self._append, self._now = ledger, proposer, ask, append, now
        self._passed_over: dict[AttemptName, frozenset[str]] = {}
        self._invited: dict[tuple[AttemptName, str], tuple[float, int]] = {}
        """When last, and how often."""

    def begun(self, attempt: Attempt, alive: Sequence[str]) -> None:
        """From now on, those who are not among these and not of the plan are new; and those who had not read yet what
        they take part with."""
        ready = frozenset(node for node in alive if not self._proposer.still_reads(node))
        self._passed_over.setdefault(attempt.name, ready - set(attempt.nodes))

    def clear(self) -> None:
        self._passed_over.clear()
        self._invited.clear()

    async def grow(
        self, job: Job, attempt: Attempt, epoch: Epoch, alive: Sequence[str], standings: Mapping[str, Standing]
    ) -> None:
        """Invite one node, if there is one and the job has room.

        Args:
            standings: of the attempt's nodes, as just told.
        """
        running = {node: s.endpoint for node, s in standings.items() if s.state == "running" and s.endpoint is not None}
        if attempt.plan.strategy is not Strategy.data_parallel or len(attempt.nodes) < 2 or not running:
            return
        if any(s.state in ("finished", "preparing", "prepared") for s in standings.values()):
            return
        spec = JobSpec.model_validate_json(job.spec)
        if len(running) >= spec.placement.max_nodes:
            return
        out = self._passed_over.get(attempt.name, frozenset()) | running.keys()
        for node, standing in standings.items():
            if standing.state == "failed":  # whatever it was, it should be over before it tries again
                self._invited.setdefault((attempt.name, node), (self._now(), 0))
        out |= {node for node, s in standings.items() if s.state == "failed" and not s.retry}
        wanted = [node for node in alive if node not in out and self._may_invite(attempt, node)]
        among = list(running) if attempt.plan.engine is Engine.torch else []
        for node in await self._proposer.newcomers(spec, wanted, among, next(iter(running))) if wanted else ():
            _, times = self._invited.get((attempt.name, node), (0.0, 0))
            self._invited[attempt.name, node] = (self._now(), times + 1)
            await self._invite(job, attempt, epoch, node, tuple(running.values()))
            return

    def _may_invite(self, attempt: Attempt, node: str) -> bool:
        last, times = self._invited.get((attempt.name, node), (-math.inf, 0))
        return times < INVITATIONS and self._now() - last >= AGAIN_SECONDS

    async def _invite(
        self, job: Job, attempt: Attempt, epoch: Epoch, node: str, endpoints: tuple[Endpoint, ...]
    ) -> None:
        share = self._share(attempt, node)
        await self._append(AttemptGrown(job.id, attempt.number, attempt.planned, epoch, share))
        grown = self._ledger.jobs[job.id].attempts[attempt.name]
        order = Assign(
            job=job.id,
            attempt=attempt.number,
            epoch=epoch,
            spec=job.spec,
            plan=grown.plan,
            planned=attempt.planned,
            joining=True,
        )
        answer = await self._ask(node, order, ASSIGN_SECONDS)
        if not isinstance(answer, Standing) or answer.state != "prepared" or answer.endpoint is None:
            log.info("a node could not be prepared to join", job=job.id, node=node)
            return
        newcomer = answer.endpoint
        welcome = Welcome(job.id, attempt.number, attempt.planned, epoch, newcomer)
        for endpoint in endpoints:
            told = await self._ask(endpoint.node, welcome, ORDER_SECONDS)
            if not isinstance(told, Standing) or told.state != "running":
                await self._ask(node, Stop(job.id, epoch, "one that it was to join is gone"), ORDER_SECONDS)
                return
        everybody = (*endpoints, newcomer)
        start = Start(job.id, attempt.number, attempt.planned, epoch, everybody, joining=True)
        await self._ask(node, start, ORDER_SECONDS)
        log.info("a node joins a running attempt", job=job.id, node=node, members=len(everybody))

    @staticmethod
    def _share(attempt: Attempt, node: str) -> Share:
        """The mean of the others': the members divide by speed once they have seen it work."""
        shares = [share for share in attempt.plan.shares if share.node != node]
        count = len(shares)
        return Share(
            node=node,
            rank=max(share.rank for share in attempt.plan.shares) + 1,
            weight=sum(share.weight for share in shares) / count,
            step_seconds=sum(share.step_seconds for share in shares) / count,
            memory_bytes=max(share.memory_bytes for share in shares),
        )
