"""What this machine's owner lends to jobs by configuration: directories of models, packages, private data."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from hivenode.config import Settings
from hivenode.data.manifest import Manifest
from hivenode.errors import HiveError, InvalidInput
from hivenode.jobs.preparing import prepare
from hivenode.logs import get_logger
from hivenode.models.identify import identify
from hivenode.net.local import Resources
from hivenode.net.messages import Offer
from hivenode.spec.data import DataSpec

log = get_logger("lending")

FINGERPRINT_BYTES = 1 << 20

Stamp = tuple[tuple[int, int], ...]
"""Time of change and size of each file concerned."""


class Lender:
    """Looks at what is lent, again when its files have changed.

    Args:
        memory_bytes: that reading private data may take.
    """

    def __init__(self, settings: Settings, memory_bytes: Callable[[], int]) -> None:
        self._settings = settings
        self._memory_bytes = memory_bytes
        self._offers: dict[str, Offer] = {}
        self._seen: dict[str, Stamp] = {}
        self._looking: asyncio.Task[None] | None = None
        self._unusable: set[str] = set()

    @property
    def unusable(self) -> tuple[str, ...]:
        """Names of what is lent by the settings and could not be read; why is in the log."""
        return tuple(sorted(self._unusable))

    @property
    def resources(self) -> Resources:
        """For workers of this machine."""
        return Resources(
            directories=dict(self._settings.models.directories),
            packages=self._settings.jobs.allowed_packages,
            private={name: spec.model_dump_json().encode() for name, spec in self._settings.data.private.items()},
        )

    async def offers(self, patience: float) -> tuple[Offer, ...]:
        """What other nodes are told. What is new is looked at meanwhile, and waited for at most so many seconds."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="lending")
        await asyncio.wait({self._looking}, timeout=patience)
        return tuple(self._offers.values())

    @property
    def looking(self) -> tuple[str, ...]:
        """Names of private data that nothing is known of yet."""
        names = (f"private:{name}" for name in self._settings.data.private)
        return tuple(name for name in names if name not in self._seen)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        for package in self._settings.jobs.allowed_packages:
            if importlib.util.find_spec(package) is not None:
                self._offers[f"python:{package}"] = Offer(f"python:{package}")
        for name, directory in self._settings.models.directories.items():
            await self._at(f"hf:{name}", Path(directory), partial(_model, name, Path(directory)))
        for name, spec in self._settings.data.private.items():
            await self._at(f"private:{name}", Path(spec.name), partial(self._private, name, spec))

    async def _at(self, name: str, path: Path, look: Callable[[], Awaitable[Offer]]) -> None:
        stamp = await asyncio.to_thread(_stamp, path)
        if self._seen.get(name) == stamp:
            return
        try:
            self._offers[name] = await look()
            self._unusable.discard(name)
        except HiveError as error:
            self._offers.pop(name, None)
            self._unusable.add(name)
            log.error("something lent cannot be used", what=name, reason=error.sentence, fix=error.fix)
        self._seen[name] = stamp

    async def _private(self, name: str, spec: DataSpec) -> Offer:
        manifest = await prepare(spec, None, self._memory_bytes())
        info = msgspec.structs.replace(manifest.info, source=f"private:{name}", labels=())
        return Offer(f"private:{name}", info, _kind(manifest))


async def _model(name: str, path: Path) -> Offer:
    report = await asyncio.to_thread(identify, path)
    if report.error is not None and not report.parameters:
        raise InvalidInput(f"{path} is no usable model: {report.error.message}", fix=report.error.fix)
    return Offer(f"hf:{name}", same=await asyncio.to_thread(_fingerprint, path), parameters=report.parameters or 0)


def _fingerprint(path: Path) -> str:
    """Of a configuration, and of sizes, heads and ends of weights: enough to tell one version from another."""
    found = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        if not file.is_file():
            continue
        size = file.stat().st_size
        with file.open("rb") as opened:
            found.update(f"{file.name} {size} ".encode() + opened.read(FINGERPRINT_BYTES))
            opened.seek(max(0, size - FINGERPRINT_BYTES))
            found.update(opened.read(FINGERPRINT_BYTES))
    return found.hexdigest()


def _kind(manifest: Manifest) -> str:
    """Equal for data that one model can be trained on."""
    info = manifest.info
    same = (info.input_shape, info.outputs, info.labels, info.task, info.vocabulary, manifest.tokenizer)
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


def _stamp(path: Path) -> Stamp:
    """Of a file, or of the files right inside a folder and its folders."""
    files = [path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))] if path.is_dir() else [path]
    found = []
    for file in files[:100_000]:
        try:
            stat = file.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)
