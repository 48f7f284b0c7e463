"""A small GPT on four nodes behind slow lines: time to the same loss, ours against PyTorch's DDP, same run, same lines.

    python benchmarks/low_bandwidth.py                    # as root: network namespaces, 100 Mbit/s out of each
    python benchmarks/low_bandwidth.py --rate 50mbit --steps 60 --json

Characters of the texts bundled with scikit-learn, AdamW. DDP over gloo trains for so many steps; the loss it then has
on the held-out part is what the others have to reach: ours with int8 after every step, and with int8 local steps
(DiLoCo). All start from the same weights, take the same batches, have the same learning rate and one thread a node, and
are judged every few steps on the same samples; judging does not count. The model is scaled down to what lets DDP's run
last about two minutes, with a step's arithmetic of all nodes sharing this machine's cores. Traffic of ours is
encrypted, gloo's is not. In so few rounds an outer momentum has nothing to gather: the mean of the nodes is taken as it
is, unless options say otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from hivenode.data.loading import Dataset, load
from hivenode.net.local import FromWorker, Peer, Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share

LENGTH = 32
JUDGED = 256


@dataclass(frozen=True)
class Task:
    """What all train. `width` and `layers` of the model, `batch` of all nodes together."""

    width: int
    layers: int
    batch: int
    learning_rate: float
    judge_every: int

    def model(self) -> ModelSpec:
        return ModelSpec(source="zoo:gpt", params={"width": self.width, "layers": self.layers, "heads": 4})

    def data(self) -> Dataset:
        return load(DataSpec(source="sklearn:descriptions", length=LENGTH))

    def training(self, **more: object) -> TrainingSpec:
        return TrainingSpec(
            epochs=10_000, batch_size=self.batch, optimizer="adamw", learning_rate=self.learning_rate, **more
        )


class Judge:
    """Seconds of training alone, and losses on the held-out part by them.

    Args:
        evaluate: the loss, the same on all nodes; each works on its part of it.
    """

    def __init__(self, evaluate: Callable[[], float], goal: float) -> None:
        self._evaluate, self._goal = evaluate, goal
        self._began = time.monotonic()
        self._judging = 0.0
        self.course: list[tuple[float, float]] = []

    def look(self) -> bool:
        """Whether to go on."""
        now = time.monotonic()
        seconds = now - self._began - self._judging
        self.course.append((seconds, self._evaluate()))
        self._judging += time.monotonic() - now
        return self.course[-1][1] > self._goal


def ours(
    rank: int, size: int, task: Task, host: str, way: Mapping[str, object], goal: float, steps: int, pipe: Connection
) -> None:
    """Trains until the goal or for so many steps."""
    births = None
    if way.get("engine") == "torch":
        from hivenode.worker.nursery import Nursery

        births = Nursery()  # while there is one thread
    from hivenode.training.exchange import Seat
    from hivenode.training.frameworks.making import make
    from hivenode.training.strategies.data_parallel import Together
    from hivenode.training.strategies.group import Group
    from hivenode.training.strategies.making import way_of
    from hivenode.training.strategies.way import Course

    def quiet(_: FromWorker) -> None:
        return

    data, spec = task.data(), task.training(**way)
    made = make("torch", task.model(), data.info, 0, Resources(), 1)
    seat = Seat(name(rank), rank, host)
    if births is not None:
        from hivenode.spec.job import JobSpec
        from hivenode.training.distributed.making import torch_way
        from hivenode.training.distributed.plaintext import InPlaintext
        from hivenode.training.distributed.switchboard import Switchboard

        together: Together = InPlaintext(seat, Switchboard(name(rank)), (f"{host}/32",))
    else:
        together = Together(seat)
    shares = [Share(name(each), each, 1 / size, 0.1, 1) for each in range(size)]
    group = Group(name(rank), shares, together, quiet, lambda: None)
    course = Course(data, spec, group)
    if births is not None:
        job = JobSpec(name="engine", model=task.model(), training=spec)
        trains = torch_way(job, data.info, made.model, group, course, together, births, Resources(), 1, quiet)
    else:
        trains = way_of(spec, group, course, made.model, made.vector, quiet)
    pipe.send((host, together.port, together.certificate))
    together.connect(tuple(Peer(name(r), r, *endpoint) for r, endpoint in enumerate(pipe.recv()) if r != rank))
    held_out = part_of(data, rank, size)
    loss = np.zeros(1, np.float32)

    def evaluate() -> float:
        own = made.model.evaluate(*held_out)[1] / len(held_out[0])

        def tell() -> float:
            loss[0] = own
            return 1.0

        group.agree(loss, tell, step)
        return float(loss[0])

    step = samples = 0
    evaluate()
    if births is not None:
        trains.meet(0)
    judge = Judge(evaluate, goal)
    while step < steps:
        due = (step // task.judge_every + 1) * task.judge_every
        while step < due:
            advance = trains.advance(step, due)
            step, samples = advance.step, samples + advance.samples
        if not judge.look():
            break
    pipe.send((judge.course, samples, len(made.model.weights)))
    together.finish()
    together.close()


def ddp(rank: int, size: int, task: Task, host: str, store: str, steps: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel

    from hivenode.data.partition import Batches, member_range
    from hivenode.models.declared import layers_of
    from hivenode.training.frameworks.making import make
    from hivenode.training.frameworks.torch_models import build

    torch.set_num_threads(1)
    if host != "127.0.0.1":
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    data = task.data()
    made = make("torch", task.model(), data.info, 0, Resources(), 1)  # for its first weights, and to be judged with
    layers = layers_of(task.model(), data.info)
    assert layers is not None
    module = build(layers)
    start = 0
    for parameter in module.parameters():
        count = parameter.numel()
        parameter.data = torch.from_numpy(made.model.weights[start : start + count].copy()).view(parameter.shape)
        start += count
    trained = DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=task.learning_rate, weight_decay=0.0)
    batches = Batches(len(data.train), task.batch, 0)
    held_out = part_of(data, rank, size)

    def evaluate() -> float:
        made.model.weights[:] = torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()
        loss = torch.tensor(made.model.evaluate(*held_out)[1] / len(held_out[0]))
        dist.all_reduce(loss)
        return float(loss) / size

    names = [name(each) for each in range(size)]
    evaluate()
    judge = Judge(evaluate, -1.0)
    samples = step = 0
    order, epoch = batches.order(0), 0
    while step < steps:
        if step // batches.steps_per_epoch != epoch:
            epoch = step // batches.steps_per_epoch
            order = batches.order(epoch)
        batch = batches.of_step(order, step)
        mine = member_range(len(batch), names, dict.fromkeys(names, 1.0), names[rank])
        inputs, labels = data.train.take(batch[mine.start : mine.stop])
        optimizer.zero_grad()
        outputs = trained(torch.from_numpy(inputs))
        functional.cross_entropy(outputs.transpose(1, 2), torch.from_numpy(labels)).backward()
        optimizer.step()
        step, samples = step + 1, samples + len(batch)
        if step % task.judge_every == 0:
            judge.look()
    pipe.send((judge.course, samples, len(made.model.weights)))
    dist.barrier()
    dist.destroy_process_group()


def part_of(data: Dataset, rank: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A node's part of what all are judged on."""
    count = min(JUDGED, len(data.test)) // size
    return data.test.take(np.arange(rank * count, (rank + 1) * count))


