"""From a job's declaration and the members' own measurements to a plan."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Awaitable, Callable, Sequence

from hivenode.data import sources
from hivenode.errors import HiveError, Unavailable
from hivenode.models import estimators
from hivenode.models.declared import describe as describe_model
from hivenode.net.messages import ProfileReply, ProfileRequest, Request, Response
from hivenode.planning.planner import plan
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.qtable import Experience
from hivenode.planning.workload import Workload
from hivenode.spec.job import JobSpec
from hivenode.spec.values import Plan, Strategy

PROFILE_SECONDS = 3.0
RUNNABLE = frozenset({Strategy.single_node, Strategy.data_parallel})


class Proposer:
    """Plans jobs for the members that are alive now. Works on any node; only the coordinator's plan is carried out.

    Args:
        call: asks a node (this one included) and awaits the answer (peer, request, timeout seconds).
        workers: ids of alive members with the worker role.
        name: a node's name for people.
        latency: smoothed round trip between this node and another, seconds, or None.
    """

    def __init__(
        self,
        *,
        me: str,
        call: Callable[[str, Request, float], Awaitable[Response]],
        workers: Callable[[], tuple[str, ...]],
        name: Callable[[str], str],
        latency: Callable[[str], float | None],
        experience: Experience,
    ) -> None:
        self._me = me
        self._call = call
        self._workers = workers
        self._name = name
        self._latency = latency
        self._experience = experience

    async def propose(self, spec: JobSpec, *, salt: str) -> Plan:
        """Choose a strategy and shares. `salt` seeds exploration, so a plan can be replayed.

        Raises:
            InvalidInput, NotFound: the job itself is wrong.
            Unavailable: nobody can run it now, with the reasons.
        """
        workload = describe(spec)
        workers = self._workers()
        answers = await asyncio.gather(*(self._profile(node) for node in workers))
        profiles = tuple(profile for profile in answers if profile is not None)
        if not profiles:
            raise Unavailable(
                "No member that may work answers.", fix="Start a node with the worker role; see `hivenode status`."
            )
        return plan(
            workload,
            spec.placement,
            self._view(profiles),
            self._experience,
            rng=random.Random(zlib.crc32(salt.encode())),
            runnable=RUNNABLE,
        )

    async def newcomers(self, spec: JobSpec, nodes: Sequence[str]) -> list[str]:
        """Of these, the workers that could take part in the job and have nothing else to do."""
        named, workers = set(spec.placement.nodes), self._workers()
        asked = [node for node in nodes if node in workers]
        answers = await asyncio.gather(*(self._profile(node) for node in asked))
        return [
            profile.node
            for profile in answers
            if profile is not None
            and spec.runtime in profile.frameworks
            and not profile.paused
            and not profile.running
            and (not named or named & {profile.node, profile.name})
        ]

    async def _profile(self, node: str) -> NodeProfile | None:
        try:
            reply = await self._call(node, ProfileRequest(), PROFILE_SECONDS)
        except HiveError:
            return None  # it does not answer now, so it takes no part now
        if not isinstance(reply, ProfileReply):
            return None
        return NodeProfile(
            node=node,
            flops=reply.flops,
            memory_bytes=reply.memory_bytes,
            cores=reply.cores,
            bandwidth=reply.bandwidth,
            frameworks=reply.frameworks,
            running=reply.running,
            paused=reply.paused,
            name=self._name(node),
        )

    def _view(self, profiles: tuple[NodeProfile, ...]) -> ClusterView:
        measured: dict[tuple[str, str], float] = {}
        for profile in profiles:
            if profile.node != self._me and (seconds := self._latency(profile.node)) is not None:
                measured[(self._me, profile.node)] = seconds
        return ClusterView(profiles=profiles, latencies=measured)


def describe(spec: JobSpec) -> Workload:
    """What a job costs, from its declaration alone. Raises InvalidInput for a model or data set that does not exist."""
    data = sources.with_task(sources.lookup(spec.data).info, spec.data.task)
    masked: dict[Strategy, str] = {}
    if spec.framework == "sklearn":
        masked = estimators.masked(spec.model.source)
    elif spec.framework == "keras":
        why = "keras models are not cut into stages; torch builds the same model and cuts it"
        masked = {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}
    return Workload.of(spec, model=describe_model(spec.model, data), data=data, masked=masked)
