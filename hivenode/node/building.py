"""Makes the parts of a node, from the ground up, and hands each what it needs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from hivenode import __version__
from hivenode.admin.doctor import Doctor
from hivenode.admin.members import Members
from hivenode.admin.service import Parts, Service
from hivenode.catalog.holders import Keeper
from hivenode.hive.admission import Admission
from hivenode.hive.clock import HybridClock
from hivenode.hive.election import Election, ElectionSettings
from hivenode.hive.leadership import Leadership
from hivenode.hive.membership import Membership
from hivenode.hive.pairing_desk import PairingDesk
from hivenode.hive.papers import Papers
from hivenode.hive.replication import Replication
from hivenode.hive.sealer import DAY, Sealer, SealRules
from hivenode.hive.swim import PROFILES, Swim
from hivenode.jobs.coordinator import Coordinator
from hivenode.jobs.desk import Desk
from hivenode.jobs.executor import Executor
from hivenode.jobs.fence import Fence
from hivenode.jobs.launching import Launcher
from hivenode.jobs.predictor import Predictor
from hivenode.jobs.preparing import Preparer
from hivenode.jobs.proposals import Proposer
from hivenode.jobs.reports import Reports
from hivenode.jobs.results import Results
from hivenode.jobs.supplies import Supplies
from hivenode.net.calls import Calls
from hivenode.node.candidacy import Candidacy
from hivenode.node.reactions import Reactions
from hivenode.node.services import Services

FEED_FANOUT = 4
"""Links to which events heard from another are passed on, where there are links to some members only."""


def build_feeds(node: Services, reactions: Reactions, candidacy: Candidacy, *, alone: bool) -> None:
    """What carries facts: the clock, calls and the replication of feeds."""
    ports = node.ports
    node.clock = HybridClock(ports.wall)
    node.calls = Calls(ports.transport.send, lambda peer, request: node.desk.serve(peer, request))
    node.replication = Replication(
        identity=node.credentials.identity,
        grant=node.credentials.grant,
        feeds=node.feeds,
        views=node.views,
        journal=ports.journal,
        clock=node.clock,
        links=lambda: ports.transport.links,
        send=ports.transport.send,
        rng=ports.rng,
        sync_seconds=node.settings.feeds.sync_seconds,
        wall=ports.wall,
        on_change=reactions.facts_changed,
        on_offender=reactions.offended,
        on_trouble=candidacy.assess,
        fanout=lambda: FEED_FANOUT if node.book.partial else 0,
        expects_peers=not alone,
        tasks=node.tasks,
    )


def build_sealer(node: Services, reactions: Reactions) -> None:
    """What keeps the feeds short."""
    ports, feeds = node.ports, node.settings.feeds
    node.sealer = Sealer(
        me=node.me,
        hive_id=node.hive,
        rules=SealRules(
            events=feeds.seal_events,
            after=feeds.seal_after_days * DAY,
            patience=feeds.patience_days * DAY,
            keep=feeds.keep_jobs_days * DAY,
        ),
        replication=node.replication,
        feeds=node.feeds,
        views=node.views,
        roles=node.roles,
        journal=ports.journal,
        blobs=ports.blobs,
        leads=node.leads,
        present=node.alive,
        fetch=ports.transport.fetch,
        send=ports.transport.send,
        wall=ports.wall,
        on_sealed=reactions.sealed,
        on_offender=reactions.offended,
        tasks=node.tasks,
    )


def build_papers(node: Services) -> None:
    """What sees to the certificates."""
    ports = node.ports
    node.papers = Papers(
        node.credentials,
        lifetime=timedelta(days=node.settings.trust.certificate_days),
        wall=ports.wall,
        rng=ports.rng,
        roles=node.roles,
        links=lambda: ports.transport.links,
        doors=node.doors,
        call=node.calls.call,
        appeal=ports.appeal,
        adopt=ports.adopt,
        tasks=node.tasks,
    )


def build_work(node: Services, reactions: Reactions) -> None:
    """What does its share of jobs: keeps blobs and results, runs workers, answers the coordinator."""
    ports, settings = node.ports, node.settings
    append = node.replication.append
    node.keeper = Keeper(
        me=node.me,
        transport=ports.transport,
        call=node.call_node,
        blobs=ports.blobs,
        append=append,
        room_bytes=settings.jobs.hold_gb << 30,
        free=ports.free,
        concerns=node.concerns,
    )
    node.results = Results(
        me=node.me,
        copies=settings.jobs.copies,
        blobs=ports.blobs,
        keeper=node.keeper,
        ledger=node.ledger,
        live=node.live,
        catalogue=node.catalogue,
        holders=node.holders,
        append=append,
        candidates=node.workers,
        gone=node.gone,
        changed=node.changed,
    )
    node.supplies = Supplies(
        me=node.me,
        blobs=ports.blobs,
        keeper=node.keeper,
        holders=node.holders,
        ledger=node.ledger,
        append=append,
        lends=ports.lends,
    )
    node.preparer = Preparer(
        rooms=ports.workspace,
        blobs=ports.blobs,
        keeper=node.keeper,
        catalogue=node.catalogue,
        holders=node.holders,
        append=append,
        memory_bytes=lambda: ports.limits().memory_bytes,
        copies=settings.jobs.copies,
        candidates=node.workers,
    )
    node.executor = Executor(
        me=node.me,
        node_name=node.name,
        name=node.roles.name,
        fence=Fence(node.name, ports.journal, lambda: node.leadership.highest),
        launcher=Launcher(
            me=node.me,
            node_name=node.name,
            limits=ports.limits,
            worker_host=node.worker_host,
            ports=settings.worker.ports,
            trusted=settings.training.trusted_subnets,
            host=ports.workers,
            workspace=ports.workspace,
            blobs=ports.blobs,
            keeper=node.keeper,
            supplies=node.supplies,
            ledger=node.ledger,
        ),
        workspace=ports.workspace,
        results=node.results,
        reports=Reports(
            me=node.me,
            node_name=node.name,
            broadcast=reactions.broadcast,
            job_log=ports.job_log,
            wall=ports.wall,
        ),
        ledger=node.ledger,
        append=append,
        gone=node.gone,
        refuse=lambda: node.desk.paused,
        tasks=node.tasks,
    )
    node.desk = Desk(
        me=node.me,
        name=node.name,
        enabled=settings.worker.enabled,
        max_jobs=settings.worker.max_jobs,
        roles=node.roles,
        executor=node.executor,
        worker_host=node.worker_host,
        trusted=settings.training.trusted_subnets,
        keeper=node.keeper,
        papers=node.papers,
        profile=ports.profile,
        job_log=ports.job_log,
    )


def build_coordination(node: Services, reactions: Reactions) -> None:
    """What plans jobs while this node leads."""
    ports = node.ports
    node.predictor = Predictor(ports.workers, ports.limits, ports.lends)
    node.proposer = Proposer(
        me=node.me,
        call=node.call_node,
        workers=node.workers,
        name=node.roles.name,
        latency=lambda member: node.membership.latency(member),
        experience=node.experience,
        reading_seconds=node.settings.jobs.reading_seconds,
    )
    node.coordinator = Coordinator(
        ledger=node.ledger,
        live=node.live,
        waits=node.waits,
        announce=reactions.announce,
        proposer=node.proposer,
        call=node.call_node,
        append=node.replication.append,
        alive=node.alive,
        name=node.roles.name,
        outbid=lambda epoch: node.leadership.outbid(epoch),
        max_attempts=node.settings.jobs.max_attempts,
        changed=node.changed,
        tasks=node.tasks,
    )


def build_membership(node: Services, reactions: Reactions, *, boot: int) -> None:
    """What knows who is alive. `boot` is which life of this node this is."""
    ports, settings = node.ports, node.settings
    swim = Swim(
        node.me,
        name=node.name,
        addresses=node.addresses,
        version=__version__,
        boot=boot,
        profile=replace(PROFILES[settings.membership.profile], whole_push_pull=settings.network.full_mesh),
        rng=ports.rng,
        sign=node.credentials.identity.sign,
        verify=reactions.verify,
        dials=node.book.dials,
        beside=node.book.beside,
    )
    node.membership = Membership(swim, ports.transport, reactions.member_changed, reactions.let_go, reactions.conflict)


def build_leadership(node: Services, candidacy: Candidacy) -> None:
    """What elects a coordinator."""
    ports, election = node.ports, node.settings.election
    settings = ElectionSettings(
        heartbeat=election.heartbeat_seconds,
        timeout=election.timeout_seconds,
        quorum=election.quorum,
        transfer=election.transfer_seconds,
    )
    node.leadership = Leadership(
        lambda state: Election(node.me, settings=settings, rng=ports.rng, state=state),
        ports.transport,
        ports.journal,
        candidacy.leader_changed,
        candidacy.assess,
        node.tasks,
        handover_seconds=settings.window,
    )


def build_admission(node: Services) -> None:
    """What lets others in: by invites, and by codes that people type."""
    ports = node.ports
    node.admission = Admission(
        node.hive,
        node.papers,
        ports.journal,
        wall=ports.wall,
        rng=ports.rng,
        addresses=node.seed_addresses,
        present=node.present_at,
        roles=node.roles,
        grants=lambda: node.feeds.grants,
        counted=node.feeds.counted,
        append=node.replication.append,
        admitted=lambda invite, name: node.pairing.admitted(invite, name),
    )
    node.pairing = PairingDesk(
        wall=ports.wall,
        may_invite=lambda: node.papers.require("let nobody in", "Show the code"),
        invite=node.admission.invite,
    )


def build_service(node: Services) -> None:
    """What serves people: the admin endpoint's side of the node."""
    ports = node.ports
    node.service = Service(
        Parts(
            me=node.me,
            name=node.name,
            hive=node.hive,
            home=ports.home,
            started=asyncio.get_running_loop().time(),
            transport=ports.transport,
            membership=node.membership,
            leadership=node.leadership,
            roles=node.roles,
            ledger=node.ledger,
            live=node.live,
            waits=node.waits,
            catalogue=node.catalogue,
            holders=node.holders,
            proposer=node.proposer,
            preparer=node.preparer,
            spawn=node.tasks.spawn,
            predictor=node.predictor,
            keeper=node.keeper,
            blobs=ports.blobs,
            notices=node.notices,
            append=node.replication.append,
            call=node.call_node,
            wall=ports.wall,
            rng=ports.rng,
            health=node.health,
            facts=node.sealer.facts,
            admin_url=ports.admin_url,
            addresses=lambda: node.addresses,
            members=_members(node),
            invite=node.admission.invite,
            join=ports.join,
            pair=ports.pair,
            stop=ports.stop,
        )
    )


def _members(node: Services) -> Members:
    transport = node.ports.transport
    return Members(
        me=node.me,
        hive=node.hive,
        transport=transport,
        membership=node.membership,
        leadership=node.leadership,
        roles=node.roles,
        feeds=node.feeds,
        contacts=node.contacts,
        admission=node.admission,
        examiner=Doctor(
            me=node.me,
            addresses=node.addresses,
            transport=transport,
            membership=node.membership,
            roles=node.roles,
            contacts=node.contacts,
            papers=node.papers,
            instruments=node.ports.instruments,
        ),
        desk=node.pairing,
    )
