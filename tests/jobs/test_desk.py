"""Who may order what of whom."""

from __future__ import annotations

import msgspec
import pytest

from hivenode.errors import Refused
from hivenode.hive.roles import Roles
from hivenode.jobs.desk import Desk
from hivenode.net.messages import (
    Adopt,
    Assign,
    LogsReply,
    LogsRequest,
    Message,
    ProfileReply,
    ProfileRequest,
    Standing,
    Stop,
)
from hivenode.spec.events import NodeAdmitted
from hivenode.spec.values import Epoch, Plan, Role, Share, Strategy
from hivenode.trust.authority import Authority
from hivenode.trust.identity import Identity

AUTHORITY = Authority.from_seed(bytes(32))
ME, COORDINATOR, WORKER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))


class Executor:
    """Records the orders that reach it."""

    def __init__(self) -> None:
        self.obeyed: list[Message] = []
        self.running = 2

    async def stop(self, order: Stop) -> Standing:
        self.obeyed.append(order)
        return Standing(job=order.job, attempt=0, state="none")

    assign = adopt = start = stop


class JobLog:
    def write(self, job: str, record: dict[str, object]) -> None:
        raise AssertionError("a request for logs writes nothing")

    async def read(self, job: str, after: int, limit_bytes: int) -> tuple[list[str], int, bool]:
        return [f'{{"job":"{job}"}}'], after + 1, False


def grant(identity: Identity, *roles: Role) -> bytes:
    return AUTHORITY.grant(identity.public_key, "x", roles, serial=1)


@pytest.fixture
def desk() -> tuple[Desk, Executor]:
    roles = Roles(AUTHORITY.public_key, grant(ME, Role.worker))
    roles.apply(COORDINATOR.node_id, 1, NodeAdmitted(grant=grant(COORDINATOR, Role.coordinator)))
    roles.apply(WORKER.node_id, 1, NodeAdmitted(grant=grant(WORKER, Role.worker)))
    executor = Executor()

    async def profile(about: tuple[str, ...]) -> ProfileReply:
        return ProfileReply(1e9, 1 << 30, 2, 1e8, ("torch",), 0)

    made = Desk(
        me=ME.node_id,
        name="me",
        enabled=True,
        max_jobs=4,
        roles=roles,
        executor=executor,  # type: ignore[arg-type]
        worker_host=lambda: "192.0.2.1",
        trusted=("192.0.2.0/24",),
        keeper=None,  # type: ignore[arg-type]
        papers=None,  # type: ignore[arg-type]
        profile=profile,
        job_log=JobLog(),
    )
    return made, executor


def stop(by: Identity) -> Stop:
    return Stop(job="j-1", epoch=Epoch(7, by.node_id), reason="test")


async def test_the_elected_coordinator_is_obeyed(desk: tuple[Desk, Executor]) -> None:
    await desk[0].serve(COORDINATOR.node_id, stop(COORDINATOR))
    assert desk[1].obeyed == [stop(COORDINATOR)]


async def test_nobody_gives_orders_in_anothers_epoch(desk: tuple[Desk, Executor]) -> None:
    with pytest.raises(Refused, match="not its own"):
        await desk[0].serve(WORKER.node_id, stop(COORDINATOR))
    assert not desk[1].obeyed


async def test_a_worker_gives_no_orders_in_an_epoch_of_its_own(desk: tuple[Desk, Executor]) -> None:
    plan = Plan(Strategy.single_node, (Share(ME.node_id, 0, 1.0, 0.1, 1),), 1.0, "because", False, (0, 0, 0, 0), ())
    epoch = Epoch(9, WORKER.node_id)
    for order in (
        stop(WORKER),
        Assign(job="j-1", attempt=1, epoch=epoch, spec=b"{}", plan=plan),
        Adopt(job="j-1", attempt=1, planned=epoch, epoch=epoch),
    ):
        with pytest.raises(Refused):
            await desk[0].serve(WORKER.node_id, order)
    assert not desk[1].obeyed


async def test_a_profile_says_what_runs_and_why_nothing_may(desk: tuple[Desk, Executor]) -> None:

    reply = await desk[0].serve(WORKER.node_id, ProfileRequest())
    assert isinstance(reply, ProfileReply)
    assert (reply.running, reply.paused) == (2, "")
    desk[0]._enabled = False
    reply = await desk[0].serve(WORKER.node_id, ProfileRequest())
    assert isinstance(reply, ProfileReply)
    assert "worker.enabled" in reply.paused


async def test_logs_are_read_by_the_page(desk: tuple[Desk, Executor]) -> None:
    reply = await desk[0].serve(WORKER.node_id, LogsRequest(job="j-1", after=4))
    assert reply == LogsReply(lines=('{"job":"j-1"}',), next=5, more=False)


@pytest.mark.parametrize("job", ["../../etc/passwd", "j/1", "J-1", "j-1\n", "", "j" * 41])
def test_a_job_id_that_could_be_a_path_is_not_decoded(job: str) -> None:
    data = msgspec.msgpack.encode({"t": "logs_req", "job": job})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(data, type=LogsRequest)
