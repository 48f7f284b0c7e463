"""A discrete-event simulation of training runs, to judge the planner by. It shares no formula with the planner.

Machines compute, send and receive; each does one thing of a kind at a time. A run is a graph of tasks on these
resources, made from the plan's shares alone; its time is when the last task ends. The machines here have truths
that nobody measured: how well each does on each kind of model, small batches that do not fill it, links that are
slower than stated, messages that cost processor time, local steps that need more samples.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from hivenode.planning.workload import Workload
from hivenode.spec.split import counts
from hivenode.spec.values import Share, Strategy

STEPS = 2
"""Simulated, after which the rest is taken to go on like the last."""


class Simulation:
    """Tasks with durations that need resources (one task each at a time, first come first served) and others done."""

    def __init__(self) -> None:
        self.resources: list[tuple[str, ...]] = []
        self.durations: list[float] = []
        self.delays: list[float] = []
        self.waiting: list[int] = []
        self.followers: list[list[int]] = []

    def task(self, resources: tuple[str, ...], seconds: float, after: list[int], delay: float = 0.0) -> int:
        """A task; those that follow it may begin `delay` seconds after its end (a message in flight)."""
        number = len(self.durations)
        self.resources.append(resources)
        self.durations.append(seconds)
        self.delays.append(delay)
        self.waiting.append(len(after))
        self.followers.append([])
        for other in after:
            self.followers[other].append(number)
        return number

    def run(self) -> float:
        """When the last task has ended."""
        busy: set[str] = set()
        blocked: dict[str, deque[int]] = {}
        events: list[tuple[float, int, int]] = []  # (time, kind: 0 a resource is free, 1 the result has arrived, task)

        def begin(number: int, now: float) -> bool:
            for resource in self.resources[number]:
                if resource in busy:
                    blocked.setdefault(resource, deque()).append(number)
                    return False
            busy.update(self.resources[number])
            end = now + self.durations[number]
            heapq.heappush(events, (end, 0, number))
            heapq.heappush(events, (end + self.delays[number], 1, number))
            return True

        now = 0.0
        for number in [i for i, n in enumerate(self.waiting) if n == 0]:
            begin(number, now)
        while events:
            now, kind, number = heapq.heappop(events)
            if kind == 0:
                busy.difference_update(self.resources[number])
                for resource in self.resources[number]:
                    line = blocked.get(resource, deque())
                    while line and resource not in busy:
                        begin(line.popleft(), now)
                continue
            for follower in self.followers[number]:
                self.waiting[follower] -= 1
                if self.waiting[follower] == 0:
                    begin(follower, now)
        return now


@dataclass(frozen=True)
class Machine:
    """A machine as it truly is."""

    name: str
    flops: dict[str, float]
    """FLOP/s by kind of model, on a batch that fills it."""
    fill: dict[str, float]
    """Samples at which it reaches half of that, by kind of model."""
    dispatch: float
    """Seconds a step or small batch costs by itself."""
    message: float
    """Processor seconds per message and side."""
    up: float
    down: float
    """Bytes/s."""


@dataclass(frozen=True)
class World:
    """The truth about one hive."""

    machines: dict[str, Machine]
    trips: dict[tuple[str, str], float]
    """One way, seconds."""
    local_loss: float
    """Samples that local steps need, over synchronous ones."""
    update: dict[str, float]
    """Operations of an optimizer per parameter."""
    drift: dict[str, float] = field(default_factory=dict)
    """Factor on machines' speeds by name, changed during a stream."""

    def compute(self, node: str, kind: str, flops: float, samples: float) -> float:
        machine = self.machines[node]
        rate = machine.flops[kind] * self.drift.get(node, 1.0) * samples / (samples + machine.fill[kind])
        return machine.dispatch + flops / rate

    def trip(self, a: str, b: str) -> float:
        return self.trips.get((a, b)) or self.trips[(b, a)]

    def send(self, sim: Simulation, a: str, b: str, size: float, after: list[int]) -> int:
        """Bytes from one machine to another: processor time at both ends, then both interfaces, then the way."""
        packed = sim.task((f"cpu {a}",), self.machines[a].message, after)
        rate = min(self.machines[a].up, self.machines[b].down)
        carried = sim.task((f"up {a}", f"down {b}"), size / rate, [packed], self.trip(a, b))
        return sim.task((f"cpu {b}",), self.machines[b].message, [carried])

    def exchange(self, sim: Simulation, nodes: list[str], size: float, ready: list[int]) -> list[int]:
        """Everybody gets the sum: each reduces one slice for all and sends it back."""
        slice_ = size / len(nodes)
        owned = []
        for i, owner in enumerate(nodes):
            came = [
                self.send(sim, nodes[(i + k) % len(nodes)], owner, slice_, [ready[(i + k) % len(nodes)]])
                for k in range(1, len(nodes))
            ]
            owned.append(sim.task((f"cpu {owner}",), slice_ * len(nodes) / 8e9, [*came, ready[i]]))
        done = []
        for i, node in enumerate(nodes):
            came = [
                self.send(sim, nodes[(i + k) % len(nodes)], node, slice_, [owned[(i + k) % len(nodes)]])
                for k in range(1, len(nodes))
            ]
            done.append(sim.task((f"cpu {node}",), 1e-5, [*came, owned[i]]))
        return done

    def seconds(
        self, workload: Workload, kind: str, strategy: Strategy, shares: tuple[Share, ...], small: int
    ) -> float:
        """What a run truly takes, without noise. `small`: small batches in a step of a pipeline."""
        nodes = [share.node for share in sorted(shares, key=lambda s: s.rank)]
        if strategy in (Strategy.single_node, Strategy.data_parallel):
            return self._steady(lambda steps: self._averaged(workload, kind, shares, nodes, steps, 1), workload.steps)
        if strategy is Strategy.federated:
            local = min(16, workload.steps)
            rounds = math.ceil(self.local_loss * workload.steps / local)
            return self._steady(lambda r: self._averaged(workload, kind, shares, nodes, r, local), rounds)
        m = 1 if strategy is Strategy.model_parallel else small
        return self._steady(lambda steps: self._staged(workload, kind, shares, steps, m), workload.steps)

    def _steady(self, simulate, wanted: int) -> float:  # type: ignore[no-untyped-def]
        few = min(STEPS, wanted)
        if few == wanted:
            return simulate(few)
        shorter, longer = simulate(few - 1), simulate(few)
        return longer + (wanted - few) * (longer - shorter)

    def _averaged(
        self, workload: Workload, kind: str, shares: tuple[Share, ...], nodes: list[str], rounds: int, local: int
    ) -> float:
        """So many rounds of `local` steps each, what came of them averaged after each."""
        sim = Simulation()
        parts = counts(workload.batch, [s.weight for s in sorted(shares, key=lambda s: s.rank)])
        ready: list[list[int]] = [[] for _ in nodes]
        for _ in range(rounds):
            done = [
                sim.task(
                    (f"cpu {node}",),
                    local
                    * self.compute(
                        node,
                        kind,
                        part * workload.flops_per_sample + self.update[workload.optimizer] * workload.parameters,
                        part,
                    ),
                    ready[i],
                )
                for i, (node, part) in enumerate(zip(nodes, parts, strict=True))
            ]
            if len(nodes) > 1:
                done = self.exchange(sim, nodes, 4.0 * workload.parameters, done)
            ready = [[each] for each in done]
        return sim.run()

    def _staged(self, workload: Workload, kind: str, shares: tuple[Share, ...], steps: int, small: int) -> float:
        sim = Simulation()
        line = sorted(shares, key=lambda share: share.rank)
        size = workload.batch / small
        start: list[int] = []
        for _ in range(steps):
            arrived: dict[tuple[int, int], list[int]] = {(0, b): start for b in range(small)}
            ended: dict[tuple[int, int], int] = {}
            for b in range(small):
                for s, share in enumerate(line):
                    first, last = share.layer_range or (0, len(workload.layers))
                    work = size * sum(layer.flops for layer in workload.layers[first:last])
                    forward = self.compute(share.node, kind, work / 3, size)
                    ended[(s, b)] = sim.task((f"cpu {share.node}",), forward, arrived[(s, b)])
                    if s + 1 < len(line):
                        out = size * workload.layers[last - 1].activation_bytes
                        arrived[(s + 1, b)] = [self.send(sim, share.node, line[s + 1].node, out, [ended[(s, b)]])]
            updates = []
            for s in range(len(line) - 1, -1, -1):
                share = line[s]
                first, last = share.layer_range or (0, len(workload.layers))
                backs = []
                for b in range(small):
                    work = size * sum(layer.flops for layer in workload.layers[first:last])
                    back = self.compute(share.node, kind, 2 * work / 3, size)
                    needs = [ended[(s, b)]] + ([ended[(s + 1, b)]] if s + 1 < len(line) else [])
                    mine = sim.task((f"cpu {share.node}",), back, needs)
                    backs.append(mine)
                    if s > 0:
                        incoming = size * workload.layers[first - 1].activation_bytes
                        ended[(s, b)] = self.send(sim, share.node, line[s - 1].node, incoming, [mine])
                parameters = sum(layer.parameters for layer in workload.layers[first:last])
                updates.append(
                    sim.task(
                        (f"cpu {share.node}",),
                        self.compute(share.node, kind, self.update[workload.optimizer] * parameters, 64),
                        backs,
                    )
                )
            start = updates
        return sim.run()
