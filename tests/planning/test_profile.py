"""Measuring this machine, links between machines, and a job's numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hivenode.errors import Unavailable
from hivenode.planning import profile
from hivenode.planning.profile import DEFAULT_ROUND_TRIP_SECONDS, ClusterView, SelfProfile, measure_flops
from hivenode.planning.workload import Workload, state_of
from hivenode.spec.job import parse_job
from tests.planning.cluster import cluster, node, workload


async def test_this_machine_can_be_measured_without_loading_a_library_here() -> None:
    flops = await measure_flops(threads=1)
    assert 1e8 < flops < 1e14


async def test_the_speed_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    path.write_text("not json")
    first = SelfProfile(path, threads=1)
    assert first.current is None
    measured = await first.measure()
    assert first.current == measured
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a second probe would fail
    again = await SelfProfile(path, threads=1).measure()
    assert again == measured
    other = await SelfProfile(path, threads=2).measure()  # not what was measured
    assert other.guessed
    assert '"' in path.read_text()
    assert (await SelfProfile(path, threads=1).measure()) == measured  # a guess is not remembered


async def test_a_busy_machine_is_taken_for_one_thread_and_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, path = tmp_path / "probe", tmp_path / "profile.json"
    monkeypatch.setattr(sys, "executable", str(probe))

    async def measured(alone: float, together: float) -> float:
        probe.write_text(
            f'#!/bin/sh\n[ $OMP_NUM_THREADS = 1 ] && f={alone} || f={together}\necho {{\\"flops\\": $f}}\n'
        )
        probe.chmod(0o755)
        return (await SelfProfile(path, threads=4).measure()).flops

    assert await measured(10e9, 1e9) == 10e9
    assert await measured(11e9, 40e9) == 40e9
    assert await measured(10e9, 1e9) == 40e9  # remembered


async def test_a_failing_probe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="speed could not be measured"):
        await measure_flops(threads=1)


async def test_a_slow_probe_is_ended() -> None:
    with pytest.raises(Unavailable, match="took longer"):
        await measure_flops(threads=1, timeout_seconds=0.001)


def test_memory_and_cores_are_this_process_own() -> None:
    assert profile.cores() >= 1
    assert profile.free_memory_bytes() > 2**20
    assert profile.machine_key()


def test_round_trips_are_measured_or_by_a_third_or_assumed() -> None:
    a, b, c, d = (node(i).node for i in range(4))
    view = ClusterView(tuple(node(i) for i in range(4)), {(a, b): 0.01, (b, a): 0.03, (c, a): 0.005})
    assert view.latency(a, b) == pytest.approx(0.02)
    assert view.latency(b, a) == view.latency(a, b)
    assert view.latency(b, c) == pytest.approx(0.025)
    assert view.latency(b, d) == DEFAULT_ROUND_TRIP_SECONDS
    assert view.latency(a, a) == 0.0


def test_a_link_is_as_wide_as_its_narrower_end() -> None:
    view = cluster(node(0, bandwidth=1e6), node(1, bandwidth=1e9))
    assert view.bandwidth(node(0).node, node(1).node) == 1e6


@dataclass
class Numbers:
    parameters: int = 1000
    flops_per_sample: int = 5000
    activation_bytes_per_sample: int = 400
    layers: tuple[object, ...] = ()
    samples: int = 1797
    sample_bytes: int = 256
    input_shape: tuple[int, ...] = (1, 8, 8)


def test_a_declared_job_in_numbers() -> None:
    spec = parse_job(
        {"name": "digits", "training": {"epochs": 3, "batch_size": 100, "optimizer": "sgd", "momentum": 0.9}}
    )
    job = Workload.of(spec, model=Numbers(), data=Numbers())  # type: ignore[arg-type]
    assert job.samples == 1438  # four fifths
    assert job.steps == 3 * 15  # the last batch of an epoch is smaller
    assert job.flops_per_sample == 15_000
    assert job.bytes_per_parameter == 12
    short = parse_job({"name": "digits", "training": {"max_steps": 7}})
    assert Workload.of(short, model=Numbers(), data=Numbers()).steps == 7  # type: ignore[arg-type]


def test_rows_of_the_table_reach_every_bucket() -> None:
    few, many = cluster(node(0)), cluster(*(node(i) for i in range(9)), round_trip=0.05)
    assert state_of(workload(parameters=999_999, samples=9_999), few.profiles, few) == (0, 0, 0, 0)
    assert state_of(workload(parameters=10**9, samples=10**6), many.profiles, many) == (3, 2, 3, 2)
    mid = cluster(node(0), node(1), round_trip=0.005)
    assert state_of(workload(parameters=10**6, samples=10**4), mid.profiles, mid) == (1, 1, 1, 1)
    four = cluster(*(node(i) for i in range(4)))
    assert state_of(workload(parameters=10**8), four.profiles, four) == (2, 0, 2, 0)
