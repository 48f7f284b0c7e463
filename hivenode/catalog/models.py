"""The catalogue: versions of models, folded from the feeds. Pure.

A job makes at most one version, whichever side of a partition finished it: the first registration in the order of all
events stands. Versions of a name are numbered in that order.
"""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.errors import NotFound
from hivenode.spec.events import BlobHeld, Body, ModelRegistered
from hivenode.spec.values import BlobRef


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
    """All model versions."""

    kinds: tuple[type[Body], ...] = (ModelRegistered,)

    def __init__(self) -> None:
        self._names: dict[str, list[ModelVersion]] = {}
        self._jobs: dict[str, ModelVersion] = {}

    def reset(self) -> None:
        self._names.clear()
        self._jobs.clear()

    def apply(self, author: str, hlc: int, body: Body) -> None:
        assert isinstance(body, ModelRegistered)
        if body.job in self._jobs:
            return
        versions = self._names.setdefault(body.name, [])
        made = ModelVersion(body.name, len(versions) + 1, body.job, body.source, body.blob, dict(body.metrics), hlc)
        versions.append(made)
        self._jobs[body.job] = made

    @property
    def versions(self) -> tuple[ModelVersion, ...]:
        """All, newest first."""
        every = [version for versions in self._names.values() for version in versions]
        return tuple(sorted(every, key=lambda v: (v.at, v.name), reverse=True))

    def of_job(self, job: str) -> ModelVersion | None:
        return self._jobs.get(job)

    def find(self, reference: str) -> ModelVersion:
        """`name` (its newest version) or `name:version`. Raises NotFound naming what there is."""
        name, _, number = reference.partition(":")
        versions = self._names.get(name, [])
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
        known = ", ".join(sorted(self._names)) or "none yet"
        raise NotFound(f"There is no model {name}.", fix=f"Known models: {known}. A finished job registers one.")


class Holders:
    """Which node says it keeps which bytes."""

    kinds: tuple[type[Body], ...] = (BlobHeld,)

    def __init__(self) -> None:
        self._held: dict[str, dict[str, None]] = {}

    def reset(self) -> None:
        self._held.clear()

    def apply(self, author: str, hlc: int, body: Body) -> None:
        assert isinstance(body, BlobHeld)
        holders = self._held.setdefault(body.digest, {})
        if body.held:
            holders[author] = None
        else:
            holders.pop(author, None)

    def of(self, digest: str) -> tuple[str, ...]:
        """Node ids, sorted."""
        return tuple(sorted(self._held.get(digest, ())))
