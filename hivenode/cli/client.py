"""A client of the admin endpoint of the daemon that runs in a home. Plain http.client: it is quick to import."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from hivenode.errors import BY_CODE, HiveError, Refused, Unavailable
from hivenode.home import Home
from hivenode.spec.status import MISSED, Notice

T = TypeVar("T")

GLANCE_SECONDS = 10.0
"""For what a daemon that is well answers at once."""
ANSWER_SECONDS = 90.0
"""Longest wait for an answer: a prediction may have to start a worker first."""
SILENCE_SECONDS = 35.0
"""A stream is kept alive every ten seconds; without a sign for this long it is dead."""
PATIENCE_SECONDS = 30.0
"""How long a follower waits for a daemon that went away."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
MAX_LINE = 1 << 20


class Endpoint(msgspec.Struct, frozen=True):
    """run/admin.json, which the daemon writes when it is ready."""

    url: str
    pid: int


class AdminClient:
    """Asks the daemon of one home. The daemon is looked up anew for each request: it may have been restarted.

    All methods raise Unavailable when no daemon runs, and the HiveError that the daemon answered.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def endpoint(self) -> Endpoint:
        raw = self._read(Home(self.home).endpoint)
        try:
            return msgspec.json.decode(raw, type=Endpoint)
        except msgspec.DecodeError:
            self._nobody()

    def get(self, path: str, form: type[T]) -> T:
        return self._decode(self.ask("GET", path), form)

    def get_if_there(self, path: str, form: type[T]) -> T | None:
        """As `get`; None when the daemon has just gone. For those who `follow`: they hear when it is back, or not."""
        try:
            return self.get(path, form)
        except Unavailable:
            return None

    def post(self, path: str, form: type[T], body: object = None) -> T:
        return self._decode(self.ask("POST", path, body), form)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The JSON answer, undecoded."""
        slow = method != "GET" or path.endswith("/logs")
        connection = self._connect(ANSWER_SECONDS if slow else GLANCE_SECONDS)
        try:
            response = self._request(connection, method, path, b"" if body is None else msgspec.json.encode(body))
            try:
                data = response.read()
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(
                    f"The daemon for {self.home} broke off its answer.", fix="Look at its log; `hivenode status`."
                ) from error
        finally:
            connection.close()
        if response.status >= 400:
            self._raise(data)
        return data

    def follow(self, query: str = "", *, patience: float = PATIENCE_SECONDS) -> Iterator[Notice | None]:
        """What happens, as it happens, and None each time the stream has been (re)connected or something was missed:
        what was asked before that may have changed unnoticed. Of a stream that ends, what was told meanwhile comes
        with the next.

        Args:
            query: narrows it: "?kind=job", "?job=ID".
            patience: how long to wait for a daemon that went away, seconds.
        """
        lost_at: float | None = None
        pause = FIRST_PAUSE_SECONDS
        seen = ""
        while True:
            try:
                for notice in self._stream(query, seen):
                    lost_at, pause = None, FIRST_PAUSE_SECONDS
                    yield notice
                    if notice is not None:
                        seen = notice.id
                        if notice.kind == MISSED:
                            yield None
            except Unavailable:
                now = time.monotonic()
                lost_at = lost_at if lost_at is not None else now
                if now - lost_at >= patience:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _stream(self, query: str, after: str) -> Iterator[Notice | None]:
        connection = self._connect(SILENCE_SECONDS)
        try:
            response = self._request(connection, "GET", f"/v1/events{query}", b"", {"Last-Event-ID": after})
            if response.status >= 400:
                self._raise(response.read(MAX_LINE))
            yield None
            while line := response.readline(MAX_LINE):
                if line.startswith(b"data:"):
                    yield msgspec.json.decode(line[5:], type=Notice)
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            pass  # told below, with the stream's orderly end
        finally:
            connection.close()
        raise Unavailable(f"The daemon for {self.home} has stopped.", fix="Start it again with `hivenode up`.")

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        url = urlsplit(self.endpoint().url)
        return http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=timeout)

    def _request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        more: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        token = self._read(Home(self.home).token).decode("ascii", "replace").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(more or {})}
        try:
            connection.request(method, path, body=body or None, headers=headers)
            return connection.getresponse()
        except TimeoutError:
            raise Unavailable(
                f"The daemon for {self.home} does not answer.", fix="The machine may be overloaded; try again."
            ) from None
        except (OSError, http.client.HTTPException):
            self._nobody()

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except PermissionError:
            raise Refused(
                f"The node in {self.home} belongs to another user.",
                fix="Run this as that user (for the service: `sudo -u hivenode hivenode ...`).",
            ) from None
        except OSError:
            self._nobody()

    def _nobody(self) -> NoReturn:
        raise Unavailable(f"No daemon is running for {self.home}.", fix="Start one with `hivenode up`.") from None

    def _raise(self, data: bytes) -> NoReturn:
        try:
            told = msgspec.json.decode(data, type=dict[str, dict[str, str]])["error"]
        except (msgspec.DecodeError, KeyError):
            raise Unavailable(
                f"What answers for {self.home} is not its daemon.", fix="Restart the daemon: `hivenode up`."
            ) from None
        raise BY_CODE.get(told.get("code", ""), HiveError)(
            told.get("message", "Unknown error."), fix=told.get("fix", "Look at the daemon's log.")
        )

    def _decode(self, data: bytes, form: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=form)
        except msgspec.DecodeError as error:
            raise Unavailable(
                f"The daemon for {self.home} gave an answer this version does not understand: {error}.",
                fix="It runs another version: restart it with `hivenode down` and `hivenode up`.",
            ) from error


def segment(value: Any) -> str:
    """A value as one part of a path."""
    return quote(str(value), safe="")
