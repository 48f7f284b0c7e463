from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hivenode.errors import Conflict, InvalidInput
from hivenode.store.lock import HomeLock

HOLDING = """
import sys, time
from pathlib import Path
from hivenode.store.lock import HomeLock
with HomeLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_daemon_is_told_who_has_the_home(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Conflict) as caught:
        HomeLock(tmp_path).acquire()
    assert str(tmp_path) in caught.value.sentence
    assert f"process {child.pid} " in caught.value.sentence
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with HomeLock(tmp_path):  # a killed daemon leaves nothing to clean up
        assert (tmp_path / "daemon.lock").read_text().strip() == str(os.getpid())


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    with HomeLock(tmp_path), pytest.raises(Conflict):
        HomeLock(tmp_path).acquire()
    with HomeLock(tmp_path):
        pass


def test_a_home_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        HomeLock(tmp_path / "nowhere").acquire()
