"""The settings of a node: one TOML file, checked before anything starts.

`python -m hivenode.config` prints the file with every setting, its reason and its default.
"""

from hivenode.config.addresses import full_address
from hivenode.config.files import FILE, default_home, load_settings
from hivenode.config.rendering import render
from hivenode.config.settings import DEFAULT_PORT, Settings

__all__ = ["DEFAULT_PORT", "FILE", "Settings", "default_home", "full_address", "load_settings", "render"]
