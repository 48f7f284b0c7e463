"""Turning a model that is not loaded here into files that are, in a process set apart, and looking at them again.

What that process writes is believed no more than the file it came from: it is identified and loaded like any other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hivenode.errors import Conflict, HiveError, InvalidInput, JobFailed, from_dict
from hivenode.models import apart
from hivenode.models.identify import identify
from hivenode.models.identify.report import Finding, Report

FORMATS = frozenset({
    "safetensors", "joblib", "keras", "xgboost_ubj", "lightgbm_text", "catboost_cbm",
})  # fmt: skip
"""What is taken from the process."""
LOADED_AS_THEY_ARE = frozenset({"xgboost_json", "xgboost_ubj", "lightgbm_text"})
SETTINGS = "settings.json"
LONGEST_SETTINGS = 16 << 20
MOST_FILES = 1_000
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,119}")
_RUNNABLE = frozenset({
    "torch_zip", "torch_legacy", "torch_tar", "torchscript", "ultralytics_pt", "torch_distributed", "keras", "keras_h5",
    "xgboost_binary", "pickle", "joblib", "skops", "npz", "npy",
})  # fmt: skip


class Way(msgspec.Struct, frozen=True):
    """How a model would be converted. `run`: by its framework's own loader, which runs what the file says."""

    report: Report
    run: bool


class Made(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        files: names in the directory.
        layers: of the walls, that held.
        notes: what was done, and what was not carried over.
    """

    files: list[str]
    layers: list[str]
    notes: list[str]


def choose(path: Path, *, run: bool) -> Way:
    """The way that runs least.

    Args:
        run: ask for the framework's own loader, also where our readers could do.

    Raises:
        HiveError: there is no such file, or nothing it could be.
    """
    report = identify(path)
    if report.format is None and report.error is not None and not (run and report.error.code == "invalid_input"):
        raise from_dict(msgspec.to_builtins(report.error))
    if report.format in LOADED_AS_THEY_ARE:
        raise InvalidInput(f"{path} holds data alone already.", fix=f"Load it as it is: hivenode load {path}")
    readable = bool(report.listing) and all(tensor.offset is not None or tensor.packed for tensor in report.listing)
    keras_again = report.format == "keras_h5" and report.safe is True
    if readable and not run and not keras_again and report.format not in {"pickle", "joblib", "skops"}:
        return Way(report, run=False)
    if report.format is not None and report.format not in _RUNNABLE:
        raise InvalidInput(
            f"{path} is {report.format}, which is not converted.", fix="Convert it with the library that wrote it."
        )
    return Way(report, run=True)


def convert(way: Way, source: Path, target: Path, limits: apart.Limits, code: Sequence[Path] = ()) -> Made:
    """Convert into the directory `target`, which must not exist or be empty.

    Raises:
        Conflict: `target` holds something.
        JobFailed: nothing that came of it can be believed and loaded.
        HiveError: see `apart.run`.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"{target} exists and is not empty.", fix="Name a new directory.")
    target.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)).resolve()
    try:
        work = apart.Convert(str(source.resolve()), str(room), way.run, [str(path.resolve()) for path in code])
        reads = [*apart.places(source, way.report), *(path.resolve() for path in code)]
        answer = apart.run(work, limits, reads, [room])
        notes = list(answer.notes)
        files = _taken(room, target, limits, notes)
        if not files:
            shutil.rmtree(target)
            raise JobFailed(
                f"Nothing that came of {source} can be loaded: {' '.join(notes)[:2_000]}", fix="Use its own library."
            )
        _about(target, source, way.report)
        return Made(sorted(files), answer.layers, notes)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _taken(room: Path, target: Path, limits: apart.Limits, notes: list[str]) -> list[str]:
    """Move to `target` what is a plain file, is called safe by our own readers, and loads."""
    target.mkdir(exist_ok=True)
    taken = []
    for entry in sorted(room.iterdir())[:MOST_FILES]:
        wrong = _wrong(entry, limits)
        if wrong is not None:
            notes.append(f"{entry.name[:120]!r} was thrown away: {wrong}")
            continue
        entry.chmod(0o600)
        os.rename(entry, target / entry.name)
        taken.append(entry.name)
    return [] if taken == [SETTINGS] else taken


def _wrong(entry: Path, limits: apart.Limits) -> str | None:
    status = entry.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not _NAME.fullmatch(entry.name):
        return "it is no plain file."
    if entry.name == SETTINGS:
        return _wrong_settings(entry, status.st_size)
    report = identify(entry)
    if report.error is not None:
        return report.error.message
    if report.safe is not True or report.format not in FORMATS:
        first: Finding | None = report.findings[0] if report.findings else None
        return f"it holds {first.what}, {first.where}." if first else f"it is {report.format}."
    if report.format == "catboost_cbm":
        return None
    try:
        apart.run(apart.Load(str(entry), [], True), limits, [entry])
    except HiveError as error:
        return error.sentence
    return None


def _wrong_settings(entry: Path, size: int) -> str | None:
    try:
        if size > LONGEST_SETTINGS:
            raise ValueError
        msgspec.json.decode(entry.read_bytes(), type=dict[str, bool | int | float | str])
    except (ValueError, RecursionError):
        return "it is no table of settings."
    return None


def _about(target: Path, source: Path, report: Report) -> None:
    """Beside the files, what our own readers knew of the source."""
    known = {
        "converted_from": source.name, "format": report.format, "framework": report.framework, "model": report.model,
        "task": report.task, "architecture": report.architecture, "hyperparameters": report.hyperparameters,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(known, indent=1) + "\n", "utf-8")
