"""A pipeline of two stages beside torch.distributed.pipelining over gloo, the same model, batches and schedule (1F1B).

    python benchmarks/pipeline.py [--steps 20] [--small 8] [--passes 3] [--json]

Two processes of one thread each. Ours go over mutually authenticated TLS and update with our optimizer; theirs go over
plaintext gloo and update with torch.optim.SGD. Printed: samples a second after three steps of warming up, the median of
the passes, which alternate, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import time
from multiprocessing.queues import Queue
from typing import Any

TARGET = 0.8
WARM = 3
WIDTH, BLOCKS, LENGTH, VOCABULARY, BATCH = 256, 4, 64, 96, 32
CUT = 3
"""The layer with which the second stage begins: the embedding and two of four blocks before it."""


def declared() -> tuple[Any, Any]:
    """The model, and what its data are."""
    from hivenode.data.info import DataInfo
    from hivenode.spec.model import ModelSpec

    info = DataInfo("benchmark", 4096, (LENGTH,), VOCABULARY, (), "language", VOCABULARY)
    return ModelSpec(source="zoo:gpt", params={"width": WIDTH, "layers": BLOCKS, "heads": 4}), info


def ours(rank: int, steps: int, small: int, ports: Queue[Any], peers: Queue[Any], found: Queue[float]) -> None:
    """One stage: tell where it listens, hear where the other does, train."""
    import numpy as np
    import torch

    from hivenode.data.dataset import Dataset, Held
    from hivenode.net.local import Resources
    from hivenode.spec.training import TrainingSpec
    from hivenode.spec.values import Share
    from hivenode.training.exchange import Seat
    from hivenode.training.optimizers import Optimizer
    from hivenode.training.stages.blueprint import blueprint
    from hivenode.training.stages.line import Line
    from hivenode.training.stages.loop import Ends, StagedTraining
    from hivenode.training.stages.replicas import Replicas
    from hivenode.training.stages.stage import Cutting, Stage
    from hivenode.training.strategies.single import Alone

    torch.set_num_threads(1)
    model, info = declared()
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (4096, LENGTH + 1))
    data = Dataset(info, Held(drawn[:, :-1], drawn[:, 1:]), Held(drawn[:0, :-1], drawn[:0, 1:]))
    size = BATCH // small
    plan = blueprint(model, info, 0, Resources())
    cutting = Cutting(plan, lambda samples: torch.zeros(samples, LENGTH, dtype=torch.int64), [CUT])
    held, running = cutting.holdings(size)
    stage = Stage(cutting, rank, held, running)
    for name, part in held.parts(rank).items():
        plan.start(name, stage.weights[part])
    line = Line(Seat(f"node{rank}", rank, "127.0.0.1"))
    line.limit = 1 << 26
    ports.put((rank, line.port, line.certificate))
    line.connect(peers.get())
    shares = [Share(f"node{number}", number, 0.5, 0.0, 0) for number in range(2)]
    me = shares[rank].node
    alone = Replicas(me, [shares], rank, Alone(me), "fp32", len(stage.weights), lambda message: None, lambda: None)

    def run(count: int, done: int) -> float:
        spec = TrainingSpec(batch_size=BATCH, learning_rate=0.01, max_steps=count)
        training = StagedTraining(
            number=rank, small=size, spec=spec, stage=stage, optimizer=Optimizer(spec, len(stage.weights)),
            ends=Ends(data), line=line, replicas=alone, members=line.members,
            report=lambda message: None, cancelled=lambda: None, save=lambda step: None, step=done,
        )  # fmt: skip
        started = time.perf_counter()
        training.run()
        return time.perf_counter() - started

    run(WARM, 0)
    seconds = run(WARM + steps, WARM)
    line.finish()
    line.close()
    if rank == 0:
        found.put(steps * BATCH / seconds)


def theirs(rank: int, steps: int, small: int, port: int, found: Queue[float]) -> None:
    """One stage by torch.distributed.pipelining."""
    import torch
    from torch import distributed
    from torch.distributed.pipelining import Schedule1F1B, SplitPoint, pipeline
    from torch.nn import functional

    from hivenode.models.declared import layers_of
    from hivenode.training.frameworks.torch_models import build

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, info = declared()
    layers = layers_of(model, info)
    assert layers is not None
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    inputs = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    labels = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    pipe = pipeline(build(layers), (inputs[: BATCH // small],), split_spec={layers[CUT].name: SplitPoint.BEGINNING})
    stage = pipe.build_stage(rank, torch.device("cpu"))
    schedule = Schedule1F1B(
        stage, small, loss_fn=lambda out, wanted: functional.cross_entropy(out.transpose(1, 2), wanted)
    )
    optimizer = torch.optim.SGD(stage.submod.parameters(), lr=0.01)

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad()
            if rank == 0:
                schedule.step(inputs)
            else:
                schedule.step(target=labels)
            optimizer.step()
        distributed.barrier()
        return time.perf_counter() - started

    run(WARM)
    seconds = run(steps)
    distributed.destroy_process_group()
    if rank == 0:
        found.put(steps * BATCH / seconds)


def measure_ours(steps: int, small: int) -> float:
    from hivenode.net.local import Peer

    context = multiprocessing.get_context("spawn")
    ports, found = context.Queue(), context.Queue()
    tables = [context.Queue() for _ in range(2)]
    both = [context.Process(target=ours, args=(rank, steps, small, ports, tables[rank], found)) for rank in range(2)]
    for process in both:
        process.start()
    told = sorted(ports.get(timeout=120) for _ in both)
    for table in tables:
        table.put(tuple(Peer(f"node{rank}", rank, "127.0.0.1", port, key) for rank, port, key in told))
    speed = float(found.get(timeout=300))
    for process in both:
        process.join()
    return speed


def measure_theirs(steps: int, small: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    both = [context.Process(target=theirs, args=(rank, steps, small, port, found)) for rank in range(2)]
    for process in both:
        process.start()
    speed = float(found.get(timeout=300))
    for process in both:
        process.join()
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", type=int, default=8, help="small batches of a batch")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pairs = [(measure_ours(args.steps, args.small), measure_theirs(args.steps, args.small)) for _ in range(args.passes)]
    mine, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    if args.json:
        print(json.dumps({"hivenode": mine, "torch": other, "ratio": mine / other, "target": TARGET}))
        return
    print(f"hivenode over TLS {mine:.1f} samples/s, torch.distributed.pipelining over gloo {other:.1f} samples/s")
    print(f"ratio {mine / other:.2f} (target {TARGET})")


if __name__ == "__main__":
    main()
