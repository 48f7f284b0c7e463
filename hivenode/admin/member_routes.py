"""The part of the admin endpoint that is about members."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from hivenode.admin.answers import answer, read
from hivenode.spec.members import MemberService
from hivenode.spec.values import Role

MAX_BODY = 64 * 1024
MAX_REF = 128
WAIT_SECONDS = 1.0


class _Revoke(msgspec.Struct, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class _Grant(msgspec.Struct, forbid_unknown_fields=True):
    roles: tuple[Role, ...]


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    roles: tuple[Role, ...] = (Role.coordinator, Role.worker, Role.submitter)


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class MemberRoutes:
    """Serves a node's `MemberService`."""

    def __init__(self, service: MemberService) -> None:
        self._service = service

    def add_to(self, app: web.Application) -> None:
        add = app.router
        add.add_get("/v1/peers", self._peers)
        add.add_get("/v1/doctor", self._doctor)
        add.add_get("/v1/pair", self._pairing)
        add.add_post("/v1/pair", self._pair)
        add.add_post("/v1/pair/stop", self._stop_pairing)
        add.add_post("/v1/members/{ref}/revoke", self._revoke)
        add.add_post("/v1/members/{ref}/grant", self._grant)
        add.add_post("/v1/members/{ref}/forget", self._forget)

    async def _peers(self, request: web.Request) -> web.Response:
        return answer(self._service.peers())

    async def _doctor(self, request: web.Request) -> web.Response:
        return answer(await self._service.doctor(request.query.get("peer", "")[:MAX_REF]))

    async def _pairing(self, request: web.Request) -> web.Response:
        """`?unlike=STATE` waits up to a second for another state."""
        unlike = request.query.get("unlike", "")[:16]
        return answer(await self._service.pairing(unlike, WAIT_SECONDS))

    async def _pair(self, request: web.Request) -> web.Response:
        body = await read(request, _Pair, MAX_BODY)
        return answer(self._service.pair(body.roles))

    async def _stop_pairing(self, request: web.Request) -> web.Response:
        await read(request, _Nothing, MAX_BODY)
        return answer(self._service.stop_pairing())

    async def _revoke(self, request: web.Request) -> web.Response:
        body = await read(request, _Revoke, MAX_BODY)
        return answer(await self._service.revoke(request.match_info["ref"][:MAX_REF], body.reason))

    async def _grant(self, request: web.Request) -> web.Response:
        body = await read(request, _Grant, MAX_BODY)
        return answer(await self._service.grant(request.match_info["ref"][:MAX_REF], body.roles))

    async def _forget(self, request: web.Request) -> web.Response:
        await read(request, _Nothing, MAX_BODY)
        return answer(await self._service.forget(request.match_info["ref"][:MAX_REF]))
