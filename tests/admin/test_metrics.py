"""What a Prometheus server reads."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from hivenode.admin.api import AdminServer
from tests.admin.memory import NODES, MemoryNode, summary


async def scrape(session: aiohttp.ClientSession) -> dict[tuple[str, tuple[str, ...]], float]:
    response = await session.get("/metrics")
    assert response.content_type == "text/plain"
    samples = [sample for family in text_string_to_metric_families(await response.text()) for sample in family.samples]
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in samples}


async def test_members_jobs_and_the_process(stranger: aiohttp.ClientSession, node: MemoryNode) -> None:
    node.member_states["cedar"] = "dead"
    node.job_list = {
        "j-1": summary("j-1"),
        "j-2": summary("j-2", state="finished", ended_at=1.0, loss=None, accuracy=0.97),
    }
    found = await scrape(stranger)
    assert found["hivenode_members", ("alive",)] == 2
    assert found["hivenode_members", ("dead",)] == 1
    assert found["hivenode_is_coordinator", ()] == 0
    assert found["hivenode_has_coordinator", ()] == 1
    assert found["hivenode_epoch_counter", ()] == 7
    assert found["hivenode_seals", ()] == 3
    assert found["hivenode_events", ()] == 1200
    assert found["hivenode_journal_bytes", ()] == 2_000_000
    assert found["hivenode_jobs", ("running",)] == 1
    assert found["hivenode_jobs", ("finished",)] == 1
    assert found["hivenode_jobs", ("failed",)] == 0
    assert found["hivenode_job_step", ("j-1", "digits")] == 10
    assert found["hivenode_job_steps", ("j-1", "digits")] == 100
    assert found["hivenode_job_loss", ("j-1", "digits")] == 0.5
    assert ("hivenode_job_loss", ("j-2", "digits")) not in found
    assert found["hivenode_job_accuracy_ratio", ("j-2", "digits")] == 0.97
    assert found["hivenode_job_samples_per_second", ("j-1", "digits")] == 1234.5
    assert found["process_resident_memory_bytes", ()] > 1_000_000
    assert found["process_cpu_seconds_total", ()] > 0


async def test_they_are_read_anew_at_each_scrape(stranger: aiohttp.ClientSession, node: MemoryNode) -> None:
    assert (await scrape(stranger))["hivenode_is_coordinator", ()] == 0
    node.coordinator = NODES["ash"]
    assert (await scrape(stranger))["hivenode_is_coordinator", ()] == 1


async def test_series_per_job_are_bounded(stranger: aiohttp.ClientSession, node: MemoryNode) -> None:
    node.job_list = {f"j-{n}": summary(f"j-{n}", state="finished", ended_at=1.0) for n in range(500)}
    found = await scrape(stranger)
    assert found["hivenode_jobs", ("finished",)] == 500
    assert sum(name == "hivenode_job_step" for name, _ in found) == 16


async def test_two_nodes_in_a_process_do_not_mix(stranger: aiohttp.ClientSession, node: MemoryNode) -> None:
    other = MemoryNode(coordinator="")
    server = AdminServer(other, "t")
    url = await server.start()
    async with aiohttp.ClientSession(url) as session:
        assert (await scrape(session))["hivenode_has_coordinator", ()] == 0
    await server.stop()
    assert (await scrape(stranger))["hivenode_has_coordinator", ()] == 1


async def test_openmetrics_on_demand(stranger: aiohttp.ClientSession) -> None:
    response = await stranger.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.content_type == "application/openmetrics-text"
    assert (await response.text()).endswith("# EOF\n")
