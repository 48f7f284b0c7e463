"""The local admin endpoint: REST under /v1 for the node's own person, on loopback only."""

from __future__ import annotations

import asyncio
import errno
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from hivenode.admin import metrics
from hivenode.admin.answers import HEADERS, Handler, answer, errors, read
from hivenode.admin.auth import check, check_loopback, shows
from hivenode.admin.doorstep import Bounds, Doorstep
from hivenode.admin.events import KEEP_ALIVE_SECONDS, Streams
from hivenode.admin.member_routes import MemberRoutes
from hivenode.errors import Conflict, InvalidInput
from hivenode.net.http_log import sparing_logger
from hivenode.spec.status import NodeService
from hivenode.spec.values import Role

MAX_BODY = 1024 * 1024
MAX_PREDICT_BODY = 16 * 1024 * 1024
MAX_INVITE_SECONDS = 366 * 86400.0
SHUTDOWN_SECONDS = 2.0
BACKLOG = 64


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Wish(_Body):
    spec: dict[str, Any]


class _Cancel(_Body):
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = "cancelled by a person"


class _Predict(_Body):
    inputs: list[list[float]] = []
    texts: Annotated[list[str], msgspec.Meta(max_length=4096)] = []
    continue_tokens: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0


class _Invite(_Body):
    roles: tuple[Role, ...] = (Role.coordinator, Role.worker, Role.submitter)
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    expires_seconds: Annotated[float, msgspec.Meta(gt=0, le=MAX_INVITE_SECONDS)] = 3600.0


class _Join(_Body):
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _PairWith(_Body):
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    address: Annotated[str, msgspec.Meta(max_length=256)] = ""


class _Nothing(_Body):
    pass


class Health(msgspec.Struct, frozen=True):
    """Answer of /health."""

    status: Literal["ok", "degraded"]
    reasons: tuple[str, ...]


class AdminServer:
    """Serves a node's service over HTTP on loopback.

    Args:
        token: what a request has to bring for everything but `auth.OPEN`.
        host: a loopback address.
        port: 0 lets the system choose.
        keep_alive_seconds: of the event stream.
    """

    def __init__(
        self,
        service: NodeService,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        bounds: Bounds | None = None,
    ) -> None:
        self._service = service
        self._token = token
        self._host = host
        self._port = port
        self._bounds = bounds or Bounds()
        self._doorstep = Doorstep(self._bounds.strangers)
        self._streams = Streams(service, keep_alive_seconds)
        self._metrics = metrics.registry(service)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; returns the URL. Raises Conflict when the port is taken, InvalidInput when it is not loopback."""
        check_loopback(self._host)
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=sparing_logger("admin"),
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=self._bounds.head_seconds,
            max_line_size=self._bounds.line_bytes,
            max_field_size=self._bounds.line_bytes,
            max_headers=self._bounds.headers,
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                lambda: self._doorstep.watched(server()), self._host, self._port, backlog=BACKLOG
            )
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    f"Port {self._port} on {self._host}, meant for the admin endpoint, is taken.",
                    fix="Stop what uses it, or choose another with --admin-port (0: any free one).",
                ) from None
            raise InvalidInput(
                f"The admin endpoint cannot listen on {self._host}, port {self._port}: {error.strerror or error}.",
                fix="Correct admin.host and admin.port in the configuration.",
            ) from error
        self._runner = runner
        host, port = self._listening.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """End the streams, let running answers out, close. Does nothing when it never started."""
        if self._runner is not None:
            if self._listening is not None:
                self._listening.close()
            self._streams.close()
            await self._runner.cleanup()
            self._runner = None

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[errors, self._guard])
        app.on_response_prepare.append(_add_headers)
        add = app.router
        add.add_get("/health", self._health)
        add.add_get("/metrics", self._render_metrics)
        add.add_get("/v1/status", self._status)
        add.add_get("/v1/events", self._streams.serve)
        add.add_get("/v1/jobs", self._jobs)
        add.add_post("/v1/jobs", self._submit)
        add.add_get("/v1/jobs/{ref}", self._job)
        add.add_get("/v1/jobs/{ref}/logs", self._logs)
        add.add_post("/v1/jobs/{ref}/cancel", self._cancel)
        add.add_post("/v1/plan", self._plan)
        add.add_get("/v1/capacity", self._capacity)
        add.add_get("/v1/models", self._models)
        add.add_post("/v1/models/{name}/predict", self._predict)
        add.add_post("/v1/invites", self._invite)
        add.add_post("/v1/join", self._join)
        add.add_post("/v1/pair/join", self._pair_with)
        add.add_post("/v1/stop", self._stop)
        MemberRoutes(self._service.members).add_to(app)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        check(
            "GET" if request.method == "HEAD" else request.method,
            request.path,
            host=request.headers.get("Host", ""),
            origin=request.headers.get("Origin"),
            authorization=request.headers.get("Authorization", ""),
            token=self._token,
        )
        if shows(request.headers.get("Authorization", ""), self._token):
            self._doorstep.known(request)
        return await handler(request)

    # --- how it is --------------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        status = self._service.status()
        return answer(
            Health("ok" if status.healthy else "degraded", status.health), status=200 if status.healthy else 503
        )

    async def _render_metrics(self, request: web.Request) -> web.Response:
        body, content_type = metrics.render(self._metrics, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.Request) -> web.Response:
        return answer(self._service.status())

    # --- jobs -------------------------------------------------------------------------------------------------

    async def _jobs(self, request: web.Request) -> web.Response:
        return answer(self._service.jobs())

    async def _job(self, request: web.Request) -> web.Response:
        return answer(self._service.job(request.match_info["ref"]))

    async def _submit(self, request: web.Request) -> web.Response:
        wish = await read(request, _Wish, MAX_BODY)
        return answer(await self._service.submit(wish.spec), status=201)

    async def _cancel(self, request: web.Request) -> web.Response:
        body = await read(request, _Cancel, MAX_BODY)
        return answer(await self._service.cancel(request.match_info["ref"], body.reason))

    async def _plan(self, request: web.Request) -> web.Response:
        wish = await read(request, _Wish, MAX_BODY)
        return answer(await self._service.plan(wish.spec))

    async def _capacity(self, request: web.Request) -> web.Response:
        return answer(await self._service.capacity())

    async def _logs(self, request: web.Request) -> web.Response:
        return answer(await self._service.logs(request.match_info["ref"]))

    # --- models -----------------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        return answer(self._service.models())

    async def _predict(self, request: web.Request) -> web.Response:
        body = await read(request, _Predict, MAX_PREDICT_BODY)
        name = request.match_info["name"]
        return answer(await self._service.predict(name, body.inputs, body.texts, body.continue_tokens))

    # --- the hive ---------------------------------------------------------------------------------------------

    async def _invite(self, request: web.Request) -> web.Response:
        body = await read(request, _Invite, MAX_BODY)
        return answer(await self._service.invite(body.roles, body.uses, body.expires_seconds), status=201)

    async def _join(self, request: web.Request) -> web.Response:
        body = await read(request, _Join, MAX_BODY)
        return answer(await self._service.join(body.token))

    async def _pair_with(self, request: web.Request) -> web.Response:
        body = await read(request, _PairWith, MAX_BODY)
        return answer(await self._service.pair_with(body.code, body.address))

    async def _stop(self, request: web.Request) -> web.Response:
        await read(request, _Nothing, MAX_BODY)
        await self._service.request_stop()
        return answer({"stopping": True}, status=202)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
