"""Who is let in."""

from __future__ import annotations

import aiohttp
import pytest

from hivenode.admin.auth import Unauthorized, check, is_local
from tests.admin.memory import MemoryNode

PROTECTED = [
    *[
        ("GET", path)
        for path in ("/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/logs", "/v1/models", "/v1/events", "/v1/nothing")
    ],
    *[("POST", path) for path in ("/v1/jobs", "/v1/plan", "/v1/jobs/x/cancel", "/v1/models/x/predict", "/v1/invites")],
    *[("POST", path) for path in ("/v1/join", "/v1/stop", "/v1/status")],
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_the_token_nothing_is_done(
    stranger: aiohttp.ClientSession, node: MemoryNode, method: str, path: str
) -> None:
    for authorization in (None, "Bearer wrong", "Bearer ", "Basic correct-horse-battery-staple", "Bearer \u00e9"):
        headers = {} if authorization is None else {"Authorization": authorization}
        response = await stranger.request(method, path, headers=headers, json={"token": "x"})
        assert response.status == 401
        error = (await response.json())["error"]
        assert error["code"] == "refused"
        assert "admin.token" in error["fix"]
    assert node.asked == []


def test_a_token_that_is_no_text_is_a_wrong_one() -> None:
    with pytest.raises(Unauthorized):
        check("GET", "/v1/jobs", host="localhost", origin=None, authorization="Bearer \udcff", token="t")


@pytest.mark.parametrize("path", ["/health", "/v1/status", "/metrics"])
async def test_how_the_node_is_may_be_read_by_anyone_here(stranger: aiohttp.ClientSession, path: str) -> None:
    assert (await stranger.get(path)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "a@b"])
async def test_a_rebound_name_is_refused(session: aiohttp.ClientSession, node: MemoryNode, host: str) -> None:
    for path in ("/health", "/v1/status", "/v1/jobs"):
        response = await session.get(path, headers={"Host": host})
        assert response.status == 403
        assert "Host header" in (await response.json())["error"]["message"]
    assert node.asked == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8", "127.0.0.1", "127.0.0.1:7421", "[::1]", "[::1]:7421"])
def test_names_of_this_machine(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["", ":", "::1", "localhost:", "localhost:x", "[::2]", "127.0.0.2", "0.0.0.0"])
def test_not_names_of_this_machine(host: str) -> None:
    assert is_local(host) == (host == "localhost:")


async def test_pages_from_elsewhere_are_refused(session: aiohttp.ClientSession) -> None:
    for origin in ("https://evil.example", "null", "file://", "http://127.0.0.1.evil.example", "http://["):
        response = await session.get("/v1/status", headers={"Origin": origin})
        assert response.status == 403, origin
    for origin in ("http://localhost:7421", "http://127.0.0.1:9", "http://[::1]:9"):
        response = await session.get("/v1/status", headers={"Origin": origin})
        assert response.status == 200, origin
        assert "Access-Control-Allow-Origin" not in response.headers
