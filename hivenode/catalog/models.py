"""The catalogue: versions of models. Pure.

It follows from the ledger: a job makes at most one version, that of the attempt which finished it, whichever side of a
partition that was. Versions of a name are numbered in the order in which they were registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from hivenode.errors import NotFound
from hivenode.spec.events import BlobHeld, Body, ModelRegistered
from hivenode.spec.values import BlobRef, Digest, NodeId


@dataclass(frozen=True, slots=True)
class ModelVersion:
    name: str
    version: int
    job: str
    source: str
    blob: BlobRef
    metrics: dict[str, float]
    at: int
    """Hybrid clock of the registration."""

    @property
    def reference(self) -> str:
        return f"{self.name}:{self.version}"


class Catalogue:
    """All model versions.

    Args:
        registered: the registrations that count, one a job, with their hybrid clocks, in the order of all events.
    """

    def __init__(self, registered: Callable[[], Iterable[tuple[int, ModelRegistered]]]) -> None:
        self._registered = registered

    def _names(self) -> dict[str, list[ModelVersion]]:
        names: dict[str, list[ModelVersion]] = {}
        for at, body in self._registered():
            versions = names.setdefault(body.name, [])
            number = len(versions) + 1
            versions.append(ModelVersion(body.name, number, body.job, body.source, body.blob, dict(body.metrics), at))
        return names

    @property
    def versions(self) -> tuple[ModelVersion, ...]:
        """All, newest first."""
        every = [version for versions in self._names().values() for version in versions]
        return tuple(sorted(every, key=lambda v: (v.at, v.name), reverse=True))

    def of_job(self, job: str) -> ModelVersion | None:
        return next((version for version in self.versions if version.job == job), None)

    def names(self, digest: str) -> bool:
        """Whether these bytes are a model of the catalogue."""
        return any(body.blob.digest == digest for _, body in self._registered())

    def find(self, reference: str) -> ModelVersion:
        """`name` (its newest version) or `name:version`. Raises NotFound naming what there is."""
        name, _, number = reference.partition(":")
        names = self._names()
        versions = names.get(name, [])
        if versions and not number:
            return versions[-1]
        for version in versions:
            if str(version.version) == number:
                return version
        if versions:
            raise NotFound(
                f"Model {name} has no version {number}.",
                fix=f"It has versions 1 to {len(versions)}; see `hivenode models`.",
            )
        known = ", ".join(sorted(names)) or "none yet"
        raise NotFound(f"There is no model {name}.", fix=f"Known models: {known}. A finished job registers one.")


_PIECE = 256
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[Digest, tuple[NodeId, ...]]).decode


class Holders:
    """Which node says it keeps which bytes."""

    topic = "holders"
    kinds: tuple[type[Body], ...] = (BlobHeld,)
    commuting: tuple[type[Body], ...] = ()

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, ...]] = {}

    def apply(self, author: str, hlc: int, body: Body) -> None:
        assert isinstance(body, BlobHeld)
        others = tuple(node for node in self._held.get(body.digest, ()) if node != author)
        if holders := (*others, author) if body.held else others:
            self._held[body.digest] = tuple(sorted(holders))
        else:
            self._held.pop(body.digest, None)

    def mark(self) -> object:
        return dict(self._held)

    def back(self, mark: object) -> None:
        assert isinstance(mark, dict)
        self._held = dict(mark)

    def fresh(self) -> Holders:
        return Holders()

    def dump(self, forget: int) -> Iterator[bytes]:
        ordered = sorted(self._held.items())
        for at in range(0, len(ordered), _PIECE):
            yield _encode(dict(ordered[at : at + _PIECE]))

    def load(self, piece: bytes) -> None:
        self._held.update(_decode(piece))

    def of(self, digest: str) -> tuple[str, ...]:
        """Node ids, sorted."""
        return self._held.get(digest, ())
