"""What goes to the terminal. Names and reasons come from other machines: nothing in them may act on the terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 160
FOLDED_WIDTH = 20
"""Characters that a column of sentences has at least."""
STATE_STYLES = {
    "alive": "green", "running": "green", "finished": "green", "suspect": "yellow", "planned": "yellow",
    "queued": "yellow", "dead": "red", "lost": "red", "failed": "red", "left": "dim", "cancelled": "dim",
    "unheard": "dim",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """On a terminal its width and colours; in a pipe plain and wide, so that nothing is cut."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def clean(text: str) -> str:
    """Text as one printable line: control characters and line breaks become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def styled(text: str, style: str | Style = "") -> Text:
    return Text(clean(text), style=style)


def state(name: str) -> Text:
    return styled(name, STATE_STYLES.get(name, ""))


def table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """A plain table; `right` names the columns that are aligned to the right, `whole` those that are never broken into
    lines: what people copy."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole
        )
    return made


def fit(out: Console, listing: Table, spare: tuple[str, ...]) -> Table:
    """On a narrow terminal the columns of `spare` are left out, the first first, until the others keep to one line.
    The last column may be folded."""
    unbounded, last = out.options.update(width=10_000), listing.columns[-1]
    last.max_width = FOLDED_WIDTH
    for name in spare:
        if Measurement.get(out, unbounded, listing).maximum <= out.width:
            break
        listing.columns = [column for column in listing.columns if column.header != name]
    last.max_width = None
    return listing


_FRAME = re.compile(
    r"^(?:This job cannot run now|No strategy can run this job now|No node can take part in this job now): (?:\w+: )?"
    r"|^(?:failed|cancelled): "
)
BRIEF_WIDTH = 47


def brief(reason: str) -> str:
    """What a sentence or two begin with, for a listing: without what goes without saying there, or is in brackets."""
    heart = re.split(r"\. |; ", re.sub(r" \([^()]*\)", "", _FRAME.sub("", reason)), maxsplit=1)[0].rstrip(".")
    if len(heart) <= BRIEF_WIDTH:
        return heart
    return heart[: BRIEF_WIDTH - 1].rpartition(" ")[0].rstrip(",:") + "…"


def print_json(value: Any) -> None:
    """JSON on stdout, indented; bytes are taken as JSON already."""
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    sys.stdout.write(msgspec.json.format(raw, indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """One line of JSON on stdout, at once."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `5 d 3 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(at: float) -> str:
    """How long before now `at` (seconds since 1970) was."""
    return f"{duration(time.time() - at)} ago"


def size(count: float) -> str:
    """Bytes as `812 B`, `1.4 MB`, ..."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def short(identifier: str) -> str:
    """The part of a node, hive or blob id that a person reads."""
    return clean(identifier[:8])


def bar(fraction: float, width: int = 24) -> str:
    """A bar of eighths: `bar(0.5, 4)` is `██  `."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)
