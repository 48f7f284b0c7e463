"""What a worker's TLS link carries, and what it would through a third worker that passes everything on.

    python benchmarks/relay.py [--megabytes 2048] [--json]

Three processes on loopback. One sends float32 in frames of 1 MiB to another by the channel that workers use, first
directly, then to a third, which decrypts each frame into one buffer and encrypts it again for the receiver: no disk, no
hash, no copy but TLS's own. Printed are the rate, what each process takes of a core for a gigabyte, and the share of
the processors that others had meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection

from exchange_peers import Watch

from hivenode.training.exchange.channel import Channel
from hivenode.training.exchange.clock import now
from hivenode.training.exchange.keys import WorkerKey

FRAME = 1 << 20
GREETING_SECONDS = 30.0
WAYS = ("direct", "relayed")


def work(incoming: bool, outgoing: bool, pipe: Connection) -> None:
    """Read frames, write frames, or pass on what is read; tells its processor seconds and when it ended."""
    key = WorkerKey.create()
    server = socket.create_server(("127.0.0.1", 0))
    pipe.send((server.getsockname()[1], key.certificate))
    trusted, target, frames = pipe.recv()
    context, until = key.context(trusted), now() + GREETING_SECONDS
    buffer = memoryview(bytearray(FRAME))
    source = sink = None
    if outgoing:
        sink = Channel(socket.create_connection(("127.0.0.1", target)), context, server_side=False, until=until)
        sink.wait_until(float("inf"))
    if incoming:
        source = Channel(server.accept()[0], context, server_side=True, until=until)
        source.wait_until(float("inf"))
    pipe.send(None)
    pipe.recv()
    began = time.process_time()
    for _ in range(frames):
        if source is not None:
            source.fill(buffer)
        if sink is not None:
            sink.send(buffer)
    pipe.send((time.process_time() - began, now()))
    pipe.recv()


def carried(way: str, frames: int) -> dict[str, float]:
    """Megabytes a second, and core-seconds a gigabyte by process."""
    spawn = multiprocessing.get_context("spawn")
    roles = {"sender": (False, True), "relay": (True, True), "receiver": (True, False)}
    if way == "direct":
        del roles["relay"]
    pipes, processes = list[Connection](), []
    for role in roles.values():
        here, there = spawn.Pipe()
        processes.append(spawn.Process(target=work, args=(*role, there), daemon=True))
        processes[-1].start()
        pipes.append(here)
    ports, certificates = zip(*(pipe.recv() for pipe in pipes), strict=True)
    for pipe, target in zip(pipes, (*ports[1:], 0), strict=True):
        pipe.send((certificates, target, frames))
    for pipe in pipes:
        pipe.recv()
    watch, began = Watch(), now()
    for pipe in pipes:
        pipe.send(None)
    told = [pipe.recv() for pipe in pipes]
    others = watch.others()
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    gigabytes = frames * FRAME / 1e9
    costs = {role: seconds / gigabytes for role, (seconds, _) in zip(roles, told, strict=True)}
    return {"megabytes_per_second": 1e3 * gigabytes / (told[-1][1] - began), "others": others, **costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--times", type=int, default=3, help="in turn; medians are printed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = [{way: carried(way, options.megabytes) for way in WAYS} for _ in range(options.times)]
    found = {way: {key: statistics.median(run[way][key] for run in runs) for key in runs[0][way]} for way in WAYS}
    if options.json:
        print(json.dumps(found))
        return
    rates = []
    for way, row in found.items():
        rate, others = row.pop("megabytes_per_second"), row.pop("others")
        costs = "  ".join(f"{role} {value:.2f}" for role, value in row.items())
        print(f"{way:8} {rate:6.0f} MB/s;  core-seconds a gigabyte: {costs};  others had {others:.0%}")
        rates.append(rate)
    print(f"relayed / direct: {rates[1] / rates[0]:.2f}")


if __name__ == "__main__":
    main()
