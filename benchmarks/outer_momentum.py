"""Local steps with an outer momentum from the start, with one that rises, and with none: loss after so many steps.

    python benchmarks/outer_momentum.py                     # few rounds and many, a minute or two
    python benchmarks/outer_momentum.py --every 10 --steps 300 --width 128 --layers 4

Four workers as threads, over their own encrypted connections on loopback, int8, AdamW, characters of the texts bundled
with scikit-learn. "From the start" is DiLoCo as published: outer learning rate 0.7, momentum 0.9 in every round.
"Rising" is what a job has by default: the same in the end, the plain mean of the workers' weights in the first round.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import torch

from hivenode.data.dataset import Dataset
from hivenode.data.loading import load
from hivenode.net.local import FromWorker, Peer, Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.spec.training import TrainingSpec
from hivenode.spec.values import Share
from hivenode.training.exchange import Seat
from hivenode.training.frameworks.making import make
from hivenode.training.optimizers import Outer, Vector
from hivenode.training.strategies import making
from hivenode.training.strategies.data_parallel import Together
from hivenode.training.strategies.group import Group
from hivenode.training.strategies.way import Course

WORKERS = 4
LENGTH = 32
SHORT, LONG = (30, 240, 128, 4), (5, 750, 48, 2)
"""Steps between exchanges, steps, width and layers: 8 rounds, and 150."""


class FromTheStart(Outer):
    """As if many updates had been before."""

    def step(self, weights: Vector, back: Vector, number: int, run: slice) -> None:
        super().step(weights, back, number + 1_000_000, run)


KINDS: dict[str, tuple[type[Outer], float, float]] = {
    "none": (Outer, 1.0, 0.0),
    "from the start": (FromTheStart, 0.7, 0.9),
    "rising": (Outer, 0.7, 0.9),
}


def name(rank: int) -> str:
    return f"{rank:032d}"


def course(data: Dataset, model: ModelSpec, spec: TrainingSpec, steps: int, looks: int) -> list[float]:
    """The loss on the held-out part, so often."""

    def quiet(_: FromWorker) -> None:
        return

    together = [Together(Seat(name(rank), rank, "127.0.0.1")) for rank in range(WORKERS)]
    peers = tuple(Peer(name(r), r, "127.0.0.1", each.port, each.certificate) for r, each in enumerate(together))
    shares = [Share(name(rank), rank, 1 / WORKERS, 0.1, 1) for rank in range(WORKERS)]
    held_out = data.test.take(np.arange(len(data.test)))

    def work(rank: int) -> list[float]:
        made = make("torch", model, data.info, 0, Resources(), 1)
        group = Group(name(rank), shares, together[rank], quiet, lambda: None)
        way = making.way_of(spec, group, Course(data, spec, group), made.model, made.vector, quiet)
        together[rank].connect(peers)
        step, losses = 0, list[float]()
        while step < steps:
            before, step = step, way.advance(step, steps).step
            if rank == 0 and step * looks // steps > before * looks // steps:
                losses.append(made.model.evaluate(*held_out)[1] / len(data.test))
        together[rank].finish()
        return losses

    with ThreadPoolExecutor(WORKERS) as pool:
        losses, *_ = pool.map(work, range(WORKERS))
    for each in together:
        each.close()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, help="steps between two exchanges")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataSpec(source="sklearn:descriptions", length=LENGTH))
    cases = [(options.every, options.steps, options.width, options.layers)] if options.every else [SHORT, LONG]
    results: dict[str, dict[str, list[float]]] = {}
    for every, steps, width, layers in cases:
        model = ModelSpec(source="zoo:gpt", params={"width": width, "layers": layers, "heads": 4})
        label = f"{steps // every} rounds of {every} steps, width {width}"
        results[label] = {}
        if not options.json:
            print(f"{label}: held-out loss after each quarter")
        for kind, (outer, rate, momentum) in KINDS.items():
            spec = TrainingSpec(
                epochs=10_000,
                batch_size=8,
                optimizer="adamw",
                learning_rate=0.001,
                sync="local",
                sync_every=every,
                codec="int8",
                outer_learning_rate=rate,
                outer_momentum=momentum,
            )
            with mock.patch.object(making, "Outer", outer):
                losses = results[label][kind] = course(data, model, spec, steps, 4)
            if not options.json:
                print(f"  momentum {kind:16}", *(f"{loss:.3f}" for loss in losses), flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
