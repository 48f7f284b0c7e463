"""The process: one home, one node, real sockets, files and workers; started by `hivenode up` or by systemd."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from aiohttp import web

from hivenode import __version__, dumpable, walls
from hivenode.admin.api import AdminServer
from hivenode.admin.notify import keep_watchdog, notify
from hivenode.config import DEFAULT_PORT, Settings, full_address, load_settings
from hivenode.errors import Conflict, HiveError, InvalidInput
from hivenode.home import Home
from hivenode.job_log import JobLogWriter
from hivenode.jobs.lending import Lender
from hivenode.jobs.workers import ForkWorkers
from hivenode.jobs.workspace import WorkDirectories
from hivenode.logs import JobLogFile, bind, configure, get_logger
from hivenode.net.discovery import Discovery, Interface, choose_hosts, interfaces
from hivenode.net.introducing import obtain_invite, pair_routes
from hivenode.net.joining import join, join_routes
from hivenode.net.local import WorkerLimits
from hivenode.net.messages import MAX_LINES, ProfileReply
from hivenode.net.peers import PeerTransport, TransportLimits
from hivenode.net.pool import PoolLimits
from hivenode.net.probing import Probe
from hivenode.net.sounding import Sounder
from hivenode.net.transport import Refusal
from hivenode.net.widths import Widths
from hivenode.node import Node, Ports
from hivenode.planning.profile import DEFAULT_BANDWIDTH, SelfProfile, half_precisions
from hivenode.power import Power
from hivenode.spec.status import JoinResult, Status
from hivenode.store.blobs import FileBlobs
from hivenode.store.journal import SqliteJournal
from hivenode.store.lock import HomeLock
from hivenode.trust.authority import Authority, open_grant
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from hivenode.trust.invites import read_token
from hivenode.trust.pairing_codes import read_code
from hivenode.trust.sealing import read_sealed, write_sealed

RESTART_GRACE_SECONDS = 0.2
TOKEN_CHARACTERS = 32
WORKER_MEMORY_FRACTION = 0.6

LENDING_SECONDS = 1.0
"""How long a profile waits for a first look at what is lent."""

log = get_logger("daemon")


@dataclass
class Bench:
    """`admin.doctor.Instruments` of this machine.

    Args:
        hosts: addresses of the interfaces in use.
        discovering: what discovers on them, once it does.
    """

    transport: PeerTransport
    hosts: tuple[str, ...]
    discovering: Discovery | None = None

    @property
    def used(self) -> tuple[Interface, ...]:
        return tuple(one for one in interfaces() if one.address in self.hosts)

    @property
    def skipped(self) -> tuple[Interface, ...]:
        return tuple(one for one in interfaces() if one.address not in self.hosts)

    @property
    def discovery(self) -> str:
        return self.discovering.state() if self.discovering is not None else ""

    @property
    def walls(self) -> str:
        return walls.found()

    @property
    def lacking(self) -> tuple[str, ...]:
        return walls.lacking()

    async def probe(self, peer: str, address: str) -> Probe:
        return await self.transport.probe(peer, address, _wall)


def _wall() -> float:
    return datetime.now(UTC).timestamp()


def run(
    home: Path,
    config: Path | None = None,
    *,
    join_token: str | None = None,
    overrides: dict[str, dict[str, object]] | None = None,
    on_ready: Callable[[Status], None] | None = None,
) -> int:
    """Run a node until it is told to stop (SIGTERM, SIGINT or the admin endpoint). Returns the exit code.

    Args:
        home: created if it does not exist.
        join_token: on the first start, join this hive instead of founding one.
        overrides: settings that beat the file's, by section.
        on_ready: called once, when the node is up and listens.

    Raises:
        HiveError: it cannot start; the sentence says why.
    """
    dumpable.forbid()  # the node's key is in its memory
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = load_settings(home, config, overrides or {})
    configure(settings.logs.level, settings.logs.format, sys.stderr)
    with HomeLock(home), bind(node=settings.node.name):
        return asyncio.run(_Daemon(Home(home), settings, join_token, on_ready).run())


class _Daemon:
    def __init__(
        self, home: Home, settings: Settings, token: str | None, on_ready: Callable[[Status], None] | None
    ) -> None:
        self._home = home
        self._settings = settings
        self._token = token
        self._on_ready = on_ready
        self._rng = random.SystemRandom()
        self._identity = Identity.load_or_create(home.key)
        self._profile = SelfProfile(home.path / "profile.json", threads=settings.worker.threads or None)
        self._widths = Widths()
        self._widths.recall(self._profile.lines, _wall())
        self._power = Power()
        self._lender = Lender(settings, lambda: self._limits().memory_bytes)
        self._url = ""
        self._failure: HiveError | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        credentials = await self._credentials()
        if lacking := walls.lacking():
            log.warning("workers of this machine are not fully walled in", reason=" ".join(lacking), fix=walls.REMEDY)
        self._measuring = asyncio.create_task(self._profile.measure(), name="profile")
        await self._lender.offers(0.0)  # begun now, so that the first job finds them
        watchdog = asyncio.create_task(keep_watchdog(), name="watchdog")
        await self._power.look()
        power = asyncio.create_task(self._power.watch(), name="power")
        while not self._stopping.is_set():
            self._rejoined: Credentials | None = None
            self._again = asyncio.Event()
            await self._serve(credentials)
            if self._rejoined is None:
                break
            credentials = self._rejoined
        self._measuring.cancel()
        await self._lender.close()
        watchdog.cancel()
        power.cancel()
        if self._failure is not None:
            raise self._failure
        return 0

    def _fail(self, error: HiveError) -> None:
        """End as soon as possible, with an error."""
        self._failure = error
        self._stopping.set()

    async def _credentials(self) -> Credentials:
        if self._home.current.exists():
            directory = self._home.hive(self._home.current.read_text(encoding="ascii").strip())
            try:
                credentials = Credentials.load(directory, self._identity)
            except HiveError:
                if self._token is None:
                    raise
                log.warning("the present hive's credentials cannot be used, joining anew", hive=directory.name)
                return await self._first_join(self._token)
            if self._token is not None and read_token(self._token).hive != credentials.hive_id:
                raise Conflict(
                    f"The node in {self._home.path} is already in hive {credentials.hive_id[:8]}.",
                    fix="Start it without --join and run `hivenode join TOKEN`, or use another --home.",
                )
            return credentials
        if self._token is not None:
            return await self._first_join(self._token)
        credentials = Credentials.found(
            self._identity,
            self._settings.node.name,
            now=datetime.now(UTC),
            lifetime=timedelta(days=self._settings.trust.certificate_days),
        )
        self._enter(credentials, ())
        return credentials

    async def _first_join(self, token: str) -> Credentials:
        credentials, seeds = await join(read_token(token), self._identity, self._settings.node.name, datetime.now(UTC))
        self._enter(credentials, seeds)
        return credentials

    def _enter(self, credentials: Credentials, seeds: tuple[str, ...]) -> None:
        directory = self._home.hive(credentials.hive_id)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        credentials.save(directory)
        write_sealed(directory / "seeds.json", json.dumps(list(seeds)).encode())
        write_sealed(self._home.current, credentials.hive_id.encode())

    async def _serve(self, credentials: Credentials) -> None:
        settings, directory = self._settings, self._home.hive(credentials.hive_id)
        seeds = (*settings.network.seeds, *json.loads((directory / "seeds.json").read_text(encoding="utf-8")))
        blobs = FileBlobs(directory / "blobs")
        workers = ForkWorkers()
        workspace = WorkDirectories(self._home.path / "work", self._home.path / "owed")
        job_log = JobLogWriter(JobLogFile(directory / "logs", total_bytes=settings.logs.keep_megabytes << 20))
        node: Node
        transport = PeerTransport(
            credentials,
            settings.network.listen,
            settings.network.port,
            advertise=settings.network.advertise,
            blobs=blobs,
            rng=self._rng,
            build_version=__version__,
            routes=self._routes(credentials, lambda: node),
            allowed=lambda peer: not node.roles.revoked(peer),
            limits=TransportLimits(pool=PoolLimits(links=settings.network.pool)),
            on_offence=lambda peer, address, what: node.contacts.offended(peer, address, what),
            wall=_wall,
            on_refused=lambda refusal: node.contacts.refused(refusal),
            certify=lambda peer: node.papers.vouch(peer),
            on_moved=lambda peer, bandwidth: self._widths.note(peer, bandwidth, _wall()),
        )

        def adopt(renewed: Credentials) -> None:
            renewed.save(directory)
            if renewed.authority is None:
                Authority.discard(directory, renewed.hive_id)
            transport.renew(renewed)

        bench = Bench(transport, choose_hosts(interfaces(), settings.network.listen))
        node = Node(
            settings,
            credentials,
            Ports(
                transport=transport,
                journal=SqliteJournal.open(directory / "journal.db"),
                blobs=blobs,
                workers=workers,
                workspace=workspace,
                job_log=job_log,
                wall=_wall,
                rng=self._rng,
                limits=self._limits,
                profile=lambda about: self._own_profile(workers, about),
                join=self._join,
                stop=self._stopping.set,
                admin_url=lambda: self._url,
                home=str(self._home.path),
                free=lambda: shutil.disk_usage(directory).free,
                seeds=seeds,
                instruments=bench,
                on_battery=lambda: self._power.on_battery,
                pair=lambda code, address: self._pair(node, code, address),
                adopt=adopt,
                appeal=transport.appeal,
                lends=lambda: self._lender.resources,
                fail=self._fail,
                lines=self._lines,
            ),
        )
        admin: AdminServer | None = None
        discovery: Discovery | None = None
        sounder = Sounder(
            self._widths,
            links=lambda: transport.links,
            sound=transport.sound,
            busy=lambda: node.executor.running > 0,
            wall=_wall,
            keep=lambda: self._profile.remember_lines(self._widths.known(_wall())),
            rng=self._rng,
        )
        sounding: asyncio.Task[None] | None = None
        try:
            await node.start()
            admin = AdminServer(node.service, self._admin_token(), settings.admin.host, settings.admin.port)
            self._url = await admin.start()
            if settings.network.discovery:
                discovery = self._discover(credentials, node)
                bench.discovering = discovery
                await discovery.start()
            workers.prewarm(settings.worker.prewarm)
            sounding = asyncio.create_task(sounder.run(), name="sounding")
            write_sealed(self._home.endpoint, json.dumps({"url": self._url, "pid": os.getpid()}).encode())
            self._announce(node)
            await self._until_told()
        finally:
            self._home.endpoint.unlink(missing_ok=True)
            if sounding is not None:
                sounding.cancel()
            if discovery is not None:
                await discovery.stop()
            if admin is not None:
                await admin.stop()
            await node.stop()
            await job_log.close()
            await workspace.close()

    def _announce(self, node: Node) -> None:
        status = node.service.status()
        log.info("ready", node_id=status.node, hive=status.hive, addresses=list(status.addresses), admin=self._url)
        notify(f"READY=1\nSTATUS=member of hive {status.hive[:8]}")
        if self._on_ready is not None:
            self._on_ready(status)
            self._on_ready = None

    async def _until_told(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._stopping, self._again)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._stopping.is_set():
            notify("STOPPING=1")

    def _routes(self, credentials: Credentials, node: Callable[[], Node]) -> Callable[[web.Application], None]:
        """What is open to those who are no members yet."""

        def refused(refusal: Refusal) -> None:
            node().contacts.refused(refusal)

        joining = join_routes(
            credentials.hive_id,
            credentials.authority_pem,
            lambda request: node().admission.admit(request),
            on_refused=refused,
        )
        pairing = pair_routes(self._settings.node.name, lambda: node().pairing, on_refused=refused)

        def add(app: web.Application) -> None:
            joining(app)
            pairing(app)

        return add

    async def _pair(self, node: Node, code: str, address: str) -> JoinResult:
        digits = read_code(code)
        if address:
            try:
                addresses = [full_address(address, DEFAULT_PORT)]
            except ValueError as error:
                raise InvalidInput(f"{error}.", fix="Give the member's HOST or HOST:PORT.") from error
        else:
            strangers = node.contacts.strangers((), node.hive)
            addresses = [where for heard in strangers for where in heard.said.addresses]
        invite = await obtain_invite(digits, self._settings.node.name, addresses, chosen=bool(address))
        return await self._join(invite.token())

    async def _join(self, token: str) -> JoinResult:
        invite, now = read_token(token), datetime.now(UTC)
        rejoins = invite.hive == self._home.current.read_text(encoding="ascii").strip()
        credentials, seeds = await join(invite, self._identity, self._settings.node.name, now, rejoins=rejoins)
        self._enter(credentials, seeds)
        self._rejoined = credentials
        asyncio.get_running_loop().call_later(RESTART_GRACE_SECONDS, self._again.set)  # let the answer out first
        grant = open_grant(credentials.grant, credentials.authority_key)
        return JoinResult(credentials.hive_id, tuple(role.value for role in grant.roles), len(seeds))

    def _discover(self, credentials: Credentials, node: Node) -> Discovery:
        status = node.service.status()
        return Discovery(
            credentials.hive_id,
            node.me,
            int(status.addresses[0].rpartition(":")[2]),
            status.addresses,
            self._settings.network.interfaces or choose_hosts(interfaces(), self._settings.network.listen),
            node.found,
            version=__version__,
            name=status.name,
            on_heard=node.contacts.announced,
        )

    def _admin_token(self) -> str:
        token = read_sealed(self._home.token).decode("ascii", "replace").strip() if self._home.token.exists() else ""
        if len(token) < TOKEN_CHARACTERS:  # none yet, or what a full disk left of one
            token = secrets.token_urlsafe(TOKEN_CHARACTERS)
            write_sealed(self._home.token, token.encode())
        return token

    def _limits(self) -> WorkerLimits:
        worker = self._settings.worker
        return WorkerLimits(
            threads=worker.threads or os.cpu_count() or 1,
            memory_bytes=worker.memory_bytes or int(psutil.virtual_memory().total * WORKER_MEMORY_FRACTION),
            nice=worker.nice,
        )

    def _lines(self) -> dict[str, float]:
        """Bytes/s of the lines to peers, as measured; those measured last at the end."""
        return {peer: bandwidth for peer, (bandwidth, _) in self._widths.known(_wall()).items()}

    async def _own_profile(self, workers: ForkWorkers, about: tuple[str, ...]) -> ProfileReply:
        measured = await asyncio.shield(self._measuring)
        limits, halves, lines = self._limits(), half_precisions(), self._lines()
        offers = await self._lender.offers(LENDING_SECONDS, about)
        return ProfileReply(
            flops=measured.flops,
            memory_bytes=min(limits.memory_bytes, psutil.virtual_memory().available),
            cores=limits.threads,
            bandwidth=max(lines.values(), default=DEFAULT_BANDWIDTH),
            lines=dict(list(lines.items())[-MAX_LINES:]),
            frameworks=workers.frameworks,
            running=0,
            offers=offers,
            unfit=self._lender.unfit(about),
            looking=self._lender.looking,
            versions=workers.versions,
            bf16="bf16" in halves,
            fp16="fp16" in halves,
        )
