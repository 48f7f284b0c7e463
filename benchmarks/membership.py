"""How long a silent death goes unnoticed, in virtual time, beside what SWIM's formula says.

    python benchmarks/membership.py [--seeds 20] [--json]      (how far the long rows have come is said on stderr)

The formula: a member is probed by somebody after a time that is exponential with a mean of one probe interval, the
probe fails one interval later, and the shortest suspicion then runs out, confirmed by others: at the median
(1 + ln 2) * interval + 4 * max(1, log10 n) * interval. "Known to all" adds what gossip needs for n members at a
fan-out of three per 0.2 s. A ratio above 1.2 is marked. Beside it: a killed process, whose host refuses dials.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hivenode.hive.profiles import PROFILES, suspicion_min
from hivenode.hive.swim import MemberState
from tests.hive.swarm import Swarm

LAN = PROFILES["lan"]
MESH_ABOVE = 128
"""Larger hives are simulated with the links of a partial mesh."""


def expected(n: int) -> tuple[float, float]:
    """Median seconds until the first, and until the last member knows."""
    first = (1 + math.log(2)) * LAN.probe_interval + suspicion_min(LAN, n)
    return first, first + LAN.gossip_interval * math.log(n, 1 + LAN.gossip_fanout)


def measure(n: int, loss: float, seeds: int) -> dict[str, float]:
    """Of a large hive the members fall silent one after the other in one run."""
    suspected, first, most, last, wrong = [], [], [], [], 0
    swarm = Swarm(n, seed=0, loss=loss, mesh=n > MESH_ABOVE)
    for seed in range(seeds):
        if n <= MESH_ABOVE:
            swarm = Swarm(n, seed=seed, loss=loss)
        if n <= MESH_ABOVE or not seed:
            swarm.settle()
        if n > MESH_ABOVE:
            progress(f"{n} members, {loss:.0%} lost: {seed} of {seeds} found after {swarm.now:.0f} s")
        swarm.run(swarm.now + 3.0 + seed / seeds)
        victim, begin = swarm.ids[seed % n], swarm.now
        swarm.unplug(victim)
        while not all(swarm.cores[o].members[victim].state is MemberState.dead for o in swarm.running()):
            swarm.run(swarm.now + 1.0)
        sights = [s for s in swarm.sights if s.subject == victim and s.at >= begin]
        suspected.append(min(s.at for s in sights if s.state is MemberState.suspect) - begin)
        deaths = {s.observer: s.at - begin for s in sights if s.state is MemberState.dead}
        first.append(min(deaths.values()))
        most.append(sorted(deaths.values())[math.ceil(0.99 * len(deaths)) - 1])
        last.append(max(deaths.values()))
        wrong += sum(node in swarm.running() for node in swarm.deaths())
    formula_first, formula_last = expected(n)
    return {
        "members": n,
        "loss": loss,
        "seeds": seeds,
        "suspected_p50": statistics.median(suspected),
        "dead_p50": statistics.median(first),
        "dead_ratio": statistics.median(first) / formula_first,
        "known_to_99_p50": statistics.median(most),
        "known_to_99_ratio": statistics.median(most) / formula_last,
        "known_to_all_max": max(last),
        "wrongly_dead": wrong,
    }


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def slow_tenth(n: int, hours: float) -> dict[str, float]:
    """A tenth of the members gets round to anything only every two seconds; who is held dead by anybody?"""
    swarm = Swarm(n, seed=1, mesh=n > MESH_ABOVE)
    swarm.settle()
    slow = swarm.ids[:: max(1, n // max(1, n // 10))][: max(1, n // 10)]
    for node in slow:
        swarm.slow(node, 2.0)
    begin, end = swarm.now, swarm.now + hours * 3600
    while swarm.now < end:
        swarm.run(min(end, swarm.now + 60.0))
        if n > MESH_ABOVE:
            held = sum(node not in slow for node in swarm.deaths())
            progress(f"{n} members, {(swarm.now - begin) / 60:.0f} min: {held} healthy ones held dead")
    dead = swarm.deaths()
    return {
        "members": n,
        "hours": hours,
        "slow": len(slow),
        "healthy_held_dead": sum(node not in slow for node in dead),
        "slow_held_dead": sum(node in slow for node in dead),
    }


def killed(n: int, seeds: int) -> float:
    """Longest time until everybody knows of a killed process."""
    worst = 0.0
    for seed in range(seeds):
        swarm = Swarm(n, seed=seed)
        swarm.settle()
        begin = swarm.now
        swarm.kill(swarm.ids[seed % n])
        swarm.run(begin + 5.0)
        worst = max(worst, swarm.last(swarm.ids[seed % n], MemberState.dead) - begin)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="runs per row (from 128 members on a quarter of it)")
    parser.add_argument("--members", type=int, nargs="*", default=[8, 32, 128, 1000])
    parser.add_argument("--hours", type=float, default=1.0, help="of the watch with a tenth of the members slow")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if not args.json:
        print(
            "members loss  suspected   dead (p50)  ratio  99 % know (p50)  ratio    max   wrongly dead   killed (max)"
        )
    for n in args.members:
        seeds = args.seeds if n < 128 else max(1, args.seeds // 4)
        for loss in (0.0, 0.3):
            row = measure(n, loss, seeds)
            row["killed_max"] = killed(n, max(1, seeds // 4)) if n <= MESH_ABOVE else math.nan
            if args.json:
                print(json.dumps(row))
                continue
            mark = "!" if row["dead_ratio"] > 1.2 else " "
            print(
                f"{n:7} {loss:4.0%} {row['suspected_p50']:9.2f} s {row['dead_p50']:9.2f} s"
                f" {row['dead_ratio']:6.2f}{mark} {row['known_to_99_p50']:14.2f} s"
                f" {row['known_to_99_ratio']:6.2f} {row['known_to_all_max']:6.1f}"
                f" {row['wrongly_dead']:14} {row['killed_max']:12.2f} s",
                flush=True,
            )
    for n in args.members if args.hours else ():
        said = slow_tenth(n, args.hours)
        if args.json:
            print(json.dumps(said), flush=True)
        else:
            print(
                f"{n} members, {said['slow']} of them slow, {said['hours']:g} h: {said['healthy_held_dead']} healthy"
                f" and {said['slow_held_dead']} slow ones held dead",
                flush=True,
            )


if __name__ == "__main__":
    main()
