"""From a job's declaration and the members' own measurements to a plan."""

from __future__ import annotations

import asyncio
import difflib
import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from hivenode.data import sources
from hivenode.data.info import DataInfo
from hivenode.errors import HiveError, Unavailable
from hivenode.models import compositions, hub
from hivenode.models.declared import describe as describe_model
from hivenode.models.declared import layers_of
from hivenode.models.layers import buffers
from hivenode.net.messages import OFFERED_CHARACTERS, Offer, ProfileReply, ProfileRequest, Request, Response
from hivenode.net.widths import believable
from hivenode.planning.engines import distrust
from hivenode.planning.planner import plan, versions_of
from hivenode.planning.profile import DEFAULT_BANDWIDTH, ClusterView, NodeProfile
from hivenode.planning.qtable import Experience
from hivenode.planning.workload import Workload
from hivenode.spec.job import JobSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import Plan, Strategy

PROFILE_SECONDS = 3.0
MAX_REASON = 1900
EVERYWHERE = frozenset({Strategy.single_node, Strategy.data_parallel})
RUNNABLE = {
    "torch": EVERYWHERE | {Strategy.model_parallel, Strategy.pipeline_parallel},
    "sklearn": EVERYWHERE | {Strategy.model_parallel},
}
"""Strategies that can be run, by framework; `EVERYWHERE` for others."""
FITTED = ("trees", "whole", "members")
"""Kinds of estimators that are fitted once, to all there is, and do not learn by steps."""


