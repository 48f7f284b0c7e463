"""What a wrong file is called: reading TOML, and pydantic's findings as sentences a person can act on."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hivenode.errors import InvalidInput, NotFound


def read_toml(path: Path, what: str, *, missing_fix: str) -> dict[str, Any]:
    """Decode a TOML file.

    Args:
        what: what the file is, for the sentence ("the job file").

    Raises:
        NotFound: it does not exist; `missing_fix` says what then.
        InvalidInput: it is unreadable, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no {what} {path}.", fix=missing_fix) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The {what} {path} cannot be read: {error}.", fix="Give a readable UTF-8 TOML file."
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}.", fix="Correct that line.") from error


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One clause per wrong field; for an unknown one, the nearest valid name in its section."""
    return "; ".join(_clause(item["loc"], item["type"], item["msg"], root) for item in error.errors())


def _clause(location: tuple[int | str, ...], kind: str, message: str, root: type[BaseModel]) -> str:
    dotted = ".".join(str(part) for part in location if part not in ("literal['auto']", "enum")) or "the whole"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    if kind != "extra_forbidden":
        return f"{dotted}: {message[:1].lower()}{message[1:]}"
    section: Any = root
    for part in location[:-1]:
        field = section.model_fields.get(str(part)) if _is_section(section) else None
        section = field.annotation if field is not None else None
    names = list(section.model_fields) if _is_section(section) else []
    near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"valid names are {', '.join(names)}"
    return f"{dotted}: unknown field, {hint}"


def _is_section(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseModel)
