"""A world of whole nodes: each is what `hivenode.node` builds, on a simulated network, disk, clock and worker host.

    async def main(rng: random.Random) -> None:
        world = World(rng)
        for name in ("ann", "bob", "cid"):
            await world.start_node(name)
        await world.formed()
        job = await world.submit("ann", steps=100)
        world.kill("bob")
        await world.until(lambda: world.ended(job), 120)

    run(main, seed=1)

The world watches, whenever all is quiet, what must hold on every node at every moment (`watch`).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from hivenode.config import Settings
from hivenode.errors import Refused
from hivenode.jobs.ledger import Job
from hivenode.net.local import WorkerLimits
from hivenode.net.messages import ProfileReply
from hivenode.net.pool import PoolLimits
from hivenode.net.simulated import Quality, SimulatedNetwork, SimulatedTransport, Trace
from hivenode.node import Node, Ports
from hivenode.spec.events import ModelRegistered
from hivenode.spec.status import JoinResult
from hivenode.spec.values import Epoch, Role
from hivenode.store.simulated import SimulatedBlobs, SimulatedDisk, SimulatedJournal
from hivenode.trust import identity
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.watch import Watch
from tests.simulation.workers import Fabric, Pace, SimulatedWorkers

T = TypeVar("T")

# A thousand nodes that hear the same statement check one signature between them: each has its cache in reality.
identity._remembered = lru_cache(maxsize=1 << 17)(identity._verify)

EPOCH_SECONDS = 1_750_000_000.0
"""Wall clock at virtual time 0."""
ALL_ROLES = tuple(Role)


@dataclass
class JobLines:
    """A `ReadableJobLog` in memory."""

    lines: dict[str, list[str]] = field(default_factory=dict)

    def write(self, job: str, record: dict[str, object]) -> None:
        self.lines.setdefault(job, []).append(json.dumps(record, default=str))

    async def read(self, job: str, after: int, limit_bytes: int) -> tuple[Sequence[str], int, bool]:
        held = self.lines.get(job, [])
        found = held[after : after + 200]
        return found, after + len(found), after + len(found) < len(held)


@dataclass
class Directories:
    """A `Workspace` of names."""

    disk: SimulatedDisk
    made: int = 0

    def make(self, job: str, attempt: int) -> str:
        self.made += 1
        return f"/simulated/{job}-{attempt}-{self.made}"

    def keep(self, job: str, path: str) -> None: ...

    def forget(self, job: str) -> None: ...

    def remove(self, directory: str) -> None:
        for name in [name for name in self.disk.files if name.startswith(directory + "/")]:
            del self.disk.files[name]


@dataclass(eq=False)
class Machine:
    """One host with its disk, and the life of the node on it, if it runs."""

    name: str
    number: int
    credentials: Credentials
    disk: SimulatedDisk
    skew_seconds: float = 0.0
    """Added to its wall clock."""
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    lives: int = 0
    process: Process | None = None
    running: Node | None = None
    stopping: bool = False
    """Its node has asked to be stopped."""
    logs: JobLines = field(default_factory=JobLines)

    @property
    def id(self) -> str:
        return self.credentials.identity.node_id

    @property
    def node(self) -> Node:
        assert self.running is not None, f"{self.name} does not run"
        return self.running

    @property
    def up(self) -> bool:
        return self.running is not None


class World:
    """Nodes, and what happens to them.

    Args:
        rng: source of everything that is random here.
        settings: of all nodes, by section.
        torn, sync_seconds: how the disks are.
        links: live links of one node at most.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        quality: Quality | None = None,
        pace: Pace | None = None,
        settings: dict[str, dict[str, object]] | None = None,
        torn: bool = False,
        sync_seconds: tuple[float, float] = (0.0005, 0.003),
        links: int = 256,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.rng = rng
        self.trace = Trace(keep=200_000)
        self.network = SimulatedNetwork(_child(rng), quality, trace=self.trace)
        self.fabric = Fabric(self.network, _child(rng), pace)
        self.machines: dict[str, Machine] = {}
        self.submitted: list[str] = []
        """Jobs whose submission was answered."""
        self._settings = settings or {}
        self._links = links
        self._disk = lambda: SimulatedDisk(_child(rng), sync_seconds=sync_seconds, torn=torn)
        self.authority = Authority.from_seed(b"simulated world")
        self.outside = contextvars.copy_context()
        """Of no process: what is called in it outlives them all."""
        self._watch = Watch(self)
        loop.always(self._watch.look)

    # --- nodes ----------------------------------------------------------------------------------------------------

    async def start_node(
        self,
        name: str,
        *,
        roles: tuple[Role, ...] = ALL_ROLES,
        seeds: Sequence[str] | None = None,
        skew_seconds: float = 0.0,
        settings: dict[str, dict[str, object]] | None = None,
        clone_of: str = "",
    ) -> Machine:
        """A new machine and its node.

        Args:
            clone_of: its home is a copy of that machine's.
            seeds: names of the machines it knows of; all that exist if not given.
        """
        key = Identity.from_seed((clone_of or name).encode())
        number = len(self.machines) + 1
        credentials = Credentials(
            identity=key,
            hive_id=self.authority.hive_id,
            authority_pem="",
            authority_key=self.authority.public_key,
            certificate_pem="",
            grant=self.authority.grant(key.public_key, name, roles, number),
            authority=None,
        )
        machine = Machine(
            name,
            number,
            credentials,
            self._disk(),
            skew_seconds=skew_seconds,
            settings=settings or {},
        )
        if clone_of:
            machine.disk.restore(self.machines[clone_of].disk.backup())
        known = list(self.machines) if seeds is None else list(seeds)
        self.machines[name] = machine
        await self._boot(machine, known)
        return machine

    async def _boot(self, machine: Machine, seeds: Sequence[str]) -> None:
        machine.lives += 1
        process = machine.process = self.loop.process(f"{machine.name}#{machine.lives}")
        rng = _child(self.rng)

        async def start() -> Node:
            node = Node(self._settings_of(machine), machine.credentials, self._ports(machine, seeds, rng))
            await node.start()
            return node

        machine.running = await process.perform(start())
        self._watch.follow(machine)

    def _settings_of(self, machine: Machine) -> Settings:
        sections: dict[str, dict[str, object]] = {"node": {"name": machine.name}}
        for given in (self._settings, machine.settings):
            for section, values in given.items():
                sections[section] = {**sections.get(section, {}), **values}
        return Settings.model_validate(sections)

    def _ports(self, machine: Machine, seeds: Sequence[str], rng: random.Random) -> Ports:
        blobs = SimulatedBlobs(machine.disk)
        credentials = machine.credentials

        async def profile(about: tuple[str, ...]) -> ProfileReply:
            return ProfileReply(
                flops=1e9 * (1 + machine.number % 3),
                memory_bytes=4 << 30,
                cores=2,
                bandwidth=12.5e6,
                frameworks=("torch",),
                running=0,
                versions={"torch": "2.13.0", "scikit-learn": "1.9.1"},
            )

        return Ports(
            transport=SimulatedTransport(
                self.network,
                machine.name,
                machine.id,
                credentials.hive_id,
                blobs,
                _child(rng),
                pool=PoolLimits(links=self._settings_of(machine).network.pool),
                max_links=self._links,
            ),
            journal=SimulatedJournal(machine.disk),
            blobs=blobs,
            workers=SimulatedWorkers(self.fabric, machine.name, machine.disk),
            workspace=Directories(machine.disk),
            job_log=machine.logs,
            wall=lambda: EPOCH_SECONDS + self.loop.time() + machine.skew_seconds,
            rng=rng,
            limits=lambda: WorkerLimits(threads=2, memory_bytes=4 << 30, nice=10),
            profile=profile,
            join=_cannot_join,
            stop=lambda: setattr(machine, "stopping", True),
            admin_url=lambda: "",
            home=f"/home/{machine.name}",
            free=lambda: 1 << 50,
            seeds=tuple(self.network.host(name).address for name in seeds if name != machine.name),
        )

    def kill(self, name: str) -> None:
        """SIGKILL to the daemon; its workers die with it."""
        self._end(name, gone=False)

    def crash_host(self, name: str) -> None:
        """The power goes."""
        self._end(name, gone=True)

    def _end(self, name: str, *, gone: bool) -> None:
        machine = self.machines[name]
        assert machine.process is not None
        machine.process.kill()
        machine.running = None
        self.fabric.host_died(name)
        if gone:
            self.network.crash_host(name)
        else:
            self.network.kill(name)
        machine.disk.crash()

    async def stop(self, name: str) -> None:
        """In good order."""
        machine = self.machines[name]
        assert machine.process is not None
        await machine.process.perform(machine.node.stop())
        machine.running = None
        machine.process.kill()
        self.network.kill(name)

    async def restart(self, name: str, seeds: Sequence[str] = ()) -> None:
        """Start the node again with the disk it left; it finds the others by what it remembers."""
        if not self.network.host(name).up:
            self.network.start_host(name)
        await self._boot(self.machines[name], seeds)

    def freeze(self, name: str) -> None:
        """SIGSTOP to everything of it."""
        process = self.machines[name].process
        assert process is not None
        process.freeze()
        self.network.freeze(name)

    def thaw(self, name: str) -> None:
        self.network.thaw(name)
        process = self.machines[name].process
        assert process is not None
        process.thaw()

    async def pause(self, name: str, seconds: float) -> None:
        self.freeze(name)
        await asyncio.sleep(seconds)
        self.thaw(name)

    # --- asking ---------------------------------------------------------------------------------------------------

    async def ask(self, name: str, work: Callable[[Node], Coroutine[Any, Any, T]]) -> T:
        """Have a node do something, in its own process. Raises ProcessKilled."""
        machine = self.machines[name]
        assert machine.process is not None
        return await machine.process.perform(work(machine.node))

    async def submit(self, name: str, *, steps: int = 100, checkpoint_every: int = 20, **placement: object) -> str:
        """Submit a job of so many steps at a node; returns its id."""
        detail = await self.ask(
            name,
            lambda node: node.service.submit(
                {
                    "name": f"job-{len(self.submitted) + 1}",
                    "training": {"epochs": 1000, "max_steps": steps, "checkpoint_every_steps": checkpoint_every},
                    "placement": {"strategy": "data_parallel", "min_nodes": 1, **placement},
                }
            ),
        )
        self.submitted.append(detail.summary.job)
        return detail.summary.job

    async def until(self, condition: Callable[[], object], seconds: float, what: str = "") -> None:
        """Wait for a condition; on time-out the error says how the nodes stand."""
        try:
            await self.loop.until(condition, seconds, what)
        except TimeoutError as error:
            error.add_note("\n".join(self.describe()))
            raise

    @property
    def led(self) -> dict[int, set[str]]:
        """By counter of an epoch, all that anybody has ever followed under it."""
        return self._watch.led

    @property
    def may_fork(self) -> set[str]:
        """Ids of nodes whose feeds this story makes fork on purpose."""
        return self._watch.may_fork

    @property
    def up(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.up]

    def leader(self, name: str) -> Epoch | None:
        return self.machines[name].node.leadership.leader

    def coordinator(self, among: Sequence[str] | None = None) -> str:
        """Name of the machine that these (all that run) agree to follow, or ""."""
        asked = [self.machines[name] for name in among] if among is not None else self.up
        leader = asked[0].node.leadership.leader if asked else None
        if leader is None or any(machine.node.leadership.leader != leader for machine in asked):
            return ""
        return next((machine.name for machine in asked if machine.id == leader.node), "")

    def sees(self, name: str) -> list[str]:
        """Names of the members that are alive in a node's eyes."""
        names = {machine.id: machine.name for machine in self.machines.values()}
        return sorted(names[node] for node in self.machines[name].node.membership.alive)

    def agreed(self, among: Sequence[str] | None = None) -> bool:
        """Whether these (all that run) see each other, and only each other, and have one coordinator."""
        asked = [self.machines[name] for name in among] if among is not None else self.up
        if not self.coordinator(among):
            return False
        ids = tuple(sorted(machine.id for machine in asked))
        return all(machine.node.membership.alive == ids for machine in asked)

    async def formed(self, among: Sequence[str] | None = None, seconds: float = 60) -> None:
        await self.until(lambda: self.agreed(among), seconds, "one hive with one coordinator")

    def job(self, name: str, job: str) -> Job | None:
        """As it stands in a node's ledger."""
        return self.machines[name].node.ledger.jobs.get(job)

    def ended(self, job: str) -> bool:
        """On all nodes that run."""
        return all((held := self.job(machine.name, job)) is not None and not held.open for machine in self.up)

    def step(self, job: str) -> int:
        """The furthest step that any worker of the job has done."""
        workers = [w for w in self.fabric.workers.values() if w.begin is not None and w.begin.job == job]
        return max((worker.step for worker in workers), default=0)

    def working(self, job: str) -> list[str]:
        """Names of the machines on which a worker of the job lives."""
        workers = [w for w in self.fabric.workers.values() if w.begin is not None and w.begin.job == job and w.alive]
        return sorted({worker.host for worker in workers})

    def registrations(self, job: str) -> int:
        """How often a model of this job was registered, as the feeds have it."""
        entries = self.up[0].node.feeds.entries()
        return sum(1 for entry in entries if isinstance(entry.body, ModelRegistered) and entry.body.job == job)

    # --- what must hold -------------------------------------------------------------------------------------------

    def facts(self, name: str) -> str:
        """All that a node has folded from the feeds, as text."""
        node = self.machines[name].node
        return "\n".join(
            repr(part)
            for part in (
                node.feeds.heads,
                node.ledger.jobs,
                node.catalogue.versions,
                sorted(vars(node.holders).items(), key=str),
                [(role, node.roles.holders(role)) for role in Role],
            )
        )

    async def settled(self, seconds: float = 120) -> None:
        """Wait until all nodes that run hold the same facts."""
        await self.until(
            lambda: len({repr(machine.node.feeds.heads) for machine in self.up}) == 1, seconds, "equal feeds"
        )

    def check_facts(self) -> None:
        """At the end: views byte-equal, nothing acknowledged lost, each finished job finished once and whole."""
        facts = {machine.name: self.facts(machine.name) for machine in self.up}
        first = next(iter(facts))
        assert all(fact == facts[first] for fact in facts.values()), "the views differ"
        heads = self.machines[first].node.feeds.heads
        for author, seq in self._watch.durable.items():
            assert heads.get(author, 0) >= seq, f"events of {author} are lost: {heads.get(author, 0)} of {seq}"
        for job_id in self.submitted:
            job = self.job(first, job_id)
            assert job is not None, f"{job_id} is lost"
            versions = [v for v in self.machines[first].node.catalogue.versions if v.job == job_id]
            assert len(versions) == (1 if job.ending == "finished" else 0), versions
            if job.ending == "finished":
                assert job.finished_by is not None
                finishes = [f for f in self.fabric.finishes if f.job == job_id and f.attempt == job.finished_by[0]]
                assert finishes
                for finish in finishes:
                    finish.lineage.check()

    def describe(self) -> list[str]:
        """How the nodes stand, for people."""
        lines = [f"at {self.loop.time():.1f} s, working: { {job: self.working(job) for job in self.submitted} }"]
        for machine in self.machines.values():
            if not machine.up:
                lines.append(f"  {machine.name} is down")
                continue
            node = machine.node
            jobs = [
                f"{job.id} {job.ending or 'open'} "
                + ", ".join(f"{a.name[0]}@{a.planned}{'=' + a.ended.outcome if a.ended else ''}"
                            for a in job.attempts.values())
                for job in node.ledger.jobs.values()
            ]  # fmt: skip
            said = (node.waits.why(job, node.leadership.leader) for job in self.submitted)
            waiting = [why for why in said if why]
            lines.append(
                f"  {machine.name} {machine.id[:6]} sees {self.sees(machine.name)} linked "
                f"{len(node.ports.transport.links)} leader {node.leadership.leader} jobs {jobs} waiting {waiting}"
            )
        return lines


def _child(rng: random.Random) -> random.Random:
    return random.Random(rng.getrandbits(64))


async def _cannot_join(token: str) -> JoinResult:
    raise Refused("A simulated node does not join.", fix="Start it as a member.")
