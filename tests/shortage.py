"""A real shortage of memory: processes in a control group of their own, in which the kernel kills when it is full."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

ROOTS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
"""Of version 1 and 2 (cgroups(7))."""


@contextmanager
def memory_for(pids: Sequence[int], more_bytes: int) -> Iterator[Callable[[int], None]]:
    """Let these processes, and what they start, have together so much beside what they hold already; what is given
    changes that. All of them are killed at the end. Skips the test where no such group can be made."""
    group, name = _made()

    def allow(more_bytes: int) -> None:
        (group / name).write_text(str(more_bytes))

    try:
        allow(more_bytes)
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                (group / "cgroup.procs").write_text(str(pid))
        yield allow
    finally:
        _emptied(group)
        group.rmdir()


def _made() -> tuple[Path, str]:
    for root, name in ROOTS:
        group = Path(root, f"hivenode-test-{secrets.token_hex(4)}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / name).exists():
            return group, name
        group.rmdir()
    pytest.skip("no control group with a limit of memory can be made here")


def _emptied(group: Path) -> None:
    while pids := (group / "cgroup.procs").read_text().split():
        left = [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]
        for process in left:
            process.kill()
        psutil.wait_procs(left)
