"""Printing a job's log lines, each once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from hivenode.cli.output import clean
from hivenode.spec.status import JobLogs

_SHOWN = ("time", "level", "node", "job", "event")


class Logbook:
    """Remembers what it printed, for as long as the daemon's answers hold it."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed: dict[bytes, None] = {}

    def print(self, logs: JobLogs) -> None:
        known, self._printed = self._printed, {}
        for line in logs.lines:
            raw = msgspec.json.encode(line)
            self._printed[raw] = None
            if raw not in known:
                sys.stdout.write((raw.decode() if self._as_json else text(line)) + "\n")
        sys.stdout.flush()


def text(line: Mapping[str, Any]) -> str:
    """`14:03:22.120 info birch: started  pid=7`."""
    moment = float(line.get("time", 0.0))
    clock = time.strftime("%H:%M:%S", time.localtime(moment))
    said = {key: value for key, value in line.items() if key not in _SHOWN and value is not None}
    fields = " ".join(f"{key}={f'{v:.4g}' if isinstance(v, float) else v}" for key, v in said.items())
    head = f"{clock}.{int(moment % 1 * 1000):03d} {line.get('level', 'info'):7} {line.get('node')}: {line.get('event')}"
    return clean(f"{head}  {fields}" if fields else head)
