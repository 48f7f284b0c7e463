"""The configuration file, written from the declarations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from hivenode.config.settings import Settings

_WIDTH = 100


def render() -> str:
    """The configuration file with every setting at its default, and what each is for."""
    lines = [
        "# Settings of a hivenode daemon. Every setting is here with its default: as it is, this file changes nothing.",
        "# Put it into the node's home as hivenode.toml and keep the lines you change.",
    ]
    for name, section in Settings.model_fields.items():
        kind: Any = section.annotation
        lines += ["", *_comment(kind.__doc__ or ""), f"[{name}]"]
        for key, field in kind.model_fields.items():
            lines += ["", *_comment(" ".join(filter(None, (field.description, _allowed(field)))))]
            lines.append(f"{key} = {_toml(field.default)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH))


def _allowed(field: FieldInfo) -> str:
    """What values are accepted, where the type alone says it."""
    annotation: Any = field.annotation
    if get_origin(annotation) is tuple and get_origin(get_args(annotation)[0]) is Literal:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return f"One of: {', '.join(_toml(value) for value in get_args(annotation))}."
    low = [limit.ge for limit in field.metadata if isinstance(limit, annotated_types.Ge)]
    high = [limit.le for limit in field.metadata if isinstance(limit, annotated_types.Le)]
    if low and high:
        return f"From {low[0]} to {high[0]}."
    return ""


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    assert isinstance(value, int | float)
    return repr(value)
