"""Damages samples and looks at what is said of them, in a process with little memory and a deadline for each file.

    python -m tests.models.identify.damage [--seed N] [--each N | --every] [GROUP ...]

Each file of `tests/models/samples`, alone or inside its model directory, is cut short, has bits flipped, bytes set and
ranges moved. What is said must be a verdict or an error with a way out; a file that was cut short is never whole, but
where its format cannot tell. Complaints go to stdout, one a line; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from hivenode.models.identify import identify
from hivenode.models.identify.report import Report

SAMPLES = Path(__file__).parents[1] / "samples"
GROUPS = ("pytorch", "transformers", "graphs", "tabular", "agents")
MEMORY = 512 << 20
"""Of address space, Python itself and its libraries included."""
DEADLINE_S = 30
"""A guard against hanging; honest answers take milliseconds."""
OPEN_ENDED = {"onnx", "gguf", "lightgbm_text"}
"""Formats with optional fields or padding at their end: cut there, all weights are still in the file."""


class Overtime(BaseException):
    """Raised by the alarm, and caught by nothing that catches exceptions."""


def targets(groups: list[str]) -> Iterator[tuple[Path, Path]]:
    """What to identify (a file or a directory), and the file in it to damage."""
    for group in groups:
        named = json.loads((SAMPLES / f"{group}.json").read_text())
        for name in named:
            whole = SAMPLES / group / name
            if whole.is_file() and not any((SAMPLES / group / other).is_dir() for other in name.split("/")[:1]):
                yield whole, whole
            elif whole.is_dir():
                yield from ((whole, path) for path in sorted(whole.rglob("*")) if path.is_file())


def cuts(length: int, dice: random.Random, each: int | None) -> list[int]:
    """Lengths to cut a file to: some, or all (of the first and last bytes, and some between, where it is large)."""
    if each is not None:
        return [dice.randrange(length) for _ in range(each)] if length else []
    if length <= 5000:
        return list(range(length))
    ends = [*range(1500), *range(length - 1500, length)]
    return ends + dice.sample(range(1500, length - 1500), 1500)


VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1 << 62, 1e300, "", "../x", "\0", [], [[]], [None, ""], [[], ""], {}, {"": []},
    {"class_name": [], "config": 0},
)  # fmt: skip


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Damage where it is felt: inside archives and compression, behind their checksums, and in the values of JSON."""
    if data.startswith(b"PK\x03\x04") and dice.random() < 0.6:
        return repacked(data, dice)
    for start, pack, unpack in (
        (b"\x1f\x8b", gzip.compress, gzip.decompress),
        (b"BZh", bz2.compress, bz2.decompress),
        (b"\xfd7z", lzma.compress, lzma.decompress),
        (b"x", zlib.compress, zlib.decompress),
    ):
        if data.startswith(start) and dice.random() < 0.6:
            return pack(damaged(unpack(data), dice))
    if data[:1] == b"{" and dice.random() < 0.7:
        try:
            return json.dumps(revalued(json.loads(data), dice)).encode()
        except ValueError:
            pass
    return scrambled(data, dice)


def repacked(data: bytes, dice: random.Random) -> bytes:
    """A zip archive with one entry damaged, and all else in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    victim = dice.choice([place for place, (_, content) in enumerate(entries) if content])
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for place, (entry, content) in enumerate(entries):
            plain = zipfile.ZipInfo(entry.filename)
            archive.writestr(plain, damaged(content, dice) if place == victim else content, entry.compress_type)
    return raw.getvalue()


def revalued(value: Any, dice: random.Random) -> object:
    """A JSON value with another one put somewhere in it."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inner or dice.random() < 0.15:
        return dice.choice(VALUES)
    key = dice.choice(inner)
    value[key] = revalued(value[key], dice)
    return value


def scrambled(data: bytes, dice: random.Random) -> bytes:
    """Bits flipped, bytes set to extremes, ranges doubled, taken out or swapped."""
    held = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        at = dice.randrange(len(held))
        held[at] = dice.choice((held[at] ^ 1 << dice.randrange(8), 0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    if dice.random() < 0.25:
        start = dice.randrange(len(held))
        part = held[start : start + dice.randrange(1, 64)]
        if dice.random() < 0.5:
            del held[start : start + len(part)]
        place = dice.randrange(len(held) + 1)
        held[place:place] = part
    return bytes(held)


class Trial:
    """One target in a folder of its own, to be damaged again and again."""

    def __init__(self, whole: Path, victim: Path, folder: Path) -> None:
        self.name = str(victim.relative_to(SAMPLES))
        self.data = victim.read_bytes()
        self.alone = whole == victim
        self.place = folder / whole.name
        if self.alone:
            shutil.copy(whole, self.place)
        else:
            shutil.copytree(whole, self.place)
        self.victim = self.place / victim.relative_to(whole) if not self.alone else self.place
        self.sound = identify(self.place)

    def run(self, data: bytes, what: str, *, short: bool) -> str | None:
        """Write the damaged bytes and identify; returns a complaint, or None."""
        self.victim.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
        try:
            report = identify(self.place)
            msgspec.json.encode(report.to_dict(listing=True))
        except Overtime:
            return f"{self.name}, {what}: no answer in {DEADLINE_S} s"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{self.name}, {what}: {type(error).__name__} {error} at {Path(where.filename).name}:{where.lineno}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        complaint = self._complaint(report, short and data != self.data.rstrip(b"\0"))
        return f"{self.name}, {what}: {complaint}" if complaint else None

    def _complaint(self, report: Report, short: bool) -> str | None:
        if report.error is not None:
            if not report.error.fix or not report.error.message:
                return "an error without a way out"
            return "an error, and yet safe" if report.safe else None
        if report.safe is None:
            return "neither a verdict nor an error"
        if short and self.alone:
            if len(self.victim.read_bytes()) >= len(self.data.rstrip(b"\0")):
                return None  # nothing but zeros is missing
            same = report.parameters == self.sound.parameters
            if self.sound.format not in OPEN_ENDED or not (same or report.safe is False):
                return "cut short, and taken for whole"
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="cuts and damages of each file")
    parser.add_argument("--every", action="store_true", help="every cut, and a hundred times as much other damage")
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def ring(*_: object) -> None:
        raise Overtime

    signal.signal(signal.SIGALRM, ring)
    complaints, tried = [], 0
    for whole, victim in targets(chosen.groups or list(GROUPS)):
        dice = random.Random(f"{chosen.seed} {victim}")
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(whole, victim, Path(folder))
            found = [
                trial.run(trial.data[:length], f"cut to {length} of {len(trial.data)}", short=True)
                for length in cuts(len(trial.data), dice, None if chosen.every else chosen.each)
            ]
            found += [
                trial.run(damaged(trial.data, dice), f"damage {number}", short=False)
                for number in range(chosen.each * (100 if chosen.every else 1) if trial.data else 0)
            ]
            tried += len(found)
            complaints += [complaint for complaint in found if complaint][:3]
    for complaint in complaints:
        print(complaint)
    print(f"{tried} damaged files, {len(complaints)} complaints, seed {chosen.seed}", file=sys.stderr)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
