"""What this machine's owner lends to jobs by configuration: directories of models, packages, private data."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

import msgspec

from hivenode.config import Settings
from hivenode.data.manifest import Manifest
from hivenode.errors import HiveError, InvalidInput
from hivenode.jobs.preparing import prepare
from hivenode.logs import get_logger
from hivenode.models import pretrained
from hivenode.net.local import Resources
from hivenode.net.messages import CONFIG_BYTES, Offer, Unfit
from hivenode.spec.data import DataSpec

log = get_logger("lending")

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
        self._unfit: dict[str, Unfit] = {}
        self._seen: dict[str, Stamp] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def resources(self) -> Resources:
        """For workers of this machine."""
        return Resources(
            directories=dict(self._settings.models.directories),
            packages=self._settings.jobs.allowed_packages,
            private={name: spec.model_dump_json().encode() for name, spec in self._settings.data.private.items()},
        )

    async def offers(self, patience: float, about: Collection[str] = ()) -> tuple[Offer, ...]:
        """What other nodes are told, with configurations of the models asked about. What is new is looked at meanwhile,
        and waited for at most so many seconds."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="lending")
        await asyncio.wait({self._looking}, timeout=patience)
        offers = self._offers.values()
        return tuple(o if o.name in about else msgspec.structs.replace(o, config=b"") for o in offers)

    def unfit(self, about: Collection[str]) -> tuple[Unfit, ...]:
        """What is wrong with what others ask about, as last seen."""
        return tuple(self._unfit[name] for name in about if name in self._unfit)

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
            await self._at(f"hf:{name}", Path(directory), partial(asyncio.to_thread, _model, name, Path(directory)))
        for name, spec in self._settings.data.private.items():
            await self._at(f"private:{name}", Path(spec.name), partial(self._private, name, spec))

    async def _at(self, name: str, path: Path, look: Callable[[], Awaitable[Offer]]) -> None:
        stamp = await asyncio.to_thread(_stamp, path)
        if self._seen.get(name) == stamp:
            return
        try:
            self._offers[name] = await look()
            self._unfit.pop(name, None)
        except HiveError as error:
            self._cannot(name, path, error)
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror or error}."
            self._cannot(name, path, InvalidInput(reason, fix="Correct the path, or see to the permissions on it."))
        self._seen[name] = stamp

    def _cannot(self, name: str, path: Path, error: HiveError) -> None:
        self._offers.pop(name, None)
        self._unfit[name] = _told(name, path, error)
        log.error("something lent cannot be used", what=name, reason=error.sentence, fix=error.fix)

    async def _private(self, name: str, spec: DataSpec) -> Offer:
        manifest = await prepare(spec, None, self._memory_bytes())
        info = msgspec.structs.replace(manifest.info, source=f"private:{name}", labels=())
        return Offer(f"private:{name}", info, _kind(manifest))


def _told(name: str, path: Path, error: HiveError) -> Unfit:
    """What others are told, without the path. Of private data no more than that: the reason may quote a value."""
    if name.startswith("private:"):
        return Unfit(name, "It cannot be read; the daemon's log there says why.", "Have its owner look there.")
    reason, fix = (
        text.replace(str(path), name) if path.is_absolute() else text for text in (error.sentence, error.fix)
    )
    return Unfit(name, reason[:2000], fix[:2000])


def _model(name: str, path: Path) -> Offer:
    found = pretrained.look(path)
    told = found.told()
    return Offer(
        f"hf:{name}",
        same=found.fingerprint(),
        parameters=found.parameters,
        config=told if len(told) <= CONFIG_BYTES else b"",
    )


def _kind(manifest: Manifest) -> str:
    """Equal for data that one model can be trained on."""
    info = manifest.info
    same = (info.input_shape, info.outputs, info.labels, info.task, info.vocabulary, manifest.tokenizer)
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


def _stamp(path: Path) -> Stamp:
    """Of a file, or of the files right inside a folder and its folders; zeros for what may not be looked at."""
    try:
        files = [path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))] if path.is_dir() else [path]
    except OSError:  # it is under a folder that may not be entered, say
        files = [path]
    found = []
    for file in files[:100_000]:
        try:
            stat = file.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)
