"""Before a job is submitted: files of this machine become blobs, and models of the catalogue what they are made of."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hivenode.catalog.holders import Keeper
from hivenode.catalog.models import Catalogue, Holders, ModelVersion
from hivenode.data import sources
from hivenode.data.manifest import Manifest, Shard, read_manifest
from hivenode.data.preparing import Preparation
from hivenode.errors import Corrupted, HiveError, InvalidInput, NotFound, Unavailable
from hivenode.logs import get_logger
from hivenode.models.card import ModelCard, read_card
from hivenode.models.going_on import fits, going_on
from hivenode.models.identify import identify
from hivenode.models.keras_configs.files import embedded
from hivenode.spec.data import FILES, DataSpec, SharedData
from hivenode.spec.events import BlobHeld, Body
from hivenode.spec.job import JobSpec, parse_job
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import BlobRef
from hivenode.store.ports import BlobStore

SPREAD_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Between tries to have others keep a job's data."""

log = get_logger("preparing")


class Rooms(Protocol):
    """Directories for a while."""

    def make(self, job: str, attempt: int) -> str: ...

    def remove(self, directory: str) -> None: ...


async def prepare(spec: DataSpec, directory: str | None, memory_bytes: int) -> Manifest:
    """Have a file read, and cut into `directory` if one is given, by a process of its own.

    Raises:
        HiveError: what is wrong with it.
    """
    preparation = Preparation(spec, directory, memory_bytes)
    try:
        return await asyncio.to_thread(preparation.manifest)
    finally:
        preparation.end()


