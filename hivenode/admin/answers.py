"""Bodies of the admin endpoint: bounded and typed in, JSON out; every error in one form."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hivenode.errors import HiveError, InvalidInput, NotFound
from hivenode.logs import get_logger

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_SECONDS = 30.0
GONE = 499
"""Status of an answer that nobody gets any more: who asked has hung up."""

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

log = get_logger("admin")


class TooLarge(InvalidInput):
    """A body is over its bound."""

    http_status = 413


class TooSlow(InvalidInput):
    """A body does not come."""

    http_status = 408


class WrongMethod(InvalidInput):
    """The address exists, but not with this method."""

    http_status = 405


def answer(value: Any, status: int = 200) -> web.Response:
    """A structure as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", charset="utf-8"
    )


def refusal(error: HiveError) -> web.Response:
    return answer({"error": error.to_dict()}, error.http_status)


async def read(request: web.Request, form: type[T], limit: int) -> T:
    """The request's JSON body as `form`; an empty body counts as `{}`.

    Args:
        limit: most bytes.

    Raises:
        TooSlow: it has not come within `BODY_SECONDS`.
        TooLarge: over the limit (refused by its declared length, before it is read, where it declares one).
        InvalidInput: not JSON, or not of that form.
    """
    body = bytearray()
    if (request.content_length or 0) <= limit:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        break
        except TimeoutError:
            raise TooSlow(
                f"The body of {request.path} was not there after {BODY_SECONDS:g} s.",
                fix="Send it at once, in one piece.",
            ) from None
    if len(body) > limit or (request.content_length or 0) > limit:
        raise TooLarge(
            f"The body of {request.path} is over {limit // 1024} KiB.", fix="Send less at once, in several requests."
        )
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(
            f"The body of {request.path} is not what is expected: {error}.", fix="Correct it; see docs/cli.md."
        ) from error


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as `{"error": {"code", "message", "fix"}}`; what nobody foresaw is logged under an id."""
    try:
        return await handler(request)
    except HiveError as error:
        return refusal(error)
    except ConnectionError:
        return web.Response(status=GONE)
    except web.HTTPNotFound:
        return refusal(
            NotFound(f"There is nothing at {request.path[:200]}.", fix="The API is under /v1; see docs/cli.md.")
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return refusal(WrongMethod(f"{request.path[:200]} does not take {request.method}.", fix=f"Use {allowed}."))
    except web.HTTPException as error:
        return refusal(InvalidInput(f"The request is not valid: {error.reason}.", fix="Correct it and send it again."))
    except Exception as error:  # the wall: no defect shows its insides
        number = secrets.token_hex(4)
        log.error("internal error", id=number, method=request.method, path=request.path, exc_info=error)
        return answer(
            {
                "error": {
                    "code": "internal",
                    "message": f"Internal error {number}.",
                    "fix": f"Please report it with the lines of {number} in the daemon's log.",
                }
            },
            500,
        )
