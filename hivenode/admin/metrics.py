"""Metrics for Prometheus, read from the node at scrape time; names and units follow its conventions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from hivenode.spec.status import JobSummary, NodeService, Status

MEMBER_STATES = ("alive", "suspect", "dead", "left")
JOB_STATES = ("queued", "planned", "running", "finished", "failed", "cancelled")
MAX_OPEN_JOBS = 100
MAX_ENDED_JOBS = 16
"""Series per job are for the open ones and the newest ended ones, so their number is bounded."""


class NodeCollector(Collector):
    """What a node knows of itself, its hive and the jobs."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from _node(self._service.status())
        yield from _jobs(self._service.jobs())


def registry(service: NodeService) -> CollectorRegistry:
    """The node, and the process's memory and CPU; a registry of its own, so that two nodes in a process do not mix."""
    made = CollectorRegistry(auto_describe=False)
    made.register(NodeCollector(service))
    ProcessCollector(registry=made)
    return made


def render(metrics: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type, in the format the scraper's Accept header prefers."""
    encode, content_type = choose_encoder(accept)
    return encode(metrics), content_type


def _node(status: Status) -> Iterator[Metric]:
    about = InfoMetricFamily("hivenode_node", "This node.")
    about.add_metric((), {"node": status.node, "name": status.name, "hive": status.hive, "version": status.version})
    yield about
    yield _gauge("hivenode_uptime_seconds", "Since the node is up.", status.uptime_seconds)
    yield _gauge("hivenode_is_coordinator", "1 while this node coordinates.", status.coordinator == status.node)
    yield _gauge("hivenode_has_coordinator", "1 while this node knows a coordinator.", bool(status.coordinator))
    yield _gauge("hivenode_epoch_counter", "Counter of the highest epoch seen.", int(status.epoch.partition(".")[0]))
    yield _gauge("hivenode_troubles", "Sentences in the node's health report.", len(status.health))
    facts = status.facts
    yield _gauge("hivenode_seals", "Number of the latest seal of old events.", facts.seals)
    yield _gauge("hivenode_events", "Events held beyond the latest seal.", facts.events)
    yield _gauge("hivenode_journal_bytes", "The journal on disk.", facts.journal_bytes)
    states = Counter(member.state for member in status.members)
    members = GaugeMetricFamily("hivenode_members", "Members of the hive as this node sees them.", labels=["state"])
    for state in MEMBER_STATES:
        members.add_metric((state,), states[state])
    yield members
    latency = GaugeMetricFamily("hivenode_member_latency_seconds", "Measured round trip.", labels=["member"])
    for member in status.members:
        if member.latency_ms is not None:
            latency.add_metric((member.node,), member.latency_ms / 1000)
    yield latency


def _jobs(jobs: tuple[JobSummary, ...]) -> Iterator[Metric]:
    states = Counter(job.state for job in jobs)
    total = GaugeMetricFamily("hivenode_jobs", "Jobs of the hive.", labels=["state"])
    for state in JOB_STATES:
        total.add_metric((state,), states[state])
    yield total
    labels = ["job", "name"]
    step = GaugeMetricFamily("hivenode_job_step", "Training step reached.", labels=labels)
    steps = GaugeMetricFamily("hivenode_job_steps", "Training steps in all.", labels=labels)
    loss = GaugeMetricFamily("hivenode_job_loss", "Training loss.", labels=labels)
    accuracy = GaugeMetricFamily("hivenode_job_accuracy_ratio", "Accuracy, 0 to 1.", labels=labels)
    speed = GaugeMetricFamily("hivenode_job_samples_per_second", "Training speed, all nodes together.", labels=labels)
    going = islice((job for job in jobs if job.ended_at is None), MAX_OPEN_JOBS)
    ended = islice((job for job in jobs if job.ended_at is not None), MAX_ENDED_JOBS)
    for job in (*going, *ended):
        key = (job.job, job.name)
        step.add_metric(key, job.step)
        steps.add_metric(key, job.steps)
        speed.add_metric(key, job.samples_per_second)
        if job.loss is not None:
            loss.add_metric(key, job.loss)
        if job.accuracy is not None:
            accuracy.add_metric(key, job.accuracy)
    yield from (step, steps, loss, accuracy, speed)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
