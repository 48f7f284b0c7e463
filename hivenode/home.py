"""Where a node lives, and what is where in there. The command line asks here too: nothing that is slow to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Home:
    """The folder that holds everything of one node."""

    path: Path

    @property
    def key(self) -> Path:
        return self.path / "key.pem"

    @property
    def current(self) -> Path:
        """Names the hive this node is in."""
        return self.path / "hive"

    @property
    def token(self) -> Path:
        return self.path / "admin.token"

    @property
    def endpoint(self) -> Path:
        """Where the admin endpoint of the running daemon is: {"url", "pid"}."""
        return self.path / "run" / "admin.json"

    def hive(self, hive_id: str) -> Path:
        return self.path / "hives" / hive_id
