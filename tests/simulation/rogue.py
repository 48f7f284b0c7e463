"""A member with a valid certificate and the role of a worker, who says whatever may do harm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from hivenode.hive import statements
from hivenode.hive.feeds import Entry, Feeds, encode_body
from hivenode.net.messages import (
    Ack,
    Adopt,
    Alive,
    Assign,
    Call,
    Dead,
    Event,
    FeedDelta,
    FeedHeads,
    Gossip,
    Heartbeat,
    HeartbeatAck,
    Hold,
    Left,
    Message,
    Nack,
    Ping,
    PingRequest,
    Progress,
    PushPull,
    Start,
    Statement,
    Stop,
    Suspect,
    VoteReply,
    VoteRequest,
)
from hivenode.net.simulated import SimulatedTransport
from hivenode.net.transport import LinkEnd
from hivenode.spec.events import AttemptEnded, Body, JobCancelled, JobGivenUp, JobPlanned, JobSubmitted, NodeAdmitted
from hivenode.spec.values import BlobRef, Epoch, Plan, Role, Share, Strategy
from hivenode.store.simulated import SimulatedBlobs, SimulatedDisk
from hivenode.trust.identity import Identity
from tests.simulation.loop import Process
from tests.simulation.world import EPOCH_SECONDS, World

MOST = 2**63 - 1
KINDS = (
    "_forged_gossip", "_forged_membership", "_usurpation", "_orders", "_noise", "_repetition", "_feed_in_anothers_name",
    "_own_events",
)  # fmt: skip


class Rogue:
    """Answers nothing and listens to everything, so that it can repeat it."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._key = Identity.from_seed(b"rogue")
        self.id = self._key.node_id
        self.told: dict[str, int] = {}
        """How often each kind of lie went out, over a link that was up."""
        self._heard: list[Message] = []
        grant = world.authority.grant(self._key.public_key, "rogue", (Role.worker,), 99)
        self._feeds = Feeds(world.authority.hive_id, world.authority.public_key)
        self._state(NodeAdmitted(grant=grant))
        self._process: Process = world.loop.process("rogue")
        self._transport = SimulatedTransport(
            world.network, "rogue", self.id, world.authority.hive_id, SimulatedBlobs(SimulatedDisk(rng)), rng
        )

    @classmethod
    async def start(cls, world: World, rng: random.Random) -> Rogue:
        rogue = cls(world, rng)
        await rogue._process.perform(rogue._begin())
        await world.until(lambda: len(rogue._transport.links) == len(world.up), 60, "the rogue is linked with all")
        return rogue

    async def _begin(self) -> None:
        await self._transport.start(self)
        for machine in self._world.up:
            self._transport.want(machine.id, (self._world.network.host(machine.name).address,))

    def stop(self) -> None:
        self._process.kill()
        self._world.network.kill("rogue")

    async def lie(self, seconds: float, each: int) -> None:
        """For so long at least, and until each kind of lie has been told so often: it is thrown out all the time."""
        until = self._world.loop.time() + seconds
        while self._world.loop.time() < until or any(self.told.get(kind, 0) < each for kind in KINDS):
            await asyncio.sleep(self._rng.expovariate(20))
            await self._process.perform(self._one())

    async def _one(self) -> None:
        if not self._transport.links:
            return  # thrown out for what it said; it dials again
        peer = self._rng.choice(list(self._transport.links))
        lies: list[Callable[[], Message]] = [
            self._forged_gossip, self._forged_membership, self._usurpation, self._orders, self._noise, self._repetition,
            self._rng.choice([self._feed_in_anothers_name, self._own_events, self._noise, self._noise]),
        ]  # fmt: skip
        lie = self._rng.choice(lies)
        if self._transport.send(peer, lie()):
            self.told[lie.__name__] = self.told.get(lie.__name__, 0) + 1

    # --- lies -----------------------------------------------------------------------------------------------------

    def _victim(self) -> str:
        return self._rng.choice([machine.id for machine in self._world.up])

    def _statement(self) -> Statement:
        """About somebody else; the signature is missing, ours, or (of an accusation, which anybody may make) valid."""
        rng, node = self._rng, self._victim()
        known = self._world.up[0].node.membership.member(node)
        base = known.incarnation if known else 0
        incarnation = rng.choice([0, base, base + 1, base + (1 << 32), MOST])
        forged = rng.choice([bytes(64), rng.randbytes(64), self._key.sign(b"anything")])
        by = self._victim()
        return rng.choice([
            Left(node, incarnation, forged),
            statements.left(self._key.sign, node, incarnation),
            Alive(node, incarnation, "gone", ("10.0.0.1:1",), "0", 255, 1 << 19, forged),
            statements.alive(self._key.sign, node, incarnation, "gone", (), "0"),
            Dead(node, incarnation, by, forged),
            Suspect(node, incarnation, by, forged),
            statements.dead(self._key.sign, node, rng.choice([base + 1, MOST]), self.id),
            statements.suspect(self._key.sign, node, base, self.id),
            statements.alive(self._key.sign, self.id, rng.choice([1, MOST]), "rogue", (), "0", 255, 1 << 19),
        ])  # fmt: skip

    def _some(self) -> tuple[Statement, ...]:
        return tuple(self._statement() for _ in range(self._rng.randint(1, 20)))

    def _forged_gossip(self) -> Message:
        return self._rng.choice([Gossip(self._some()), Ping(self._rng.randrange(1 << 40), self._some())])

    def _forged_membership(self) -> Message:
        return PushPull(self._some(), reply=self._rng.random() < 0.5)

    def _usurpation(self) -> Message:
        rng = self._rng
        epoch = Epoch(rng.choice([0, 3, 1000, 1 << 19, 2**48]), rng.choice([self.id, self._victim()]))
        return rng.choice([
            Heartbeat(epoch), HeartbeatAck(epoch), VoteRequest(epoch, rng.random() < 0.5),
            VoteReply(epoch, rng.random() < 0.5, True, epoch),
        ])  # fmt: skip

    def _feed_in_anothers_name(self) -> Message:
        rng, author = self._rng, self._victim()
        feeds = self._world.up[0].node.feeds
        real = [entry.event for entry in feeds.entries() if entry.event.author == author]
        last = real[-1]
        body = self._body()
        draft = Event(author, last.seq + 1, rng.randbytes(32), last.hlc + 1, encode_body(body), rng.randbytes(64))
        changed = Event(author, last.seq, last.prev, last.hlc, encode_body(body), last.signature)
        return FeedDelta((rng.choice([draft, changed]),))

    def _own_events(self) -> Message:
        """Valid in form, of things it has no role for, or in a chain that has a hole or a fork."""
        if self._rng.random() < 0.7:
            return FeedDelta(tuple(entry.event for entry in self._feeds.entries())[:1])
        first = next(iter(self._feeds.entries())).event
        return FeedDelta((Event(self.id, MOST >> 12, bytes(32), first.hlc, first.body, bytes(64)),))

    def _body(self) -> Body:
        job = self._rng.choice(self._world.submitted or ["j-none"])
        return self._rng.choice([
            JobSubmitted(job="j-rogue", name="x", spec=b"{}"),
            JobCancelled(job=job, reason="no"),
            JobGivenUp(job=job, epoch=Epoch(1 << 19, self.id), error="no", fix="no"),
            JobPlanned(job=job, attempt=7, epoch=Epoch(1 << 19, self.id), plan=self._plan(), cause="mine"),
            AttemptEnded(job=job, attempt=1, planned=Epoch(1), epoch=Epoch(1), outcome="finished", step=1, seconds=1,
                         metrics={}),
        ])  # fmt: skip

    def _plan(self) -> Plan:
        for entry in self._world.up[0].node.feeds.entries():
            if isinstance(entry.body, JobPlanned):
                return entry.body.plan
        return Plan(Strategy.single_node, (Share(self.id, 0, 1.0, 0.01, 1000),), 1.0, "mine", False, (0, 0, 0, 0), ())

    def _orders(self) -> Message:
        rng, job = self._rng, self._rng.choice(self._world.submitted or ["j-none"])
        epoch = Epoch(rng.choice([1, 5, 1 << 19]), rng.choice([self.id, self._victim()]))
        request = rng.choice([
            Stop(job, epoch, "no"), Adopt(job, 1, epoch, epoch), Start(job, 1, epoch, epoch, ()),
            Hold(BlobRef("a" * 64, 1 << 40)), Assign(job, 1, epoch, b"{}", self._plan()),
        ])  # fmt: skip
        return Call(rng.randrange(1 << 40), request)

    def _noise(self) -> Message:
        rng = self._rng
        return rng.choice([
            Ack(rng.randrange(1 << 20)), Nack(rng.randrange(1 << 20)),
            PingRequest(rng.randrange(1 << 20), self._victim(), self._some()),
            FeedHeads({self._victim(): 2**53, self.id: 2**53}, reply=True),
            Progress("j-none", 1, self._victim(), 1, 1, 1, 1, float("nan"), None, float("inf"), 9),
        ])  # fmt: skip

    def _repetition(self) -> Message:
        return self._rng.choice(self._heard) if self._heard else Nack(1)

    def _state(self, body: Body) -> Entry:
        clock = int(EPOCH_SECONDS * 1000) << 16
        (entry,) = self._feeds.compose(self._key, lambda: clock, [body])
        self._feeds.accept(entry)
        return entry

    # --- the transport's handler ----------------------------------------------------------------------------------

    def link_up(self, peer: str, address: str) -> None:
        self._transport.send(peer, FeedDelta(tuple(entry.event for entry in self._feeds.entries())))

    def link_down(self, peer: str, why: LinkEnd) -> None: ...

    def dial_failed(self, peer: str, address: str, why: LinkEnd, detail: str) -> None: ...

    def received(self, peer: str, message: Message) -> None:
        if len(self._heard) < 2000:
            self._heard.append(message)
