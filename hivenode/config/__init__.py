"""The settings of a node: one TOML file, checked before anything starts.

`python -m hivenode.config` prints the file with every setting, its reason and its default.
"""

from hivenode.config.addresses import full_address
from hivenode.config.files import FILE, load_settings
from hivenode.config.rendering import render
from hivenode.config.settings import DEFAULT_PORT, Settings

__all__ = ["DEFAULT_PORT", "FILE", "Settings", "full_address", "load_settings", "render"]
