"""The node's key is in the memory of its daemon, into which nobody else may look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.machines import CONFIG

DAEMON = """
import ctypes, os, signal, sys
from pathlib import Path

from hivenode.daemon import run


def on_ready(status):
    print("dumpable:", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
    os.kill(os.getpid(), signal.SIGTERM)


sys.exit(run(Path(sys.argv[1]), on_ready=on_ready))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it cannot be asked for")
def test_a_daemon_is_not_dumpable(tmp_path: Path) -> None:
    (tmp_path / "hivenode.toml").write_text(CONFIG.format(name="ash", listen="127.0.0.1", port=0, discovery="false"))
    command = [sys.executable, "-P", "-c", DAEMON, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "dumpable: 0\n"), done.stderr
