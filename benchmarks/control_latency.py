"""What control messages feel of bulk: three daemons, blobs pulled from each without a pause, a ping on every link.

    python benchmarks/control_latency.py [--seconds 20] [--megabytes 256] [--pullers 2]

Prints the round trip of pings while nothing else moves and while blobs do, their ratio, what was moved, and whether any
daemon doubted another. Pullers are processes of their own with certificates of the hive.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from hivenode.net.joining import join
from hivenode.net.messages import Ack, Ping
from hivenode.trust.credentials import Credentials
from hivenode.trust.identity import Identity
from hivenode.trust.invites import read_token

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cluster.machines import Machine, form_hive, settled
from tests.security.wire import Wire

EVERY_SECONDS = 0.02


async def pull(home: Path, seed: str, address: str, digest: str, seconds: float) -> None:
    """One puller: fetch a blob again and again; prints the bytes that came."""
    credentials = Credentials.load(home, Identity.from_seed(seed.encode()))
    total, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        wire = await Wire.open(address, credentials.client_context())
        wire.raw(f"GET /bulk/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        while time.monotonic() < end and (piece := await wire.reader.read(1 << 20)):
            total += len(piece)
        wire.writer.transport.abort()
    print(total)


async def pings(address: str, credentials: Credentials, seconds: float) -> list[float]:
    """Round trips on one link, seconds."""
    found: list[float] = []
    async with await Wire.linked(address, credentials) as wire:
        end, sequence = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            sequence += 1
            began = time.perf_counter()
            wire.say(Ping(sequence=sequence))
            while not (isinstance(answer := await wire.message(), Ack) and answer.sequence == sequence):
                if answer is None:
                    raise ConnectionError("the link ended")
            found.append(time.perf_counter() - began)
            await asyncio.sleep(EVERY_SECONDS)
    return found


def place(machine: Machine, data: bytes) -> str:
    """Put a blob into a stopped node's store; its digest."""
    digest = hashlib.sha256(data).hexdigest()
    (blobs,) = machine.home.glob("hives/*/blobs")
    (blobs / digest[:2]).mkdir(exist_ok=True)
    (blobs / digest[:2] / digest).write_bytes(data)
    return digest


def told(name: str, found: list[float]) -> float:
    ordered = sorted(found)
    p99 = ordered[int(len(ordered) * 0.99)]
    median, worst = statistics.median(ordered), ordered[-1]
    print(f"{name}: median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms")
    return p99


async def main(seconds: float, megabytes: int, pullers: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        machines = [Machine(root, name) for name in ("ash", "birch", "cedar")]
        await form_hive(machines)
        token = (await machines[0].api("POST", "/v1/invites", {"uses": 100}))["token"]
        members: list[tuple[str, Path, Credentials]] = []
        for number in range(len(machines) * (pullers + 1)):
            seed = f"member {number}"
            credentials, _ = await join(read_token(token), Identity.from_seed(seed.encode()), seed, datetime.now(UTC))
            home = root / f"member-{number}"
            home.mkdir()
            credentials.save(home)
            members.append((seed, home, credentials))
        await asyncio.gather(*(machine.stop() for machine in machines))
        digests = [place(machine, os.urandom(megabytes << 20)) for machine in machines]
        await asyncio.gather(*(machine.start() for machine in machines))
        for machine in machines:
            await machine.until("/v1/status", lambda status: settled(status, len(machines)))
        addresses = [(await machine.api("GET", "/v1/status"))["addresses"][0] for machine in machines]

        async def measure() -> list[float]:
            each = (pings(a, members[n][2], seconds) for n, a in enumerate(addresses))
            return [trip for trips in await asyncio.gather(*each) for trip in trips]

        idle = told("idle", await measure())
        spoken = [len(machine.lines) for machine in machines]
        spare = iter(members[len(machines) :])
        pulling = []
        for address, digest in zip(addresses, digests, strict=True):
            for _ in range(pullers):
                seed, home, _ = next(spare)
                pulling.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, __file__, "--pull", str(home), seed, address, digest, str(seconds),
                        stdout=asyncio.subprocess.PIPE,
                    )
                )  # fmt: skip
        busy = told("bulk", await measure())
        counts = [await one.communicate() for one in pulling]
        moved = sum(int(count) for count, _ in counts)
        print(f"moved {moved / 1e9:.1f} GB at {moved / seconds / 1e6:.0f} MB/s")
        print(f"p99 is {busy / idle:.1f} times that of idle links")
        doubts = [
            line
            for machine, before in zip(machines, spoken, strict=True)
            for line in machine.lines[before:]
            if line.get("state") in ("suspect", "dead") or line.get("peer") in ("ash", "birch", "cedar")
        ]
        print(f"suspicions and lost links: {len(doubts)}", *doubts, sep="\n")
        await asyncio.gather(*(machine.stop() for machine in machines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--pullers", type=int, default=2)
    parser.add_argument("--pull", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pull:
        home, seed, address, digest, seconds = given.pull
        asyncio.run(pull(Path(home), seed, address, digest, float(seconds)))
    else:
        asyncio.run(main(given.seconds, given.megabytes, given.pullers))
