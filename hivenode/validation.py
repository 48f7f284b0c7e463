"""What a wrong file is called: reading TOML, and pydantic's findings as sentences a person can act on."""

from __future__ import annotations

import difflib
import re
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
    """One clause per wrong field, to the end of the sentence; for an unknown name or choice, the nearest valid one."""
    clauses: list[str] = []
    choices: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    for item in error.errors():
        if item["type"] in ("literal_error", "enum"):
            # A union of choices is several errors about one field: told as one.
            field = _dotted(item["loc"])
            given[field] = item["input"]
            choices.setdefault(field, []).extend(re.findall(r"'([^']*)'", item.get("ctx", {}).get("expected", "")))
        else:
            clauses.append(_clause(item["loc"], item["type"], item["msg"], root))
    told = "; ".join(clauses + [_choice(field, given[field], names) for field, names in choices.items()])
    return told if told.endswith("?") else f"{told}."


def _choice(field: str, given: object, names: list[str]) -> str:
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose {', '.join(names)}"
    return f"{field}: {str(given)[:40]!r} is not a choice, {hint}"


def _dotted(location: tuple[int | str, ...]) -> str:
    """The field as a person writes it; pydantic adds the branch of a union, which nobody has written."""
    named = [str(part) for part in location if "[" not in str(part) and part not in ("enum", "literal")]
    return ".".join(named) or "the whole"


def _clause(location: tuple[int | str, ...], kind: str, message: str, root: type[BaseModel]) -> str:
    dotted = _dotted(location)
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