def name(rank: int) -> str:
    return f"node{rank}".ljust(32, "0")


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its address, and what to enter before it is started."""

    address: str
    enter: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def lines(size: int, rate: str) -> Iterator[list[Place]]:
    """Places on lines of that rate, or on loopback for "none"."""
    if rate == "none":
        yield [Place("127.0.0.1", contextlib.nullcontext)] * size
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.network.lan import Lan, inside, unusable

    if why := unusable():
        raise SystemExit(f"This needs network namespaces: {why}.")
    lan = Lan()
    try:
        lan.build([f"n{rank}" for rank in range(size)])
        for host in lan.hosts.values():
            host.limit(rate)
        yield [Place(host.address, lambda host=host: inside(host.namespace)) for host in lan.hosts.values()]  # type: ignore[misc]
    finally:
        lan.close()


Outcome = tuple[list[tuple[float, float]], int, int]


def together(places: Sequence[Place], target: Callable[..., None], *arguments: object, meet: bool) -> Outcome:
    """Run one worker at each place; what rank 0 has to say."""
    spawn = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for rank, place in enumerate(places):
        mine, theirs = spawn.Pipe()
        with place.enter():
            process = spawn.Process(
                target=target,
                args=(rank, len(places), *arguments[:1], place.address, *arguments[1:], theirs),
                daemon=True,
            )
            process.start()
        processes.append(process)
        pipes.append(mine)
    if meet:
        endpoints = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(endpoints)
    outcomes: list[Outcome] = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(30)
    return outcomes[0]


def reached(course: Sequence[tuple[float, float]], goal: float) -> float:
    """Seconds to a loss, between the two looks before and after it; infinite if it was not reached."""
    before = (0.0, float("inf"))
    for seconds, loss in course:
        if loss <= goal:
            if before[1] == float("inf"):
                return seconds
            part = (before[1] - goal) / max(before[1] - loss, 1e-9)
            return before[0] + part * (seconds - before[0])
        before = (seconds, loss)
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", default="100mbit", help="out of each node, as tc has it; none for loopback")
    parser.add_argument("--steps", type=int, default=100, help="of DDP")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sync-every", type=int, default=20)
    parser.add_argument("--most", type=int, default=6, help="steps that ours may take, over those of DDP")
    parser.add_argument("--judge-every", type=int, default=10)
    parser.add_argument("--outer-learning-rate", type=float, default=1.0)
    parser.add_argument("--outer-momentum", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no namespace is left behind
    task = Task(options.width, options.layers, options.batch, 0.001, options.judge_every)
    ways: dict[str, dict[str, object]] = {
        "every step, int8": {"codec": "int8"},
        "local, int8": {
            "sync": "local",
            "sync_every": options.sync_every,
            "codec": "int8",
            "outer_learning_rate": options.outer_learning_rate,
            "outer_momentum": options.outer_momentum,
        },
    }
    results: dict[str, object] = {}
    with lines(options.nodes, options.rate) as places:
        with tempfile.TemporaryDirectory() as directory:
            store = os.path.join(directory, "store")
            course, samples, parameters = together(places, ddp, task, store, options.steps, meet=False)
        goal = min(loss for _, loss in course)
        base = reached(course, goal)
        results["ddp"] = {"seconds": base, "loss": goal, "samples_per_second": samples / course[-1][0]}
        if not options.json:
            model = f"GPT of {parameters:,} parameters, batches of {options.batch} x {LENGTH} characters"
            print(f"{options.nodes} nodes, {options.rate} out of each; {model}; {os.cpu_count()} cores for all")
            print(f"{'':18} {'s to loss':>10} {goal:.3f}   samples/s   times DDP")
            print(f"{'DDP, gloo':18} {base:10.1f} {samples / course[-1][0]:17.1f} {1:11.1f}", flush=True)
        for label, way in ways.items():
            course, samples, _ = together(places, ours, task, way, goal, options.most * options.steps, meet=True)
            seconds = reached(course, goal)
            speed = samples / course[-1][0]
            results[label] = {"seconds": seconds, "loss": course[-1][1], "samples_per_second": speed}
            if not options.json:
                print(f"{label:18} {seconds:10.1f} {speed:17.1f} {base / seconds:11.1f}", flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
