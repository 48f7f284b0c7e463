"""JSON of files nobody vouches for: bounded in size, decoded without objects of its choosing."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from hivenode.errors import Corrupted, Exhausted

Json: TypeAlias = Any
"""None, bool, int, float, str, list or dict with text keys."""
LARGEST = 32 << 20


def parse(raw: bytes, name: str) -> Json:
    """Any JSON value.

    Raises:
        Corrupted: it is no JSON, or nests too deeply.
        Exhausted: it is larger than any header.
    """
    if len(raw) > LARGEST:
        raise Exhausted(f"{name} is a JSON of {len(raw)} bytes.", fix="Give the model's own file.")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise Corrupted(f"{name} is no sound JSON: {why}.", fix="Fetch it again from where it was made.") from None


def table(raw: bytes, name: str) -> dict[str, Json]:
    """A JSON object.

    Raises:
        Corrupted: it is no JSON object.
        Exhausted: it is larger than any header.
    """
    value = parse(raw, name)
    if not isinstance(value, dict):
        raise Corrupted(f"{name} holds no JSON object.", fix="Fetch it again from where it was made.")
    return value


def text(values: Json, key: str) -> str | None:
    """The text at `key`; None if there is none."""
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def whole(values: Json, key: str) -> int | None:
    """The whole number at `key`, if it is a sensible one."""
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def texts(values: Json, key: str) -> list[str]:
    """The texts in the list at `key`."""
    value = values.get(key) if isinstance(values, dict) else None
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []


def inner(values: Json, key: str) -> dict[str, Json]:
    """The object at `key`; {} if there is none."""
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, dict) else {}