class Proposer:
    """Plans jobs for the members that are alive now. Works on any node; only the coordinator's plan is carried out.

    Args:
        call: asks a node (this one included) and awaits the answer (peer, request, timeout seconds).
        workers: ids of alive members with the worker role.
        name: a node's name for people.
        latency: smoothed round trip between this node and another, seconds, or None.
        reading_seconds: that a job waits at most for a node which still reads data of its own.
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
        reading_seconds: float,
    ) -> None:
        self._me = me
        self._call = call
        self._workers = workers
        self._name = name
        self._latency = latency
        self._experience = experience
        self._reading_seconds = reading_seconds
        self._reading: dict[tuple[str, str], float] = {}
        """Since when a node has been heard to read something, by node and name of that; until it answers that it does
        not, or may no longer work."""

    async def propose(self, spec: JobSpec, *, salt: str, memory_factor: float = 1.0) -> Plan:
        """Choose a strategy and shares. `salt` seeds exploration, so a plan can be replayed; `memory_factor` is what
        workers of the job were seen to need over what the cost model says.

        Raises:
            InvalidInput, NotFound: the job itself is wrong.
            Unavailable: nobody can run it now, with the reasons.
        """
        if not self.only_nodes_know(spec):
            describe(spec)  # what is wrong with it is told whoever is there
        heard = await self._heard(tuple(need for need in spec.needs if len(need) <= OFFERED_CHARACTERS))
        without = " ".join(filter(None, (self._late(spec, heard), self._unread(spec, heard))))
        workload, heard = _priced(spec, heard, self._name, without)
        if memory_factor != 1.0:
            workload = workload.taking(memory_factor)
        profiles = tuple(self._profile(node, reply) for node, reply in heard.items())
        if not profiles:
            raise Unavailable(
                "No member that may work answers.", fix="Start a node with the worker role; see `hivenode status`."
            )
        try:
            found = plan(
                workload,
                spec.placement,
                self._view(profiles),
                self._experience,
                rng=random.Random(zlib.crc32(salt.encode())),
                runnable=_runnable(spec),
            )
        except Unavailable as error:
            raise Unavailable(f"{error.sentence} {without}".strip()[:MAX_REASON], fix=error.fix) from error
        return msgspec.structs.replace(found, reason=f"{found.reason} {without}".strip()[:MAX_REASON])

    def _unread(self, spec: JobSpec, heard: dict[str, ProfileReply]) -> str:
        """A sentence on those who cannot read private data that the job is for, "" if there are none: all are meant."""
        if spec.data.kind != "private":
            return ""
        wrong = [self._name(n) for n, reply in heard.items() if any(u.name == spec.data.source for u in reply.unfit)]
        if not wrong:
            return ""
        return f"{spec.data.source} of {', '.join(sorted(wrong))} cannot be read; the daemon's log there says why."

    def _late(self, spec: JobSpec, heard: dict[str, ProfileReply]) -> str:
        """A sentence on those that are no longer waited for, "" if there are none.

        Raises:
            Unavailable: a node reads data of its own that it may take part with, and has not taken too long yet: all of
                them are meant.
        """
        now = asyncio.get_running_loop().time()
        reading = [
            (node, self._reading.get((node, name), now))
            for node, reply in heard.items()
            for name in set(spec.needs) & set(reply.looking)
            if _meant(spec, node, self._name)
        ]
        if awaited := [self._name(node) for node, since in reading if now - since < self._reading_seconds]:
            raise Unavailable(
                f"What is {spec.data.source} on {', '.join(awaited)} is still being read there.",
                fix="Ask again in a moment; a job that was submitted waits by itself, at most "
                f"{self._reading_seconds:.0f} s (jobs.reading_seconds).",
            )
        if not reading:
            return ""
        names = ", ".join(sorted(self._name(node) for node, _ in reading))
        return f"It goes without {names}, still reading {spec.data.source} after {self._reading_seconds:.0f} s."

    def still_reads(self, node: str) -> bool:
        """Whether it did when it was last asked."""
        return any(reader == node for reader, _ in self._reading)

    async def _heard(self, about: tuple[str, ...] = ()) -> dict[str, ProfileReply]:
        workers = self._workers()
        replies = await asyncio.gather(*(self._ask(node, about) for node in workers))
        heard = {node: reply for node, reply in zip(workers, replies, strict=True) if reply is not None}
        now = asyncio.get_running_loop().time()
        silent = {each: since for each, since in self._reading.items() if each[0] in workers and each[0] not in heard}
        reading = [(node, name) for node, reply in heard.items() for name in reply.looking]
        self._reading = silent | {each: self._reading.get(each, now) for each in reading}
        return heard

    async def profiles(self) -> tuple[tuple[NodeProfile, ...], tuple[str, ...]]:
        """What each member that may work has measured of itself, and the names of those that do not answer."""
        heard = await self._heard()
        missing = tuple(self._name(node) for node in self._workers() if node not in heard)
        return tuple(self._profile(node, reply) for node, reply in heard.items()), missing

    @staticmethod
    def only_nodes_know(spec: JobSpec) -> bool:
        """Whether the cost of a job follows from what some nodes have, and not from its declaration."""
        return spec.data.kind == "private" or (spec.model.kind == "hf" and spec.model.source != "hf:config")

    async def newcomers(
        self, spec: JobSpec, nodes: Sequence[str], plaintext: Sequence[str] = (), beside: str = ""
    ) -> list[str]:
        """Of these, the workers that could take part in the job and have nothing else to do.

        Args:
            plaintext: those that take part, where they speak in plaintext: each has to trust a newcomer, and it them.
            beside: one that takes part: a newcomer has to have its version of the framework.
        """
        workers = self._workers()
        asked = [node for node in nodes if node in workers]
        answers = await asyncio.gather(*(self._ask(node) for node in [*asked, *plaintext]))
        heard = zip([*asked, *plaintext], answers, strict=True)
        profiles = {node: self._profile(node, reply) for node, reply in heard if reply is not None}
        present = [profiles[node] for node in plaintext if node in profiles]
        if len(present) < len(plaintext):
            return []
        member = await self._ask(beside) if beside else None
        usual = versions_of(spec.runtime, member.versions) if member is not None else {}
        return [
            node
            for node, reply in zip(asked, answers, strict=False)
            if reply is not None
            and not (present and distrust([*present, profiles[node]]))
            and spec.runtime in reply.frameworks
            and all(
                not usual.get(name) or number in ((), usual[name])
                for name, number in versions_of(spec.runtime, reply.versions).items()
            )
            and set(spec.libraries) <= reply.versions.keys()
            and not reply.paused
            and not reply.running
            and _offers_alike(spec, reply, member)
            and _meant(spec, node, self._name)
        ]

    async def _ask(self, node: str, about: tuple[str, ...] = ()) -> ProfileReply | None:
        try:
            reply = await self._call(node, ProfileRequest(about), PROFILE_SECONDS)
        except HiveError:
            return None  # it does not answer now, so it takes no part now
        return reply if isinstance(reply, ProfileReply) else None

    def _profile(self, node: str, reply: ProfileReply) -> NodeProfile:
        return NodeProfile(
            node=node,
            flops=reply.flops,
            memory_bytes=reply.memory_bytes,
            cores=reply.cores,
            bandwidth=believable(reply.bandwidth) or DEFAULT_BANDWIDTH,
            frameworks=reply.frameworks,
            running=reply.running,
            paused=reply.paused,
            name=self._name(node),
            offers=tuple(offer.name for offer in reply.offers),
            unfit={each.name: each.reason for each in reply.unfit},
            versions=reply.versions,
            bf16=reply.bf16,
            fp16=reply.fp16,
            address=reply.address,
            trusted=reply.trusted,
            lines={peer: figure for peer, told in reply.lines.items() if (figure := believable(told)) is not None},
        )

    def _view(self, profiles: tuple[NodeProfile, ...]) -> ClusterView:
        measured: dict[tuple[str, str], float] = {}
        for profile in profiles:
            if profile.node != self._me and (seconds := self._latency(profile.node)) is not None:
                measured[(self._me, profile.node)] = seconds
        return ClusterView(profiles=profiles, latencies=measured)


def _offers_alike(spec: JobSpec, reply: ProfileReply, member: ProfileReply | None) -> bool:
    """Whether a node has all that a job needs, of the kind that one which takes part has."""
    found = {offer.name: offer.same for offer in reply.offers}
    usual = {offer.name: offer.same for offer in (member.offers if member is not None else ())}
    return all(need in found and found[need] == usual.get(need, found[need]) for need in spec.needs)


def describe(spec: JobSpec) -> Workload:
    """What a job costs, from its declaration alone. Raises InvalidInput for a model or data set that does not exist,
    or one that does not fit the other."""
    data = sources.information(spec.data)
    return _workload(spec, spec.model, data)


def _priced(
    spec: JobSpec, heard: dict[str, ProfileReply], name: Callable[[str], str], without: str
) -> tuple[Workload, dict[str, ProfileReply]]:
    """What a job costs, also by what nodes offer; and the nodes without those whose own data are unlike those of most
    others. `without`: what to add to that nobody has something."""
    offered: dict[str, Offer] = {}
    model = spec.model
    for need in spec.needs:
        found = {node: offer for node, reply in heard.items() for offer in reply.offers if offer.name == need}
        if not found:
            raise _nowhere(need, heard, name, without)
        if need == model.source:
            found = {node: offer for node, offer in found.items() if _meant(spec, node, name)} or found
            _one_model(need, found, name)
            node, offer = next(iter(found.items()))
            config = hub.told(offer.config, f"The configuration of {need} on {name(node)}") if offer.config else {}
            model = model.model_copy(update={"parameters": offer.parameters or None, "config": config})
        kinds = Counter(offer.same for offer in found.values())
        usual = max(sorted(kinds), key=lambda kind: kinds[kind])
        odd = {node for node, offer in found.items() if offer.same != usual}
        heard = {node: reply for node, reply in heard.items() if node not in odd}
        offered[need] = next(offer for node, offer in found.items() if node not in odd)
    own = offered.get(spec.data.source)
    data = own.info if own is not None and own.info is not None else sources.information(spec.data)
    if spec.data.kind == "private":  # each node has its own
        offers = [offer for reply in heard.values() for offer in reply.offers if offer.name == spec.data.source]
        data = msgspec.structs.replace(data, samples=sum(offer.info.samples for offer in offers if offer.info))
    return _workload(spec, model, data), heard


def _one_model(need: str, found: Mapping[str, Offer], name: Callable[[str], str]) -> None:
    """Raises Unavailable: nodes call different models by one name; which one is meant nobody but a person can tell."""
    kinds: dict[str, list[str]] = {}
    for node, offer in sorted(found.items()):
        kinds.setdefault(offer.same, []).append(name(node))
    if len(kinds) > 1:
        groups = sorted(kinds.values(), key=lambda names: (-len(names), names))
        raise Unavailable(
            f"{need} is not the same model on all nodes: {', '.join(groups[0])} "
            f"{'has' if len(groups[0]) == 1 else 'have'} one, {'; '.join(', '.join(names) for names in groups[1:])} "
            "another.",
            fix="Copy one directory to all of them, or name the nodes that are meant in placement.nodes.",
        )


def _meant(spec: JobSpec, node: str, name: Callable[[str], str]) -> bool:
    named = set(spec.placement.nodes)
    return not named or bool(named & {node, name(node)})


def _nowhere(need: str, heard: Mapping[str, ProfileReply], name: Callable[[str], str], without: str) -> Unavailable:
    """Of something that no node has, or none in order. `without`: what to add."""
    unfit = [(node, each) for node, reply in heard.items() for each in reply.unfit if each.name == need]
    if not unfit:
        return Unavailable(f"No node that answers has {need}. {without}".strip(), fix=_instead(need, heard))
    told = " ".join(f"{name(node)}: {each.reason}" for node, each in unfit)
    return Unavailable(f"No node can use its {need}. {told}"[:MAX_REASON], fix=unfit[0][1].fix)


def _workload(spec: JobSpec, model: ModelSpec, data: DataInfo) -> Workload:
    if spec.framework == "sklearn":
        compositions.fits(model, data)
    workload = Workload.of(
        spec,
        model=describe_model(model, data),
        data=data,
        masked=_masked(spec, model, data),
        normalised=_normalised(model, data) if spec.framework == "torch" else 0,
    )
    if spec.framework == "sklearn" and compositions.entry_of(model).kind in FITTED:
        members = compositions.members_of(model)
        return replace(workload, batch_size=workload.samples, epochs=1, max_steps=1, members=members)
    return workload


def _normalised(model: ModelSpec, data: DataInfo) -> int:
    """Layers of batch normalisation, as far as the declaration tells."""
    return sum(name.endswith("running_mean") for name in buffers(layers_of(model, data) or ()))


def _runnable(spec: JobSpec) -> frozenset[Strategy]:
    return RUNNABLE.get(spec.framework, EVERYWHERE)


def _masked(spec: JobSpec, model: ModelSpec, data: DataInfo) -> dict[Strategy, str]:
    """Strategies that cannot run for a framework, model and data, and why."""
    reasons = _masked_by_framework(spec, model, data)
    if spec.data.kind != "private":
        return reasons
    stays = f"{spec.data.source} and what is made of it stay on the nodes that have it"
    reasons = {Strategy.model_parallel: stays, Strategy.pipeline_parallel: stays, **reasons}
    if spec.framework == "sklearn" and compositions.entry_of(spec.model).kind == "trees":
        reasons[Strategy.data_parallel] = f"each tree would know the samples of one node only; {stays}"
    if spec.model.name == "MiniBatchKMeans":
        reasons[Strategy.data_parallel] = f"its first centres are samples; {stays}"
    return reasons


def _masked_by_framework(spec: JobSpec, model: ModelSpec, data: DataInfo) -> dict[Strategy, str]:
    if spec.framework == "sklearn":
        return compositions.masked(spec.model)
    if spec.framework == "keras":
        why = "keras models are not cut into stages; torch builds the same model and cuts it"
        if spec.model.kind == "keras":
            why = "keras builds this model, and its models are not cut into stages"
        return {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}
    if spec.model.kind == "python":
        why = f"{spec.model.source} is not cut into stages: a package makes it whole, and only nodes know its layers"
        return {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}
    for given, what in (
        (spec.training.precision in ("bf16", "fp16"), f'training.precision = "{spec.training.precision}"'),
        (spec.training.sync != "every_step", f'training.sync = "{spec.training.sync}"'),
        (spec.training.norm_limit is not None, "training.norm_limit"),
        (spec.model.lora is not None, "model.lora"),
    ):
        if given:
            why = f"{what} is for workers that hold the whole model"
            return {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}
    if model.kind == "hf" and not model.config:
        why = f"the layers of {model.source} are not known: its configuration is of another kind, or too large to tell"
        return {Strategy.model_parallel: why, Strategy.pipeline_parallel: why}
    if buffers(layers_of(model, data) or ()):
        why = "batch normalisation would see small batches one by one; model_parallel gives it whole ones"
        return {Strategy.pipeline_parallel: why}
    return {}


def _instead(need: str, heard: Mapping[str, ProfileReply]) -> str:
    """What to do where nobody has something: somebody may call it otherwise."""
    kind = need.partition(":")[0]
    others = sorted({o.name for reply in heard.values() for o in reply.offers if o.name.startswith(f"{kind}:")})
    near = difflib.get_close_matches(need, others, n=1, cutoff=0.7)
    if near:
        return f"Did you mean '{near[0]}'? {_WHERE[kind]}"
    return _WHERE[kind] + (f" There is {', '.join(others[:10])}." if others else "")


_WHERE = {
    "private": "Say what that is in the section data.private of a node that has such data.",
    "hf": "Name its directory in models.directories of a node that has it.",
    "python": "Have its owner install it and add it to jobs.allowed_packages of a node.",
}
