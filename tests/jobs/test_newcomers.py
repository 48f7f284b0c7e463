"""Who may join an attempt that runs."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest

from hivenode.data.info import DataInfo
from hivenode.errors import Unavailable
from hivenode.jobs.proposals import Proposer
from hivenode.net.messages import Offer, ProfileReply, Request, Response, Unfit
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
        experience=Experience(), reading_seconds=60.0,
    )  # fmt: skip
    job = parse_job({"name": "digits"})
    assert await proposer.newcomers(job, ["alike", "other", "lacking"], beside="member") == ["alike"]


JOB = {"name": "x", "model": {"source": "zoo:mlp"}, "data": {"source": "private:visits"}}
VISITS = DataInfo("private:visits", 100, (3,), 2, ("near", "far"), "classification")


def hive(offers: dict[str, Offer], looking: str = "") -> Proposer:
    """Nodes with what each offers; that named `looking` still reads its private:visits. A job waits a minute for it."""

    async def call(node: str, request: Request, seconds: float) -> Response:
        found = (offers[node],) if node in offers else ()
        reads = ("private:visits",) if node == looking else ()
        return ProfileReply(
            1e9, 1 << 33, 2, 1e8, ("torch",), 0, offers=found, looking=reads, versions=VERSIONS["member"]
        )

    nodes = sorted({*offers, looking} - {""})
    return Proposer(
        me=nodes[0], call=call, workers=lambda: tuple(nodes), name=str, latency=lambda node: None,
        experience=Experience(), reading_seconds=60.0,
    )  # fmt: skip


async def test_a_job_waits_for_a_node_that_still_reads_what_it_may_take_part_with() -> None:
    proposer = hive({"quick": Offer("private:others")}, looking="slow")
    with pytest.raises(Unavailable, match=r"private:visits on slow is still being read") as raised:
        await proposer.propose(parse_job(JOB), salt="")
    assert "at most 60 s" in raised.value.fix
    for other in ({"placement": {"nodes": ["quick"]}}, {"data": {"source": "private:visit"}}):
        with pytest.raises(Unavailable, match="No node that answers has private:"):
            await proposer.propose(parse_job(JOB | other), salt="")


async def test_it_waits_for_a_while_and_then_begins_without_that_node(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real, passed = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + passed[0])
    job = parse_job(JOB)
    there = Offer("private:visits", VISITS, same="a")
    proposer, alone = hive({"one": there, "two": there}, looking="slow"), hive({}, looking="slow")
    for asked in (proposer, alone):
        with pytest.raises(Unavailable, match="still being read"):
            await asked.propose(job, salt="")
    passed[0] = 61.0
    plan = await proposer.propose(job, salt="")
    assert sorted(share.node for share in plan.shares) == ["one", "two"]
    assert plan.reason.endswith("It goes without slow, still reading private:visits after 60 s.")
    assert [node for node in ("one", "slow") if proposer.still_reads(node)] == ["slow"]
    with pytest.raises(Unavailable, match=r"No node that answers has private:visits\. It goes without slow"):
        await alone.propose(job, salt="")
    three = parse_job(JOB | {"placement": {"min_nodes": 3}})
    with pytest.raises(Unavailable, match="still reading private:visits after 60 s"):
        await proposer.propose(three, salt="")


async def test_an_answer_that_is_missed_does_not_make_a_job_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real, passed = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + passed[0])
    there, nodes, silent = Offer("private:visits", VISITS, same="a"), ["one", "slow", "two"], set[str]()

    async def call(node: str, request: Request, seconds: float) -> Response:
        if node in silent:
            raise Unavailable("It does not answer.", fix="Wait.")
        reads = node == "slow"
        return ProfileReply(
            1e9, 1 << 33, 2, 1e8, ("torch",), 0, versions=VERSIONS["member"],
            offers=() if reads else (there,), looking=("private:visits",) if reads else (),
        )  # fmt: skip

    proposer = Proposer(
        me="one", call=call, workers=lambda: tuple(nodes), name=str, latency=lambda node: None,
        experience=Experience(), reading_seconds=60.0,
    )  # fmt: skip
    with pytest.raises(Unavailable, match="still being read"):
        await proposer.propose(parse_job(JOB), salt="")
    silent.add("slow")
    passed[0] = 30.0
    await proposer.profiles()
    silent.clear()
    passed[0] = 61.0
    plan = await proposer.propose(parse_job(JOB), salt="")
    assert plan.reason.endswith("It goes without slow, still reading private:visits after 60 s.")
    nodes.remove("slow")
    await proposer.profiles()
    assert not proposer.still_reads("slow"), "it is no worker any more"


async def test_a_newcomer_has_the_same_kind_of_data() -> None:
    proposer = hive({"member": Offer("private:visits", VISITS, same="a"),
                     "alike": Offer("private:visits", VISITS, same="a"),
                     "odd": Offer("private:visits", VISITS, same="b")})  # fmt: skip
    job = parse_job(JOB)
    assert await proposer.newcomers(job, ["alike", "odd"], beside="member") == ["alike"]


@pytest.mark.parametrize("told", [math.nan, math.inf, -math.inf, 0.0, -1e9, 1e300, 1e-300])
async def test_a_bandwidth_that_makes_no_sense_does_not_spoil_a_plan(told: float) -> None:
    async def call(node: str, request: Request, seconds: float) -> Response:
        reply = ProfileReply(
            1e9, 1 << 33, 2, told, ("torch",), 0, versions=VERSIONS["member"], lines={OTHER[node]: told}
        )
        return msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=ProfileReply)  # as over the wire

    proposer = Proposer(
        me=MEMBERS[0], call=call, workers=lambda: MEMBERS, name=lambda node: node[:3], latency=lambda node: 0.001,
        experience=Experience(), reading_seconds=60.0,
    )  # fmt: skip
    spec = {"name": "digits", "placement": {"strategy": "data_parallel", "min_nodes": 2}}
    plan = await proposer.propose(parse_job(spec), salt="")
    assert len(plan.shares) == 2
    assert 0 < plan.predicted_seconds < math.inf
    for profile in (await proposer.profiles())[0]:
        assert 0 < profile.bandwidth < 1e11


MEMBERS = ("a" * 32, "b" * 32)
OTHER = dict(zip(MEMBERS, reversed(MEMBERS), strict=True))


async def test_who_cannot_read_what_it_would_lend_is_named_and_no_more_of_it_is_told() -> None:
    async def call(node: str, request: Request, seconds: float) -> Response:
        offers = (Offer("private:visits", VISITS, same="a"),) if node in there else ()
        wrong = () if offers else (Unfit("private:visits", "It cannot be read.", "Look there."),)
        usual = VERSIONS["member"]
        return ProfileReply(1e9, 1 << 33, 2, 1e8, ("torch",), 0, offers=offers, unfit=wrong, versions=usual)

    there = {"one", "two"}
    proposer = Proposer(
        me="one", call=call, workers=lambda: ("one", "two", "wrong"), name=str, latency=lambda node: None,
        experience=Experience(), reading_seconds=60.0,
    )  # fmt: skip
    said = "private:visits of wrong cannot be read; the daemon's log there says why."
    assert (await proposer.propose(parse_job(JOB), salt="")).reason.endswith(said)
    there.clear()
    with pytest.raises(Unavailable, match=r"No node can use its private:visits\. one: It cannot be read"):
        await proposer.propose(parse_job(JOB), salt="")
