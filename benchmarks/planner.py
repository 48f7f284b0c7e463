"""How good the planner's choices are, and how fast: `python benchmarks/planner.py [--hives N] [--jobs N] [--quick]`.

Hives, jobs and hidden truths come from a seed; what each strategy would truly take comes from a discrete-event
simulation (planner_oracle.py) that shares no formula with the planner. Everybody chooses among the same five
breakdowns, so only the choice is compared. Regret is the geometric mean of (time taken / time of the best) - 1; a
choice that cannot run wastes a fifth of the best time and is replaced by a random one that can. The time charged is
without a run's noise, which the learners do see.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from planner_oracle import Machine, World

from hivenode.planning.planner import experience_of, plan
from hivenode.planning.profile import ClusterView, NodeProfile
from hivenode.planning.qtable import ACTIONS, Experience
from hivenode.planning.workload import Layer, Workload
from hivenode.spec.job import PlacementSpec
from hivenode.spec.values import Plan, Strategy

ALL = frozenset(Strategy)
KINDS = ("dense", "convolution", "attention")
GIB = 2**30
NOISE = 0.06
"""Standard deviation of the natural log of a run's time."""


@dataclass(frozen=True)
class Case:
    """A job on the nodes that were there, and what each strategy would truly take."""

    workload: Workload
    cluster: ClusterView
    plans: dict[Strategy, Plan]
    truth: dict[Strategy, float]
    predicted: Plan

    @property
    def best(self) -> float:
        return min(self.truth.values())


def hive(rng: random.Random, bias: float) -> tuple[list[NodeProfile], dict[tuple[str, str], float], World]:
    """Machines with what they measured of themselves, links, and the truth."""
    count = rng.randint(3, 10)
    profiles, machines = [], {}
    for i in range(count):
        node = f"{i:02d}{rng.getrandbits(64):016x}".ljust(32, "a")
        flops = rng.choice((1e10, 4e10, 1e11, 3e11)) * rng.uniform(0.7, 1.3)
        bandwidth = rng.choice((4e6, 1.25e7, 1.1e8, 1.1e9))
        memory = int(rng.choice((1.5, 4, 8, 32)) * GIB)
        profiles.append(NodeProfile(node, flops, memory, 4, bandwidth, ("torch",), name=f"node{i}"))
        own = rng.gauss(0, bias / 2)
        machines[node] = Machine(
            node,
            {kind: flops * 0.6 * math.exp(own + rng.gauss(0, bias)) for kind in KINDS},
            fill={"dense": rng.uniform(1, 6), "convolution": rng.uniform(0, 0.6), "attention": rng.uniform(0, 1)},
            dispatch=0.001 * math.exp(rng.gauss(0.3, 0.5)),
            message=0.0002 * math.exp(rng.gauss(0, 0.6)),
            up=bandwidth * math.exp(rng.gauss(-0.2, bias)),
            down=bandwidth * math.exp(rng.gauss(-0.1, bias)),
        )
    place = {p.node: rng.randrange(1 if rng.random() < 0.6 else 3) for p in profiles}
    trips, true_trips = {}, {}
    for i, a in enumerate(profiles):
        for b in profiles[i + 1 :]:
            near = place[a.node] == place[b.node]
            trip = rng.uniform(0.0003, 0.0015) if near else rng.uniform(0.01, 0.08)
            trips[(a.node, b.node)] = trip
            true_trips[(a.node, b.node)] = trip / 2 * math.exp(rng.gauss(0.1, bias / 2))
    loss = 1.3 * math.exp(rng.gauss(0, bias / 2))
    update = {"sgd": rng.uniform(8, 24), "adam": rng.uniform(50, 150)}
    return profiles, trips, World(machines, true_trips, loss, update)


def job(rng: random.Random) -> tuple[Workload, str]:
    """A model, a set and a way to train."""
    kind = rng.choice(KINDS)
    count = rng.randint(3, 24)
    size = math.exp(rng.uniform(math.log(2e4), math.log(6e8)))
    reuse = {"dense": 1, "convolution": rng.uniform(20, 200), "attention": rng.uniform(16, 64)}[kind]
    raw = [rng.uniform(0.3, 2) for _ in range(count)]
    layers = tuple(
        Layer(
            max(1, int(size * r / sum(raw))),
            6 * reuse * size * r / sum(raw),
            max(64, int(4 * math.sqrt(size * r / sum(raw)) * {"dense": 1, "convolution": 16, "attention": 32}[kind])),
        )
        for r in raw
    )
    workload = Workload(
        parameters=sum(layer.parameters for layer in layers),
        flops_per_sample=sum(layer.flops for layer in layers),
        activation_bytes_per_sample=sum(layer.activation_bytes for layer in layers),
        samples=int(math.exp(rng.uniform(math.log(1e3), math.log(3e6)))),
        batch_size=rng.choice((16, 32, 64, 128, 256, 512)),
        epochs=rng.randint(1, 20),
        optimizer=rng.choice(("sgd", "adam")),
        sample_bytes=64,
        layers=layers,
    )
    return workload, kind


