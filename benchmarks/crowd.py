"""What a real daemon costs among many members: memory and processor, idle.

    python benchmarks/crowd.py [--members 200] [--seconds 60] [--json]

One daemon, as installed, founds a hive. The other members are spoken by this process: each joins with an invite and has
a key, a certificate and a link over mutual TLS of its own, introduces itself with its signed grant and statement, and
answers probes and heartbeats. All keep their links, the most a daemon of that hive can have: its own mesh would keep
about a dozen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hivenode.hive import statements
from hivenode.hive.clock import HybridClock
from hivenode.hive.feeds import Feeds
from hivenode.net.joining import join
from hivenode.net.messages import Ack, FeedDelta, Gossip, Heartbeat, HeartbeatAck, Ping
from hivenode.spec.events import NodeAdmitted
from hivenode.trust.identity import Identity
from hivenode.trust.invites import read_token
from tests.cluster.machines import Machine
from tests.security.wire import Wire

TARGET_MB = 150.0


class Member:
    """A member without a machine."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.answered = 0

    @classmethod
    async def start(cls, token: str, address: str, name: str) -> Member:
        identity = Identity.create()
        credentials, _ = await join(read_token(token), identity, name, datetime.now(UTC))
        wire = await Wire.linked(address, credentials, keep=True)
        feeds = Feeds(credentials.hive_id, credentials.authority_key)
        made = feeds.compose(identity, HybridClock(time.time).now, [NodeAdmitted(grant=credentials.grant)])
        wire.say(FeedDelta(events=tuple(entry.event for entry in made)))
        said = statements.alive(identity.sign, identity.node_id, 1 << 32, name, ("127.0.0.1:9",), "0.0.bench")
        wire.say(Gossip((said,)))
        return cls(wire)

    async def answer(self) -> None:
        while (message := await self._wire.message()) is not None:
            match message:
                case Ping(sequence=sequence):
                    self._wire.say(Ack(sequence))
                    self.answered += 1
                case Heartbeat(epoch=epoch):
                    self._wire.say(HeartbeatAck(epoch))
        raise ConnectionError("the daemon ended a link")


async def measure(members: int, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        daemon = Machine(Path(folder), "daemon")
        await daemon.start()
        assert daemon.process is not None
        process = psutil.Process(daemon.process.pid)
        alone = process.memory_info().rss / 1e6
        token = (await daemon.api("POST", "/v1/invites", {"uses": members, "roles": ["worker", "submitter"]}))["token"]
        address = (await daemon.api("GET", "/v1/status"))["addresses"][0]
        async with asyncio.TaskGroup() as group:
            others, tasks = [], []
            for number in range(members - 1):
                others.append(await Member.start(token, address, f"m{number:03}"))
                tasks.append(group.create_task(others[-1].answer()))
            await daemon.until("/v1/status", lambda status: _present(status) == members, 60.0)
            before, began = sum(process.cpu_times()[:2]), time.perf_counter()
            await asyncio.sleep(seconds)  # the measurement itself
            share = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
            status = await daemon.api("GET", "/v1/status")
            found = {
                "members": _present(status),
                "links": sum(1 for connection in process.net_connections("tcp") if connection.status == "ESTABLISHED"),
                "alone_mb": alone,
                "rss_mb": process.memory_info().rss / 1e6,
                "cpu_percent": 100 * share,
                "probes_answered": sum(other.answered for other in others),
            }
            for task in tasks:
                task.cancel()
        await daemon.stop()
        return found


def _present(status: dict) -> int:
    return sum(member["state"] == "alive" for member in status["members"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=200, help="the daemon included")
    parser.add_argument("--seconds", type=float, default=60.0, help="of idling")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.members, arguments.seconds))
    if arguments.json:
        print(json.dumps(found))
        return
    print(
        f"{found['members']} members, {found['links']} connections: resident {found['rss_mb']:.0f} MB, target"
        f" {TARGET_MB:.0f}, ratio {found['rss_mb'] / TARGET_MB:.2f} (alone {found['alone_mb']:.0f} MB);"
        f" {found['cpu_percent']:.2f} % of a core; {found['probes_answered']} probes answered"
    )


if __name__ == "__main__":
    main()
