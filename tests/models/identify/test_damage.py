"""Every sample damaged, in a process with little memory and a deadline: a few ways a day, all of them in long runs."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.identify.damage import GROUPS

TODAY = os.environ.get("HIVENODE_SEED", str(datetime.datetime.now(tz=datetime.UTC).toordinal()))
"""HIVENODE_SEED repeats another day's."""
ROOT = Path(__file__).parents[3]


def damage(*arguments: str) -> str:
    """What the process complains of."""
    command = [sys.executable, "-m", "tests.models.identify.damage", "--seed", TODAY, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + (done.stderr if done.returncode > 1 else "")


def test_damaged_samples_get_clean_answers() -> None:
    assert damage("--each", "4") == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", GROUPS)
def test_samples_cut_everywhere_get_clean_answers(group: str) -> None:
    assert damage("--every", group) == ""
