"""How long a silent death goes unnoticed, in virtual time, beside what SWIM's formula says.

    python benchmarks/membership.py [--seeds 20] [--json]

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


def expected(n: int) -> tuple[float, float]:
    """Median seconds until the first, and until the last member knows."""
    first = (1 + math.log(2)) * LAN.probe_interval + suspicion_min(LAN, n)
    return first, first + LAN.gossip_interval * math.log(n, 1 + LAN.gossip_fanout)


def measure(n: int, loss: float, seeds: int) -> dict[str, float]:
    suspected, first, last, wrong = [], [], [], 0
    for seed in range(seeds):
        swarm = Swarm(n, seed=seed, loss=loss)
        swarm.settle()
        swarm.run(8.0 + seed / seeds)
        victim, begin = swarm.ids[seed % n], swarm.now
        swarm.unplug(victim)
        while not all(swarm.cores[o].members[victim].state is MemberState.dead for o in swarm.running()):
            swarm.run(swarm.now + 1.0)
        sights = [s for s in swarm.sights if s.subject == victim and s.at >= begin]
        suspected.append(min(s.at for s in sights if s.state is MemberState.suspect) - begin)
        deaths = {s.observer: s.at - begin for s in sights if s.state is MemberState.dead}
        first.append(min(deaths.values()))
        last.append(max(deaths.values()))
        wrong += sum(node != victim for node in swarm.deaths())
    formula_first, formula_last = expected(n)
    return {
        "members": n,
        "loss": loss,
        "seeds": seeds,
        "suspected_p50": statistics.median(suspected),
        "dead_p50": statistics.median(first),
        "dead_ratio": statistics.median(first) / formula_first,
        "known_to_all_p50": statistics.median(last),
        "known_to_all_ratio": statistics.median(last) / formula_last,
        "known_to_all_max": max(last),
        "wrongly_dead": wrong,
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
    parser.add_argument("--seeds", type=int, default=20, help="runs per row (at 128 members a quarter of it)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    if not args.json:
        print(
            "members loss  suspected   dead (p50)  ratio   all know (p50)  ratio    max   wrongly dead   killed (max)"
        )
    for n in (8, 32, 128):
        seeds = args.seeds if n < 128 else max(1, args.seeds // 4)
        for loss in (0.0, 0.3):
            row = measure(n, loss, seeds)
            row["killed_max"] = killed(n, max(1, seeds // 4))
            if args.json:
                print(json.dumps(row))
                continue
            mark = "!" if row["dead_ratio"] > 1.2 else " "
            print(
                f"{n:7} {loss:4.0%} {row['suspected_p50']:9.2f} s {row['dead_p50']:9.2f} s"
                f" {row['dead_ratio']:6.2f}{mark} {row['known_to_all_p50']:14.2f} s"
                f" {row['known_to_all_ratio']:6.2f} {row['known_to_all_max']:6.1f}"
                f" {row['wrongly_dead']:14} {row['killed_max']:12.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
