"""Where a node lives. The command line asks here too: nothing that is slow to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """$HIVENODE_HOME, else the state directory of the systemd service, else ~/.hivenode."""
    if chosen := environment.get("HIVENODE_HOME"):
        return Path(chosen).expanduser().absolute()
    # A shell inside some other service inherits that one's state directory: only our own counts.
    state = environment.get("STATE_DIRECTORY", "").split(":")[0]
    if state and Path(state).name == "hivenode":
        return Path(state)
    return Path.home() / ".hivenode"
