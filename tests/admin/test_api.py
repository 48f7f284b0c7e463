"""The endpoint's answers, over real HTTP on loopback."""

from __future__ import annotations

import logging
import socket
from typing import Any

import aiohttp
import msgspec
import pytest

from hivenode.admin.api import MAX_BODY, MAX_PREDICT_BODY, AdminServer
from hivenode.errors import Conflict, Exhausted, InvalidInput
from hivenode.spec.status import JobDetail, JobSummary, Status
from hivenode.spec.values import Role
from tests.admin.memory import MemoryNode, summary

JOB = {"spec": {"name": "digits"}}


async def error_of(response: aiohttp.ClientResponse) -> dict[str, str]:
    answer = await response.json()
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"code", "message", "fix"}
    assert all(answer["error"].values())
    return answer["error"]


async def test_status_and_jobs_are_the_typed_answers(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    node.job_list["j-abcdefghjk"] = summary()
    status = msgspec.json.decode(await (await session.get("/v1/status")).read(), type=Status)
    assert status == node.status()
    jobs = msgspec.json.decode(await (await session.get("/v1/jobs")).read(), type=tuple[JobSummary, ...])
    assert jobs == (summary(),)
    detail = msgspec.json.decode(await (await session.get("/v1/jobs/digits")).read(), type=JobDetail)
    assert detail.summary == summary()
    logs = await (await session.get("/v1/jobs/digits/logs")).json()
    assert logs["missing"] == ["cedar"]


async def test_a_job_is_submitted_planned_and_cancelled(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    response = await session.post("/v1/plan", json=JOB)
    assert (await response.json())["strategy"] == "data_parallel"
    assert not node.job_list
    response = await session.post("/v1/jobs", json=JOB)
    assert response.status == 201
    ref = (await response.json())["summary"]["job"]
    response = await session.post(f"/v1/jobs/{ref}/cancel", json={"reason": "enough"})
    assert (await response.json())["summary"]["state"] == "cancelled"
    assert ("cancel", ref, "enough") in node.asked
    response = await session.post(f"/v1/jobs/{ref}/cancel")
    assert response.status == 409
    assert "already cancelled" in (await error_of(response))["message"]


async def test_the_rest_of_the_verbs(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    response = await session.post("/v1/models/digits:1/predict", json={"inputs": [[0.0] * 64]})
    assert len((await response.json())["outputs"][0]) == 10
    response = await session.post("/v1/invites", json={"uses": 3, "roles": ["worker"]})
    assert response.status == 201
    assert ("invite", (Role.worker,), 3, 3600.0) in node.asked
    assert (await (await session.post("/v1/join", json={"token": "hive1-x"})).json())["members"] == 3
    assert (await session.post("/v1/stop")).status == 202
    assert node.stopping.is_set()


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/jobs", b"{", 400, "not what is expected"),
        ("/v1/jobs", b"[" * 100_000, 400, "not what is expected"),
        ("/v1/jobs", b"{}", 400, "spec"),
        ("/v1/jobs", b'{"spec": {"name": "x", "modle": {}}}', 400, "did you mean 'model'"),
        ("/v1/jobs", b'{"spec": {}, "extra": 1}', 400, "extra"),
        ("/v1/jobs/nope/cancel", b"{}", 404, "no job nope"),
        ("/v1/models/nope/predict", b'{"inputs": [[1]]}', 404, "no model nope"),
        ("/v1/models/digits/predict", b'{"inputs": [["a"]]}', 400, "inputs"),
        ("/v1/invites", b'{"uses": 0}', 400, "uses"),
        ("/v1/invites", b'{"roles": ["king"]}', 400, "king"),
        ("/v1/invites", b'{"expires_seconds": 1e12}', 400, "expires_seconds"),
        ("/v1/join", b'{"token": "bad"}', 400, "not an invite"),
        ("/v1/join", b'{"token": "gone"}', 503, "Nobody"),
        ("/v1/nothing", b"{}", 404, "nothing at /v1/nothing"),
        ("/v1/status", b"{}", 405, "does not take POST"),
    ],
)
async def test_bad_requests_name_the_thing(
    session: aiohttp.ClientSession, path: str, body: bytes, status: int, says: str
) -> None:
    response = await session.post(path, data=body)
    assert response.status == status
    assert says in (await error_of(response))["message"]


async def test_bodies_are_bounded(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    async def endless() -> Any:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b" " * 65536

    for body in (b" " * (MAX_BODY + 1), endless()):
        response = await session.post("/v1/jobs", data=body)
        assert response.status == 413
        assert "over 1024 KiB" in (await error_of(response))["message"]
    row = b"[" + b",".join([b"0.25"] * 400_000) + b"]"
    assert MAX_BODY < len(row) < MAX_PREDICT_BODY
    response = await session.post("/v1/models/digits/predict", data=b'{"inputs":[' + row + b"]}")
    assert response.status == 200
    response = await session.post("/v1/models/digits/predict", data=b" " * (MAX_PREDICT_BODY + 1))
    assert response.status == 413
    assert not any(what[0] == "submit" for what in node.asked)


async def test_errors_of_the_node_keep_their_code(session: aiohttp.ClientSession, node: MemoryNode) -> None:
    node.fails = Exhausted("The disk is full.", fix="Make room.")
    response = await session.get("/v1/jobs")
    assert response.status == 507
    assert await error_of(response) == {"code": "exhausted", "message": "The disk is full.", "fix": "Make room."}


async def test_a_defect_is_logged_under_an_id_and_not_shown(
    session: aiohttp.ClientSession, node: MemoryNode, caplog: pytest.LogCaptureFixture
) -> None:
    node.fails = KeyError("secret detail")
    with caplog.at_level(logging.ERROR, "hivenode"):
        response = await session.get("/v1/jobs")
    assert response.status == 500
    text = str(await error_of(response))
    assert "secret detail" not in text
    number = text.split("Internal error ")[1][:8]
    assert any(getattr(record, "fields", {}).get("id") == number and record.exc_info for record in caplog.records)
    node.fails = None
    assert (await session.get("/v1/jobs")).status == 200


async def test_health_says_why(stranger: aiohttp.ClientSession, node: MemoryNode) -> None:
    response = await stranger.get("/health")
    assert (response.status, await response.json()) == (200, {"status": "ok", "reasons": []})
    node.health = ("cedar is dead: its jobs go on elsewhere.",)
    assert (await stranger.get("/health")).status == 200, "another's machine does not make this one ill"
    node.health, node.healthy = ("There is no coordinator yet.",), False
    response = await stranger.get("/health")
    assert (response.status, await response.json()) == (
        503,
        {"status": "degraded", "reasons": ["There is no coordinator yet."]},
    )


async def test_a_taken_port_is_named(node: MemoryNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"Port {port} on 127.0.0.1") as caught:
            await AdminServer(node, "t", "127.0.0.1", port).start()
    assert "--admin-port" in caught.value.fix


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
async def test_it_listens_on_loopback_only(node: MemoryNode, host: str) -> None:
    with pytest.raises(InvalidInput, match="may only listen on this machine"):
        await AdminServer(node, "t", host, 0).start()
