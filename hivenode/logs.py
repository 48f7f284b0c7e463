"""Structured logs on the standard library: an event in plain words, and fields.

    log = get_logger("jobs")
    log.info("worker exited", job=job, pid=pid)

    with bind(job=job, attempt=1):      # on every line from here, also of tasks started inside
        log.info("started")

On a terminal a line is text; elsewhere it is one JSON object. Fields often come from other machines, so nothing
in them can break out of its line or reach the terminal as a control sequence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TextIO

ROOT = "hivenode"

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "text"]

_context: ContextVar[Mapping[str, object]] = ContextVar("hivenode_log_fields", default=MappingProxyType({}))
_RESERVED = frozenset(("at", "level", "logger", "event", "error_trace"))
_PLAIN_WORD = re.compile(r"[\w.:/@+,\-]+", re.ASCII)
_DEPTH = 6


class Log:
    """A named logger whose calls take fields. Of fields with one name the call's counts, then the one bound here,
    then the context's."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: object) -> Log:
        """The same logger with these fields on every line."""
        return Log(self._logger, {**self._fields, **fields})

    def debug(self, event: str, /, *, exc_info: Any = None, **fields: object) -> None:
        self._write(logging.DEBUG, event, exc_info, fields)

    def info(self, event: str, /, *, exc_info: Any = None, **fields: object) -> None:
        self._write(logging.INFO, event, exc_info, fields)

    def warning(self, event: str, /, *, exc_info: Any = None, **fields: object) -> None:
        self._write(logging.WARNING, event, exc_info, fields)

    def error(self, event: str, /, *, exc_info: Any = None, **fields: object) -> None:
        """`exc_info`: True (inside an except block) or an exception, to add its trace."""
        self._write(logging.ERROR, event, exc_info, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the trace of the exception being handled."""
        self._write(logging.ERROR, event, True, fields)

    def _write(self, level: int, event: str, exc_info: Any, fields: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**_context.get(), **self._fields, **fields}
            self._logger.log(level, "%s", event, exc_info=exc_info, extra={"fields": merged}, stacklevel=3)


def get_logger(name: str) -> Log:
    """The logger of one part of the program; its standard name is `hivenode.NAME`."""
    return Log(logging.getLogger(f"{ROOT}.{name}"), {})


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Put fields on every line logged inside, by whatever part."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:
    """Send all logs of this process to one stream. Calling it again replaces what it set before.

    Args:
        level: lowest level of hivenode's own lines; libraries speak from `warning` up.
        format: `auto` is `text` on a terminal and `json` elsewhere.
        stream: default standard error.
    """
    stream = stream if stream is not None else sys.stderr
    if format == "auto":
        format = "text" if stream.isatty() else "json"
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Marks what `configure` installed."""


class JsonFormatter(logging.Formatter):
    """One line: `at` (UTC, ISO 8601), `level`, `logger`, `event`, the fields, `error_trace` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix(f"{ROOT}."),
            "event": record.getMessage(),
        }
        for key, value in _fields(record).items():
            line[f"{key}_" if key in _RESERVED else key] = value
        if record.exc_info:
            line["error_trace"] = self.formatException(record.exc_info)
        return to_json(line)


class TextFormatter(logging.Formatter):
    """`14:03:22.120 warning jobs: worker exited  job=j-1 pid=7` in local time, a trace on the lines below."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix(f"{ROOT}.")
        words = [
            f"{clock}.{int(record.msecs):03d} {record.levelname.lower():7} {name}: {_printable(record.getMessage())}"
        ]
        words += [f"{_printable(key)}={_word(value)}" for key, value in _fields(record).items()]
        text = words[0] + ("  " + " ".join(words[1:]) if words[1:] else "")
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            text += "".join(f"\n    {_printable(line)}" for line in trace)
        return text


def to_json(line: Mapping[str, object]) -> str:
    """One line of ASCII JSON; what JSON has no form for becomes text."""
    return json.dumps(_plain(line, _DEPTH), allow_nan=False, separators=(",", ":"))


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _utc(seconds: float) -> str:
    whole = math.floor(seconds)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{stamp}.{int((seconds - whole) * 1000):03d}Z"


def _plain(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.hex()
    if depth > 0 and isinstance(value, Mapping):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if depth > 0 and isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    return str(value)


def _word(value: object) -> str:
    plain = _plain(value, _DEPTH)
    if isinstance(plain, str):
        return plain if _PLAIN_WORD.fullmatch(plain) else json.dumps(plain)
    return json.dumps(plain)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class JobLogFile:
    """What was said about each job, on disk: JSON lines, bounded. Never raises because of the disk: when lines
    cannot be kept, the daemon's log says so once.

    A job's lines are numbered from 1. `NAME.<first>.jsonl` begins with the line after `first`; a full file is
    followed by a new one, and only the newest two are kept.

    Args:
        directory: made when needed.
        job_bytes: most that one job's files may take.
        total_bytes: most that all may take, over which the logs of the jobs longest silent are deleted.
    """

    LINE_CHARACTERS = 8000
    """Longest line; longer values are cut. (A line has to fit into `LogsReply`.)"""
    PAGE_LINES = 1000

    def __init__(self, directory: Path, *, job_bytes: int = 4 << 20, total_bytes: int = 256 << 20) -> None:
        self._directory = directory
        self._file_bytes = max(job_bytes // 2, 2 * self.LINE_CHARACTERS)
        self._total_bytes = max(total_bytes, 2 * self._file_bytes)
        self._open: dict[str, _Tail] = {}
        self._lost = 0

    def write(self, job: str, record: Mapping[str, object]) -> None:
        """Append a line. It reaches the disk when the system writes it back: logs are not facts."""
        line = self._line(record).encode() + b"\n"
        try:
            tail = self._tail(job)
            if tail.size and tail.size + len(line) > self._file_bytes:
                tail = self._rotate(job, tail)
            with tail.path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):
                    file.truncate(tail.size)  # half a line would swallow the next one
                    raise OSError("short write, the disk is full")
        except OSError as error:
            self._open.pop(_file_name(job), None)
            self._lost += 1
            if self._lost == 1:
                get_logger("logs").error("job log lines are being lost", directory=self._directory, reason=str(error))
            return
        tail.size += len(line)
        tail.lines += 1
        self._lost = 0

    def read(self, job: str, after: int, limit_bytes: int) -> tuple[Sequence[str], int, bool]:
        """Lines that follow line number `after` (0: from the first that is kept), at least one if there is any.

        Args:
            limit_bytes: stop before this size, or at `PAGE_LINES` lines.

        Returns:
            the lines, the number to go on after, and whether more are there already.
        """
        lines: list[str] = []
        size, number = 0, 0
        for path in self._files(_file_name(job)):
            number = max(number, _first(path))
            try:
                with path.open("rb") as file:
                    for raw in file:
                        number += 1
                        if number <= after or not raw.endswith(b"\n"):
                            continue
                        size += len(raw)
                        if lines and (size > limit_bytes or len(lines) >= self.PAGE_LINES):
                            return lines, number - 1, True
                        lines.append(raw[:-1].decode(errors="replace"))
            except FileNotFoundError:
                continue  # rotated away meanwhile
        return lines, number, False

    def _line(self, record: Mapping[str, object]) -> str:
        text = to_json(record)
        if len(text) <= self.LINE_CHARACTERS:
            return text
        share = self.LINE_CHARACTERS // (8 * max(1, len(record)))
        short = {str(key)[:64]: _cut(value, share) for key, value in list(record.items())[:32]}
        text = to_json({**short, "cut": True})
        if len(text) <= self.LINE_CHARACTERS:
            return text
        return to_json({"event": _cut(record.get("event", ""), share), "cut": True})

    def _tail(self, job: str) -> _Tail:
        name = _file_name(job)
        tail = self._open.pop(name, None)
        if tail is None or not tail.path.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = self._files(name)
            if files:
                tail = _reopen(files[-1])
            else:
                self._make_room()
                lines = tail.lines if tail is not None else 0  # forgotten meanwhile: its numbers go on
                tail = _Tail(self._directory / f"{name}.{lines}.jsonl", 0, lines)
        self._open[name] = tail  # now the youngest
        if len(self._open) > 64:
            del self._open[next(iter(self._open))]
        return tail

    def _rotate(self, job: str, tail: _Tail) -> _Tail:
        name = _file_name(job)
        for old in self._files(name)[:-1]:
            old.unlink(missing_ok=True)
        self._make_room()
        self._open[name] = tail = _Tail(self._directory / f"{name}.{tail.lines}.jsonl", 0, tail.lines)
        return tail

    def _make_room(self) -> None:
        """Delete the longest silent files until a new one fits."""
        files = sorted(
            (stat.st_mtime, path, stat.st_size) for path in self._directory.glob("*.jsonl") if (stat := path.stat())
        )
        total = sum(size for _, _, size in files) + self._file_bytes
        for _, path, size in files:
            if total <= self._total_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _files(self, name: str) -> list[Path]:
        """A job's files, oldest first."""
        found = [path for path in self._directory.glob(f"{name}.*.jsonl") if path.name.split(".")[1].isdecimal()]
        return sorted(found, key=_first)


class _Tail:
    """The file a job's lines go to. `lines` counts all lines of the job so far."""

    __slots__ = ("lines", "path", "size")

    def __init__(self, path: Path, size: int, lines: int) -> None:
        self.path = path
        self.size = size
        self.lines = lines


def _reopen(path: Path) -> _Tail:
    """The end of a file from an earlier run, less a last line that was torn by a crash."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return _Tail(path, whole, _first(path) + data.count(b"\n"))


def _file_name(job: str) -> str:
    """Job ids come from other machines too: whatever is not plainly a name is hashed."""
    return (
        job if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", job) else hashlib.sha256(job.encode(errors="replace")).hexdigest()
    )


def _first(path: Path) -> int:
    return int(path.name.split(".")[1])


def _cut(value: object, characters: int) -> object:
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    return text if len(text) <= characters else text[:characters] + "..."
