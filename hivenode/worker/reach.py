"""Which files an assignment has to do with, besides Python's own; the walls leave its worker no others."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hivenode.net.local import Begin, Predict, Resources
from hivenode.spec.data import BUILT_IN, FILES, DataSpec
from hivenode.spec.job import JobSpec

MOST_LINKS = 100_000
"""Followed out of one folder; what lies behind more is left shut."""
NETWORK = (
    "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/passwd",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
)  # fmt: skip
"""What the C library looks names up in, and OpenSSL its settings."""

GLOO = ("/sys/bus/pci", "/sys/class/net", "/sys/devices")
"""Where it looks up which network cards there are."""


def to_train(begin: Begin) -> list[Path]:
    """What a training assignment reads. Raises ValueError when its job is none."""
    spec, lent = JobSpec.model_validate_json(begin.spec), begin.resources
    found = [*map(Path, NETWORK), *_packages(lent), *map(_store, lent.blobs.values())]
    if begin.resume is not None:
        found.append(Path(begin.resume))
    kind, _, name = spec.model.source.partition(":")
    if kind == "hf" and name in lent.directories:
        found += with_targets(Path(lent.directories[name]))
    if spec.data.kind == "private" and spec.data.name in lent.private:
        found += to_read(DataSpec.model_validate_json(lent.private[spec.data.name]))
    return found


def to_read(data: DataSpec) -> list[Path]:
    """Files of this machine that its owner's own declaration names."""
    places = [data.name] if data.kind in FILES else []
    places += [data.tokenizer] if data.tokenizer not in BUILT_IN else []
    return [path for place in places for path in with_targets(Path(place).expanduser())]


def to_predict(first: Predict) -> list[Path]:
    """What a prediction assignment reads."""
    return [Path(first.model), *_packages(first.resources)]


def with_targets(path: Path) -> Iterator[Path]:
    """A file or folder, and what the links in it point at: a cache's folders are made of links to its blobs."""
    yield path
    above = path.resolve().parents
    links = (Path(entry.path) for entry in _entries(path) if entry.is_symlink())
    yield from (target for link in islice(links, MOST_LINKS) if (target := link.resolve()) not in above)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Of a folder and those in it, links not followed; what cannot be listed is passed over, its reader says so."""
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _store(blob: str) -> Path:
    """Where the pieces lie that are brought later: blobs are `ab/abcdef...` in one folder."""
    path = Path(blob)
    return path.parent.parent if path.name.startswith(path.parent.name) else path.parent


def _packages(lent: Resources) -> Iterator[Path]:
    """Where the packages lie that jobs may use; one that is edited in place is not on the path."""
    for name in lent.packages:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        yield from map(Path, spec.submodule_search_locations or ())
        if spec.origin is not None:
            yield Path(spec.origin)
