"""A GPT of 10.7M parameters on four nodes behind slow lines: time to the same loss, ours against PyTorch's DDP.

    python benchmarks/low_bandwidth.py                    # as root: network namespaces, 100 Mbit/s out of each
    python benchmarks/low_bandwidth.py --steps 50 --keep ddp.json --only none   # DDP now, and ours against that later:
    python benchmarks/low_bandwidth.py --steps 50 --keep ddp.json

Characters of the texts bundled with scikit-learn, AdamW. DDP over gloo trains for so many steps; the best loss it then
has had on the held-out part is what the others have to reach: ours with int8 after every step, with int8 local steps
(DiLoCo), and with the same in fragments that travel while steps go on (Streaming DiLoCo). All start from the same
weights, take the same batches, have the same learning rate and one thread a node, and are judged every few steps (local
steps: whenever all have something new in common) on the same samples; judging does not count. Where ours is first seen
at or below the loss is where it has reached it. The outer optimizer is what a job has by default. Traffic of ours is
encrypted, gloo's is not. All nodes share this machine's cores.
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
from dataclasses import asdict, dataclass
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
JUDGED = 128


@dataclass(frozen=True)
class Task:
    """What all train. `width`, `layers` and `heads` of the model, `batch` of all nodes together."""

    width: int
    layers: int
    heads: int
    batch: int
    learning_rate: float
    judge_every: int

    def model(self) -> ModelSpec:
        return ModelSpec(source="zoo:gpt", params={"width": self.width, "layers": self.layers, "heads": self.heads})

    def data(self) -> Dataset:
        return load(DataSpec(source="sklearn:descriptions", length=LENGTH))

    def training(self, **more: object) -> TrainingSpec:
        return TrainingSpec(
            epochs=10_000, batch_size=self.batch, optimizer="adamw", learning_rate=self.learning_rate, **more
        )


class Judge:
    """Steps, seconds of training alone, and the loss on the held-out part after them.

    Args:
        evaluate: the loss, the same on all nodes; each works on its part of it.
    """

    def __init__(self, evaluate: Callable[[], float], goal: float) -> None:
        self._evaluate, self._goal = evaluate, goal
        self._began = time.monotonic()
        self._judging = 0.0
        self.course: list[tuple[int, float, float]] = []

    def look(self, step: int) -> bool:
        """Whether to go on."""
        now = time.monotonic()
        seconds = now - self._began - self._judging
        self.course.append((step, seconds, self._evaluate()))
        self._judging += time.monotonic() - now
        return self.course[-1][2] > self._goal


@dataclass(frozen=True)
class Outcome:
    """What a node has to say. `course` is that of a `Judge`."""

    course: list[tuple[int, float, float]]
    samples: int
    parameters: int

    def reached(self, goal: float) -> tuple[int, float]:
        """Steps and seconds until a loss was seen; infinite if it was not."""
        return next(((step, seconds) for step, seconds, loss in self.course if loss <= goal), (0, float("inf")))

    @property
    def best(self) -> float:
        return min(loss for _, _, loss in self.course)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.course[-1][1]

    @property
    def step_seconds(self) -> float:
        return self.course[-1][1] / self.course[-1][0]


def ours(
    rank: int, size: int, task: Task, host: str, way: Mapping[str, object], goal: float, steps: int, pipe: Connection
) -> None:
    """Trains until the goal or for so many steps."""
    births = None
    if way.get("engine") == "torch":
        from hivenode.worker.nursery import Nursery

        births = Nursery(lambda: None, 1 << 30)  # while there is one thread
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
        trains = torch_way(job, data.info, made.model, group, course, together, births, Resources(), 1, "fp32", quiet)
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
        advance, before = trains.advance(step, steps), step
        step, samples = advance.step, samples + advance.samples
        if (spec.sync == "local" or step // task.judge_every > before // task.judge_every) and not judge.look(step):
            break
    pipe.send(Outcome(judge.course, samples, len(made.model.weights)))
    together.finish()
    together.close()


def ddp(rank: int, size: int, task: Task, host: str, store: str, steps: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel

    from hivenode.data.partition import Batches
    from hivenode.models.declared import layers_of
    from hivenode.spec.split import member_range
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
    held = dict(module.named_parameters())
    parameters = [held[name] for name in made.model.layout.parameters]  # in the order of the flat weights
    start = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.data = torch.from_numpy(made.model.weights[start : start + count].copy()).view(parameter.shape)
        start += count
    trained = DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=task.learning_rate, weight_decay=0.0)
    batches = Batches(len(data.train), task.batch, 0)
    held_out = part_of(data, rank, size)

    def evaluate() -> float:
        made.model.weights[:] = torch.cat([parameter.detach().flatten() for parameter in parameters]).numpy()
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
            judge.look(step)
    pipe.send(Outcome(judge.course, samples, len(made.model.weights)))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", default="100mbit", help="out of each node, as tc has it; none for loopback")
    parser.add_argument("--steps", type=int, default=20, help="of DDP")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sync-every", type=int, default=10)
    parser.add_argument("--fragments", type=int, default=2)
    parser.add_argument("--overlap", type=int, default=5)
    parser.add_argument("--most", type=int, default=6, help="steps that ours may take, over those of DDP")
    parser.add_argument("--judge-every", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.0001)
    parser.add_argument("--outer-learning-rate", type=float, default=TrainingSpec().outer_learning_rate)
    parser.add_argument("--outer-momentum", type=float, default=TrainingSpec().outer_momentum)
    parser.add_argument("--keep", type=Path, help="DDP's course: is taken from there, or written there")
    parser.add_argument("--only", choices=["every", "local", "streaming", "none"], help="of our ways")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no namespace is left behind
    task = Task(options.width, options.layers, options.heads, options.batch, options.learning_rate, options.judge_every)
    local: dict[str, object] = {
        "sync": "local",
        "sync_every": options.sync_every,
        "codec": "int8",
        "outer_learning_rate": options.outer_learning_rate,
        "outer_momentum": options.outer_momentum,
    }
    ways: dict[str, dict[str, object]] = {
        "every": {"codec": "int8"},
        "local": local,
        "streaming": {**local, "fragments": options.fragments, "overlap": options.overlap},
    }
    labels = {
        "every": "every step, int8",
        "local": f"local, every {options.sync_every}, int8",
        "streaming": f"in {options.fragments} fragments, overlap {options.overlap}",
    }
    results: dict[str, object] = {}

    def tell(key: str, label: str, outcome: Outcome, base: Outcome) -> None:
        step, seconds = outcome.reached(base.best)
        on_the_way = [
            (loss, was / outcome.reached(loss)[1]) for _, was, loss in base.course if base.reached(loss)[1] == was
        ]
        ratio = base.reached(base.best)[1] / seconds
        results[key] = {
            "seconds": seconds,
            "steps": step,
            "step_seconds": outcome.step_seconds,
            "times_ddp": ratio,
            "times_ddp_at": on_the_way,
            "course": outcome.course,
        }
        if not options.json:
            earlier = ", ".join(f"{times:.1f} at {loss:.2f}" for loss, times in on_the_way[:-1])
            line = f"{label:28} {seconds:8.1f} {step:6} {outcome.step_seconds:9.2f} {ratio:9.1f}"
            print(f"{line}   ({earlier})", flush=True)

    with lines(options.nodes, options.rate) as places:
        if options.keep is not None and options.keep.exists():
            base = Outcome(**json.loads(options.keep.read_text()))
        else:
            with tempfile.TemporaryDirectory() as directory:
                store = os.path.join(directory, "store")
                base = together(places, ddp, task, store, options.steps, meet=False)
            if options.keep is not None:
                options.keep.write_text(json.dumps(asdict(base)))
        if not options.json:
            model = f"GPT of {base.parameters:,} parameters, batches of {options.batch} x {LENGTH} characters"
            print(f"{options.nodes} nodes, {options.rate} out of each; {model}; {os.cpu_count()} cores for all")
            print(f"{f'to a loss of {base.best:.3f}':28} {'seconds':>8} {'steps':>6} {'s a step':>9} {'times DDP':>9}")
        tell("ddp", "DDP, gloo", base, base)
        for key, way in ways.items():
            if options.only in (None, key):
                outcome = together(places, ours, task, way, base.best, options.most * options.steps, meet=True)
                tell(key, labels[key], outcome, base)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
