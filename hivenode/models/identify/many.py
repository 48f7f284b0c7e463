"""Many files at once: which there are below a directory, and their reports as they come in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hivenode.errors import Exhausted
from hivenode.models.identify import identify, is_model_directory
from hivenode.models.identify.report import Report, Trouble

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

FEW = 24
"""So many are faster read one after the other than handed to processes."""
BATCH = 16
MOST_FILES = 200_000


def below(paths: Iterable[Path]) -> list[Path]:
    """What is to be identified: files and model directories as given; other directories by what is below them.

    Raises:
        Exhausted: there are more files than one call takes.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or is_model_directory(path):
            found.append(path)
            continue
        before = len(found)
        for place, folders, files in os.walk(path):
            here = Path(place)
            folders.sort()
            if here != path and is_model_directory(here):
                found.append(here)
                folders.clear()
                continue
            found.extend(here / name for name in sorted(files))
            if len(found) > MOST_FILES:
                raise Exhausted(f"{path} holds more than {MOST_FILES} files.", fix="Give the folders one by one.")
        if len(found) == before:
            found.append(path)  # empty: its own error says so
    return found


def identify_all(paths: Sequence[Path]) -> Iterator[tuple[Path, Report]]:
    """Reports in the order they are ready. Many are read by several processes, so that a file that brings one down
    costs its own report and no other."""
    workers = min(os.cpu_count() or 1, len(paths) // BATCH)
    if len(paths) <= FEW or workers < 2:
        for path in paths:
            yield path, identify(path)
        return
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    lost: list[Path] = []
    with _processes(workers) as pool:
        waiting = {pool.submit(_batch, [str(path) for path in batch]): batch for batch in batches}
        for done in as_completed(waiting):
            batch = waiting[done]
            try:
                reports = msgspec.json.decode(done.result(), type=list[Report])
            except BrokenProcessPool:
                lost += batch
                continue
            yield from zip(batch, reports, strict=True)
    for path in lost:
        yield path, _alone(path)


def _processes(count: int) -> ProcessPoolExecutor:
    """Fresh processes, with nothing of this one in them. Imported here: one file needs none of it."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    return ProcessPoolExecutor(count, mp_context=get_context("forkserver"))


def _batch(paths: list[str]) -> bytes:
    return msgspec.json.encode([identify(path) for path in paths])


def _alone(path: Path) -> Report:
    """A file of a batch whose process died, in a process of its own."""
    from concurrent.futures.process import BrokenProcessPool

    with _processes(1) as pool:
        try:
            return msgspec.json.decode(pool.submit(_batch, [str(path)]).result(), type=list[Report])[0]
        except BrokenProcessPool:
            error = Exhausted(f"Reading {path} ended its process.", fix="It is made to waste memory; leave it alone.")
            return Report(path=str(path), error=Trouble(error.code, error.sentence, error.fix))