def cases(rng: random.Random, bias: float, wanted: int) -> list[Case]:
    """Jobs of one hive, some of its nodes away each time. Jobs that no or one strategy can run are left out."""
    profiles, trips, world = hive(rng, bias)
    made: list[Case] = []
    for _ in range(20 * wanted):
        if len(made) == wanted:
            break
        workload, kind = job(rng)
        there = [p for p in profiles if rng.random() < 0.9] or profiles[:1]
        cluster = ClusterView(tuple(there), trips)
        plans, predicted = {}, None
        for strategy in Strategy:
            try:
                placement = PlacementSpec(strategy=strategy)
                plans[strategy] = plan(
                    workload, placement, cluster, Experience(), rng=random.Random(0), epsilon=0, runnable=ALL
                )
            except Exception as error:
                if type(error).__name__ != "Unavailable":
                    raise
        if len(plans) < 2:
            continue
        predicted = plan(
            workload, PlacementSpec(), cluster, Experience(), rng=random.Random(0), epsilon=0, runnable=ALL
        )
        truth = {}
        for strategy, each in plans.items():
            reason = next(c.reason for c in each.candidates if c.strategy is strategy)
            small = int(reason.rsplit(", ", 1)[1].split()[0]) if strategy is Strategy.pipeline_parallel else 1
            truth[strategy] = world.seconds(workload, kind, strategy, each.shares, small)
        made.append(Case(workload, cluster, plans, truth, predicted))
    return made


# --- who chooses -----------------------------------------------------------------------------------------------

Chooser = Callable[[Case, int], Strategy]
Learner = Callable[[Case, int, Strategy, float], None]


def randomly(seed: int) -> tuple[Chooser, Learner]:
    rng = random.Random(seed)
    return lambda case, _: rng.choice(sorted(case.truth)), lambda *_: None


def tabular(seed: int) -> tuple[Chooser, Learner]:
    """The original: zeros, epsilon 0.1, alpha 0.1, gamma 0.9 from one job to the next, nothing masked."""
    rng = random.Random(seed)
    table: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0] * 5)
    last: list[tuple[tuple[int, ...], int, float]] = []

    def choose(case: Case, _: int) -> Strategy:
        state = case.predicted.state
        for before, action, reward in last:
            table[before][action] += 0.1 * (reward + 0.9 * max(table[state]) - table[before][action])
        last.clear()
        if rng.random() < 0.1:
            return rng.choice(ACTIONS)
        row = table[state]
        return ACTIONS[row.index(max(row))]

    def learn(case: Case, _: int, chosen: Strategy, seconds: float) -> None:
        bare = case.workload.steps * case.workload.batch * case.workload.flops_per_sample
        reference = bare / max(p.speed for p in case.cluster.profiles)
        reward = -min(max(math.log(seconds / reference), -3.0), 6.0)
        last.append((case.predicted.state, ACTIONS.index(chosen), reward))

    return choose, learn


def cost_only(_: int) -> tuple[Chooser, Learner]:
    return lambda case, _: case.predicted.strategy, lambda *_: None


def ours(seed: int, epsilon: float = 0.1) -> tuple[Chooser, Learner]:
    experience = Experience()
    chosen_plans: dict[int, Plan] = {}

    def choose(case: Case, number: int) -> Strategy:
        made = plan(
            case.workload, PlacementSpec(), case.cluster, experience,
            rng=random.Random(seed * 1_000_003 + number), epsilon=epsilon, runnable=ALL,
        )  # fmt: skip
        chosen_plans[number] = made
        return made.strategy

    def learn(case: Case, number: int, chosen: Strategy, seconds: float) -> None:
        if chosen is chosen_plans[number].strategy:
            body = experience_of(f"job-{number}", 1, chosen_plans.pop(number), seconds)
            experience.apply("coordinator", number, body)

    return choose, learn


POLICIES: dict[str, Callable[[int], tuple[Chooser, Learner]]] = {
    "random among feasible": randomly,
    "the original's Q-learning": tabular,
    "cost model only": cost_only,
    "ours (epsilon 0.1)": ours,
    "ours, no exploring": lambda seed: ours(seed, 0.0),
}


