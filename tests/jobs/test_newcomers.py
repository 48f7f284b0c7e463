"""Who may join an attempt that runs."""

from __future__ import annotations

import pytest

from hivenode.errors import Unavailable
from hivenode.jobs.proposals import Proposer
from hivenode.net.messages import ProfileReply, Request, Response
from hivenode.planning.qtable import Experience
from hivenode.spec.job import parse_job

VERSIONS = {
    "member": {"torch": "2.13.0", "scikit-learn": "1.7.0"},
    "alike": {"torch": "2.13.1", "scikit-learn": "1.7.0"},
    "other": {"torch": "2.9.0", "scikit-learn": "1.7.0"},
    "lacking": {"torch": "2.13.0"},
}


async def test_a_newcomer_has_what_the_job_takes_and_the_framework_in_the_same_version() -> None:
    async def call(node: str, request: Request, seconds: float) -> Response:
        return ProfileReply(1e9, 1 << 33, 2, 1e8, ("torch",), 0, versions=VERSIONS[node])

    proposer = Proposer(
        me="member", call=call, workers=lambda: tuple(VERSIONS), name=str, latency=lambda node: None,
        experience=Experience(),
    )  # fmt: skip
    job = parse_job({"name": "digits"})
    assert await proposer.newcomers(job, ["alike", "other", "lacking"], beside="member") == ["alike"]


async def test_a_job_waits_for_a_node_that_still_reads_what_it_may_take_part_with() -> None:
    async def call(node: str, request: Request, seconds: float) -> Response:
        return ProfileReply(1e9, 1 << 33, 2, 1e8, ("torch",), 0, looking=("private:visits",) if node == "slow" else ())

    proposer = Proposer(
        me="quick", call=call, workers=lambda: ("quick", "slow"), name=str, latency=lambda node: None,
        experience=Experience(),
    )  # fmt: skip
    job = {"name": "x", "data": {"source": "private:visits"}}
    with pytest.raises(Unavailable, match=r"private:visits on slow is still being read"):
        await proposer.propose(parse_job(job), salt="")
    for other in ({"placement": {"nodes": ["quick"]}}, {"data": {"source": "private:others"}}):
        with pytest.raises(Unavailable, match="No node that answers has private:"):
            await proposer.propose(parse_job(job | other), salt="")