class Preparer:
    """Resolves what a declaration names on this node, so that every node can carry the job out.

    Args:
        memory_bytes: that reading a file may take.
        copies: how many nodes should keep shared data, this one included.
        candidates: nodes that may.
    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        blobs: BlobStore,
        keeper: Keeper,
        catalogue: Catalogue,
        holders: Holders,
        append: Callable[[Body], Awaitable[None]],
        memory_bytes: Callable[[], int],
        copies: int,
        candidates: Callable[[], tuple[str, ...]],
    ) -> None:
        self._rooms = rooms
        self._blobs = blobs
        self._keeper = keeper
        self._catalogue = catalogue
        self._holders = holders
        self._append = append
        self._memory_bytes = memory_bytes
        self._copies = copies
        self._candidates = candidates

    async def resolve(self, spec: JobSpec, *, keep: bool = True) -> JobSpec:
        """The same job without anything that only this node knows.

        Args:
            keep: make blobs of files; without it, sizes are found out and nothing is kept.

        Raises:
            HiveError: a file, weights or a model cannot be used.
        """
        model, data = spec.model, spec.data
        card = None
        if model.kind == "catalog":
            model, card = await self._from_catalogue(model)
        elif model.kind == "keras" and model.source != "keras:config":
            model = await asyncio.to_thread(embedded, model)
        if model.weights.startswith("catalog:"):
            version = self._catalogue.find(_reference(model.weights))
            model = model.model_copy(update={"weights": _blob(version.blob)})
        if model.weights.startswith("file:"):
            model = await self._with_weights(model, keep=keep)
        if data.kind in FILES:
            data = await self._shared(data, keep=keep)
        if model is spec.model and data is spec.data:
            return spec
        if card is not None and model.kind == "sklearn" and data.kind != "private":
            fits(card, model, sources.information(data))
        changes: dict[str, Any] = {"model": model, "data": data}
        if model.kind in ("keras", "sklearn") and "framework" not in spec.model_fields_set:
            changes["framework"] = model.kind  # of the catalogue's models only the file says it
        return parse_job(spec.model_copy(update=changes).model_dump(mode="json"))

    async def _from_catalogue(self, model: ModelSpec) -> tuple[ModelSpec, ModelCard]:
        version = self._catalogue.find(_reference(model.source))
        card = await asyncio.to_thread(read_card, await self._file(version))
        found = card.model
        if found.kind == "sklearn":
            found = going_on(version.reference, found, model.params)
        changes = {"weights": _blob(version.blob), "lora": model.lora or found.lora}
        return found.model_copy(update=changes), card  # checked with the rest of the job

    async def _file(self, version: ModelVersion) -> Path:
        await self._keeper.obtain(version.blob, self._holders.of(version.blob.digest))
        path = self._blobs.path(version.blob.digest)
        if path is None:
            raise Unavailable(f"The file of {version.reference} is not here.", fix="Start a node that holds it.")
        return path

    async def _with_weights(self, model: ModelSpec, *, keep: bool) -> ModelSpec:
        path = Path(model.weights.removeprefix("file:"))
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"There is no weights file {path}.", fix="Check model.weights.")
        if path.suffix != ".safetensors":
            raise InvalidInput(
                f"{path} is no .safetensors file; other kinds may hold code.",
                fix="Save the weights with safetensors.torch.save_file.",
            )
        report = await asyncio.to_thread(identify, path)
        if report.error is not None:
            raise InvalidInput(f"{path} holds no usable weights: {report.error.message}", fix=report.error.fix)
        if not keep:
            return model.model_copy(update={"weights": ""})
        ref = await self._blobs.put_file(path)
        await self._append(BlobHeld(digest=ref.digest, size=ref.size))
        return model.model_copy(update={"weights": _blob(ref)})

    async def _shared(self, data: DataSpec, *, keep: bool) -> DataSpec:
        if not keep:
            manifest = await prepare(data, None, self._memory_bytes())
            return shared(data, manifest, BlobRef("0" * 64, 1))
        directory = self._rooms.make("data", 0)
        try:
            manifest = await prepare(data, directory, self._memory_bytes())
            listed = msgspec.json.encode(manifest)
            self._keeper.touch(hashlib.sha256(listed).hexdigest())  # an ended job may have had the same data
            for shard in {shard.digest: shard for shard in manifest.shards}.values():  # some may be equal
                await self._take_in(Path(directory, shard.digest), shard)
        finally:
            self._rooms.remove(directory)
        ref = await self._blobs.put_bytes(listed)
        await self._append(BlobHeld(digest=ref.digest, size=ref.size))
        return shared(data, manifest, ref)

    async def _take_in(self, path: Path, shard: Shard) -> None:
        """A piece. The process that made it read a file that nobody vouches for: it may have left anything there."""
        if await asyncio.to_thread(_is_whole, path, shard):
            ref = await self._blobs.put_file(path, move=True)
            if ref.digest == shard.digest:
                return
        raise Corrupted(
            f"A piece of the data ({shard.digest[:12]}) is not what its list says.",
            fix="Look at the file; submit again.",
        )

    async def spread(self, spec: JobSpec) -> None:
        """Have other nodes keep the data and weights of a job that was just submitted."""
        try:
            wanted = await self._all_blobs(spec)
        except HiveError as error:
            log.warning("no second copy of a job's data", job=spec.name, reason=str(error))
            return
        if not wanted:
            return
        kept: set[str] = set()
        for wait in SPREAD_SECONDS:  # others keep nothing of a job that they have not heard of yet
            for candidate in self._candidates():
                if len(kept) < self._copies - 1 and candidate not in kept and await self._all_on(candidate, wanted):
                    kept.add(candidate)
            if len(kept) >= min(self._copies, len(self._candidates())) - 1:
                return
            await asyncio.sleep(wait)
        log.warning("too few copies of a job's data", job=spec.name, kept=len(kept) + 1)

    async def _all_blobs(self, spec: JobSpec) -> list[BlobRef]:
        """What belongs to a job; the list of pieces last, since who has it is taken to have them."""
        wanted = [blob_of(spec.model.weights)] if spec.model.weights else []
        listed = manifest_of(spec.data)
        if listed is not None:
            manifest = await asyncio.to_thread(read_manifest, await self._blobs.read(listed.digest, limit=listed.size))
            wanted += [BlobRef(shard.digest, shard.size) for shard in manifest.shards]
            wanted.append(listed)
        return wanted

    async def _all_on(self, candidate: str, wanted: list[BlobRef]) -> bool:
        named = (wanted[0], wanted[-1])  # weights, and the list of pieces
        for ref in wanted:
            if not await self._keeper.copy_out(ref, (candidate,), 1, announce=ref in named):
                return False
        return True


def _is_whole(path: Path, shard: Shard) -> bool:
    """A plain file of that size, and no link to another."""
    found = path.lstat() if path.exists() else None
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == shard.size


def shared(data: DataSpec, manifest: Manifest, ref: BlobRef) -> DataSpec:
    info = manifest.info
    made = SharedData(
        size=ref.size, samples=info.samples, input_shape=info.input_shape, outputs=info.outputs, task=info.task,
        vocabulary=info.vocabulary, padding=info.padding, origin=f"{data.kind}:{Path(data.name).name}"[:256],
    )  # fmt: skip
    return DataSpec(
        source=f"shared:{ref.digest}", test_fraction=data.test_fraction, seed=data.seed, task=data.task, shared=made
    )


def manifest_of(data: DataSpec) -> BlobRef | None:
    """Where all else about shared data is found."""
    return BlobRef(data.name, data.shared.size) if data.shared is not None else None


def blob_of(weights: str) -> BlobRef:
    """Of `blob:DIGEST/SIZE`. Raises InvalidInput."""
    digest, _, size = weights.removeprefix("blob:").partition("/")
    if len(digest) != 64 or not size.isdecimal():
        raise InvalidInput(f"{weights[:80]!r} are no weights.", fix="Give file:PATH or catalog:NAME.")
    return BlobRef(digest, int(size))


def _blob(ref: BlobRef) -> str:
    return f"blob:{ref.digest}/{ref.size}"


def _reference(source: str) -> str:
    """`catalog:NAME`, `catalog:NAME:2` or `catalog:NAME@2`, as the catalogue spells it."""
    return source.removeprefix("catalog:").replace("@", ":")
