"""How the settings are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hivenode.config.settings import Settings
from hivenode.errors import InvalidInput, NotFound
from hivenode.validation import explain, read_toml

FILE = "hivenode.toml"


def load_settings(
    home: Path, config_file: Path | None = None, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> Settings:
    """Read and check the settings.

    Args:
        config_file: read this one; without it `home/hivenode.toml` is read if it is there, else all is default.
        overrides: from the command line, by section; they beat the file.

    Raises:
        InvalidInput: a file that is missing, unreadable or not TOML, or a wrong or unknown field, with the file, the
            field and, for an unknown one, the nearest valid name.
    """
    path = config_file or home / FILE
    data: dict[str, Any] = {}
    if config_file is not None or path.exists():
        try:
            data = read_toml(path, "configuration file", missing_fix="")
        except NotFound as error:
            raise InvalidInput(error.sentence, fix="Check --config, or leave it out for the defaults.") from None
    settings = _checked(data, str(path))
    if not overrides:
        return settings
    merged = {**data}
    for section, values in overrides.items():
        merged[section] = {**merged.get(section, {}), **values}
    return _checked(merged, "the command line")


def _checked(data: Mapping[str, Any], where: str) -> Settings:
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise InvalidInput(
            f"The configuration in {where} is not valid: {explain(error, Settings)}",
            fix="Correct the fields named; `python -m hivenode.config` prints every valid one.",
        ) from error
