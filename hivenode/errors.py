"""Errors a person may see: a stable code, one sentence that names the thing, and what to do about it.

Everything a user can cause ends in one of these; anything else that escapes is a defect. Each class owns one
process exit code (documented in docs/cli.md) and one HTTP status.
"""

from __future__ import annotations

from typing import ClassVar


class HiveError(Exception):
    """Base of all errors meant for people.

    Args:
        sentence: what went wrong, naming the thing (file, field, node, port).
        fix: what the person can do about it.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, sentence: str, *, fix: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.sentence} {self.fix}"

    def to_dict(self) -> dict[str, str]:
        """JSON form used by the admin API and `--json`."""
        return {"code": self.code, "message": self.sentence, "fix": self.fix}


class JobFailed(HiveError):
    """A job ended without a model."""

    code = "job_failed"
    exit_code = 1


class InvalidInput(HiveError):
    """A file, field or argument the person gave is wrong."""

    code = "invalid_input"
    exit_code = 2
    http_status = 400


class NotFound(HiveError):
    """The named thing does not exist."""

    code = "not_found"
    exit_code = 3
    http_status = 404


class Refused(HiveError):
    """Trust, role or policy forbids it."""

    code = "refused"
    exit_code = 4
    http_status = 403


class Unavailable(HiveError):
    """Nobody who could do it can be reached now."""

    code = "unavailable"
    exit_code = 5
    http_status = 503


class Conflict(HiveError):
    """Something else holds the place: a second daemon, a port, a finished job."""

    code = "conflict"
    exit_code = 6
    http_status = 409


class Exhausted(HiveError):
    """Disk, memory or a bound has run out."""

    code = "exhausted"
    exit_code = 7
    http_status = 507


class Corrupted(HiveError):
    """Stored or received bytes are not what their checksum or signature says."""

    code = "corrupted"
    exit_code = 8
    http_status = 500


BY_CODE: dict[str, type[HiveError]] = {
    kind.code: kind
    for kind in (JobFailed, InvalidInput, NotFound, Refused, Unavailable, Conflict, Exhausted, Corrupted)
}


def from_dict(data: dict[str, str]) -> HiveError:
    """Rebuild an error that another process reported; an unknown code becomes the base class."""
    kind = BY_CODE.get(data.get("code", ""), HiveError)
    return kind(data.get("message", "Unknown error."), fix=data.get("fix", "Look at the daemon's log."))