def stream(pool: list[Case], jobs: int, policy: Callable[[int], tuple[Chooser, Learner]], seed: int):  # type: ignore[no-untyped-def]
    """(regret as a log ratio, best chosen, infeasible) for each job of one hive."""
    order, noise, fallback = random.Random(seed), random.Random(seed + 1), random.Random(seed + 2)
    choose, learn = policy(seed)
    for number in range(jobs):
        case = order.choice(pool)
        chosen = choose(case, number)
        wasted, infeasible = 0.0, chosen not in case.truth
        if infeasible:
            wasted = 0.2 * case.best
            learn(case, number, chosen, 400 * case.best)
            ran = fallback.choice(sorted(case.truth))
        else:
            ran = chosen
        taken = case.truth[ran]
        if not infeasible:
            learn(case, number, chosen, taken * math.exp(noise.gauss(0, NOISE)))
        yield math.log((taken + wasted) / case.best), taken <= 1.000001 * case.best, infeasible


def table(bias: float, hives: int, jobs: int, pool_size: int, seed: int) -> None:
    pools = [cases(random.Random(seed + h), bias, pool_size) for h in range(hives)]
    pools = [pool for pool in pools if pool]
    edges = sorted({0, min(100, jobs), min(500, jobs), jobs})
    windows = [(a, b) for a, b in pairwise(edges)]
    print(f"\nhidden bias {bias}: {len(pools)} hives x {jobs} jobs drawn from {pool_size} each, seed {seed}")
    head = "".join(f"{f'{a}-{b}':>12}" for a, b in windows)
    print(
        f"{'regret by job number':28}{head}{'best picked':>13}{'infeasible':>12}{'x cost model':>14}{'worst 100':>11}"
    )
    cost_windows: list[list[float]] = []
    late_cost = 0.0
    rows = {}
    for name, policy in POLICIES.items():
        runs = [list(stream(pool, jobs, policy, seed + 31 * i)) for i, pool in enumerate(pools)]
        flat = [[r[0] for r in run] for run in runs]
        means = [math.expm1(statistics.fmean(x for run in flat for x in run[a:b])) for a, b in windows]
        late = windows[-1][0]
        top = statistics.fmean(r[1] for run in runs for r in run[late:])
        infeasible = sum(r[2] for run in runs for r in run)
        # The hives together, in windows of 100 jobs each.
        by_window = [
            [statistics.fmean(run[a : a + 100]) for run in flat] for a in range(0, jobs - min(100, jobs) + 1, 100)
        ]
        rows[name] = (means, top, infeasible, by_window)
    cost_windows = rows["cost model only"][3]
    late_cost = 1 + rows["cost model only"][0][-1]
    for name, (means, top, infeasible, by_window) in rows.items():
        text = "".join(f"{mean:12.1%}" for mean in means)
        worst = max(
            math.exp(statistics.fmean(own) - statistics.fmean(cost))
            for own, cost in zip(by_window, cost_windows, strict=True)
        )
        ratio = (1 + means[-1]) / late_cost
        print(f"{name:28}{text}{top:13.2f}{infeasible:12d}{ratio:14.2f}{worst:11.2f}")


def decisions() -> None:
    """Time of one choice with 24 nodes."""
    rng = random.Random(5)
    profiles = tuple(
        NodeProfile(f"{i:02d}".ljust(32, "b"), rng.choice((1e10, 4e10, 1e11)) * rng.uniform(0.8, 1.2),
                    int(rng.choice((2, 8, 32)) * GIB), 4, rng.choice((1.25e7, 1.1e8)), ("torch",))
        for i in range(24)
    )  # fmt: skip
    trips = {(profiles[0].node, p.node): rng.choice((0.0005, 0.02)) for p in profiles[1:]}
    print(f"\n{'one decision, 24 nodes':40}{'median':>10}{'worst':>10}")
    for name, runnable in (
        ("all five strategies", ALL),
        ("single_node and data_parallel", frozenset({Strategy.single_node, Strategy.data_parallel})),
    ):
        times = []
        generator = random.Random(6)
        for _ in range(40):
            workload, _kind = job(generator)
            start = time.perf_counter()
            try:
                plan(workload, PlacementSpec(), ClusterView(profiles, trips), Experience(),
                     rng=random.Random(0), runnable=runnable)  # fmt: skip
            except Exception as error:
                if type(error).__name__ != "Unavailable":
                    raise
            times.append(1000 * (time.perf_counter() - start))
        times = sorted(times[1:])
        print(f"{name:40}{statistics.median(times):7.1f} ms{times[-1]:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hives", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=60, help="different jobs of each hive")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="2 hives, 300 jobs")
    given = parser.parse_args()
    if given.quick:
        given.hives, given.jobs, given.pool = 2, 300, 25
    decisions()
    for bias in (0.3, 0.6):
        table(bias, given.hives, given.jobs, given.pool, given.seed)


if __name__ == "__main__":
    main()
