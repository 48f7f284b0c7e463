"""Many whole nodes in one process, in virtual time: how fast that runs, how long joining takes, what idling sends.

    python benchmarks/scale.py [--nodes 100 300] [--seconds 60] [--from 150] [--json]

All nodes start at once and know three of them. Measured: virtual seconds until everybody knows everybody and all
facts and follows one coordinator; processor seconds that took; then, idle (from `--from` virtual seconds after the
start: later than the two minutes after which nodes begin to say, one after another for four seconds a node, that they
have settled, so that this is part of it), virtual seconds per processor second, and
bytes that each node sends and receives in a second: every message as it is encoded, 28 bytes of TLS record and
websocket frame around each, and for every connection dialled in passing the bytes of a real TLS 1.3 handshake with a
hive's certificates, both ways, and of the upgrade. (TCP's and IP's own headers are left out.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hivenode.net import simulated_wires
from hivenode.spec.values import Role
from hivenode.trust.authority import Authority
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from tests.simulation.loop import run
from tests.simulation.world import World

JOIN_TARGET, SPEED_TARGET, BYTES_TARGET = 60.0, 20.0, 4096
FRAME_BYTES = 22 + 6
UPGRADE_BYTES = 600


class Meter:
    """Bytes of control messages, by kind, on all connections."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.hellos = 0
        push = simulated_wires.Lane.push

        def counted(lane: simulated_wires.Lane, what: object, label: str) -> bool:
            if isinstance(what, bytes):
                self.sent[label] = self.sent.get(label, 0) + len(what) + FRAME_BYTES
                self.hellos += label == "hello"
            return push(lane, what, label)

        simulated_wires.Lane.push = counted

    def clear(self) -> None:
        self.sent.clear()
        self.hellos = 0


def handshake_bytes() -> int:
    """Of one mutual TLS 1.3 handshake, both ways."""
    authority = Authority.create()
    ends = []
    for name in ("one", "two"):
        key = Identity.create()
        ends.append(
            Credentials(
                identity=key,
                hive_id=authority.hive_id,
                authority_pem=authority.certificate_pem,
                authority_key=authority.public_key,
                certificate_pem=authority.certify(key.public_key, now=datetime.now(UTC)),
                grant=authority.grant(key.public_key, name, tuple(Role), serial=1),
                authority=None,
            )
        )
    pipes = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    client = ends[0].client_context().wrap_bio(*pipes[0])
    server = ends[1].server_context().wrap_bio(*pipes[1], server_side=True)
    total, open_ = 0, [client, server]
    for _ in range(10):
        for at, side in enumerate((client, server)):
            if side in open_:
                try:
                    side.do_handshake()
                    open_.remove(side)
                except ssl.SSLWantReadError:
                    pass
            data = pipes[at][1].read()
            total += len(data)
            pipes[1 - at][0].write(data)
    assert not open_
    return total


def measure(nodes: int, seconds: float, idle_from: float) -> dict[str, object]:
    meter = Meter()

    async def main(rng: random.Random) -> dict[str, object]:
        world = World(rng)
        began = time.process_time()
        for number in range(nodes):
            await world.start_node(f"n{number:04}", seeds=[f"n{n:04}" for n in range(min(number, 3))])
        ids = tuple(sorted(machine.id for machine in world.machines.values()))
        start = world.loop.time()
        while not _converged(world, ids):
            await asyncio.sleep(1.0)
            how = _progress(world, ids, world.loop.time() - start, time.process_time() - began)
            print(how, file=sys.stderr, flush=True)
            assert world.loop.time() < 600, world.describe()[:5]
        joined, cpu = world.loop.time() - start, time.process_time() - began
        await asyncio.sleep(max(0.0, start + idle_from - world.loop.time()))
        meter.clear()
        began = time.process_time()
        await asyncio.sleep(seconds)
        idle = time.process_time() - began
        sent = sum(meter.sent.values()) + meter.hellos / 2 * (handshake_bytes() + UPGRADE_BYTES)
        kinds = sorted(meter.sent.items(), key=lambda kind: -kind[1])
        return {
            "nodes": nodes,
            "joined_virtual_seconds": joined,
            "joined_cpu_seconds": cpu,
            "idle_speed": seconds / idle,
            "bytes_per_node_second": 2 * sent / nodes / seconds,
            "dials_per_node_second": meter.hellos / 2 / nodes / seconds,
            "kinds": {kind: round(2 * size / nodes / seconds) for kind, size in kinds},
        }

    return run(main, seed=1, steps=10**9)


def _converged(world: World, ids: tuple[str, ...]) -> bool:
    facts = {tuple(machine.node.feeds.heads.items()) for machine in world.up}
    return len(facts) == 1 and bool(world.coordinator()) and all(m.node.membership.alive == ids for m in world.up)


def _progress(world: World, ids: tuple[str, ...], virtual: float, cpu: float) -> str:
    """How far joining has come."""
    up = world.up
    heads = [machine.node.feeds.heads for machine in up]
    links = sorted(len(machine.node.ports.transport.links) for machine in up)
    leaders = {machine.node.leadership.leader for machine in up}
    return (
        f"{len(ids)} nodes, {virtual:.0f} virtual s: {sum(m.node.membership.alive == ids for m in up)} see all"
        f" (least {min(len(m.node.membership.alive) for m in up)}), {sum(len(held) == len(ids) for held in heads)} hold"
        f" all feeds (least {min(map(len, heads))}), {len(leaders)} leaders, links {links[0]} to {links[-1]};"
        f" {cpu:.0f} s of processor"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[100, 300])
    parser.add_argument("--seconds", type=float, default=60.0, help="of idling")
    parser.add_argument(
        "--from", type=float, default=150.0, dest="idle_from", help="virtual second at which that begins"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if not args.json:
        print(f"one TLS handshake: {handshake_bytes()} bytes both ways", flush=True)
    for nodes in args.nodes:
        row = measure(nodes, args.seconds, args.idle_from)
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{nodes} nodes: joined in {row['joined_virtual_seconds']:.1f} virtual s (target {JOIN_TARGET:g};"
            f" {row['joined_cpu_seconds']:.0f} s of processor); idle {row['idle_speed']:.1f} x real time (target"
            f" {SPEED_TARGET:g}); {row['bytes_per_node_second']:.0f} B/s a node, both ways (target {BYTES_TARGET}),"
            f" {row['dials_per_node_second']:.2f} dials/s; by kind {row['kinds']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
