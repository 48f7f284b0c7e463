"""The systemd unit, judged by systemd itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
MOST_EXPOSURE = 20
"""Of 100, as `systemd-analyze security` counts."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine."""
    text = (UNITS / "hivenode.service").read_text()
    path = tmp_path / "hivenode.service"
    path.write_text(text.replace("/opt/hivenode/bin/hivenode", sys.executable))
    return path


def verify(unit: Path) -> str:
    """What is wrong with this unit (and not with others of this machine)."""
    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    return "\n".join(line for line in done.stderr.splitlines() if "hivenode" in line)


def test_the_unit_is_valid(unit: Path) -> None:
    assert verify(unit) == ""
    unit.write_text(unit.read_text() + "[Service]\nNoSuchSetting=1\n")
    assert "NoSuchSetting" in verify(unit)


def test_it_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout


def test_the_gpu_drop_in_is_valid(unit: Path) -> None:
    drop_in = unit.with_suffix(".service.d")
    drop_in.mkdir()
    shutil.copy(UNITS / "gpu.conf", drop_in)
    assert verify(unit) == ""
