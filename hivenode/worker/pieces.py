"""Where a worker's data come from: a bundled set, this machine's own files, or pieces that the daemon brings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hivenode.data import reading, shards
from hivenode.data.dataset import Dataset
from hivenode.data.manifest import Shard, read_manifest
from hivenode.errors import Corrupted, HiveError, Refused, Unavailable
from hivenode.net.framing import Channel
from hivenode.net.local import Need, Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.values import BlobRef
from hivenode.worker.orders import Orders

PER_MESSAGE = 16
"""Wishes are answered one after the other: what a step waits for should not have to wait long for what a later one may
need."""


class PieceFinder:
    """Asks the daemon for pieces, once `orders` listens for its answers. Threads may ask at the same time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._asking = threading.Lock()
        self.orders: Orders | None = None

    def __call__(self, wanted: Sequence[Shard]) -> dict[str, Path]:
        """Raises Unavailable when one cannot be had."""
        assert self.orders is not None
        found: dict[str, Path] = {}
        for start in range(0, len(wanted), PER_MESSAGE):
            part = wanted[start : start + PER_MESSAGE]
            with self._asking:
                self._channel.send(Need(blobs=tuple(BlobRef(shard.digest, shard.size) for shard in part)))
                brought = self.orders.wait_for_data()
            if brought.error:
                raise Unavailable(brought.error, fix=brought.fix)
            found |= {digest: Path(path) for digest, path in brought.paths.items()}
        return found


def open_data(spec: DataSpec, resources: Resources, find: PieceFinder) -> Dataset:
    """A job's data. Raises HiveError when they are not here or not what they should be."""
    if spec.kind == "shared":
        path = resources.blobs.get(spec.name)
        if path is None:
            raise Unavailable("The list of the data's pieces is not here.", fix="Start a node that holds it.")
        try:
            listed = Path(path).read_bytes()
        except OSError as error:
            raise Corrupted(f"The list of the data's pieces cannot be read: {error}.", fix="Submit again.") from error
        return shards.opened(read_manifest(listed), find)
    if spec.kind == "private":
        own = resources.private.get(spec.name)
        if own is None:
            raise Unavailable(
                f"This node has no {spec.source}.", fix=f"Say what {spec.name!r} is in its section data.private."
            )
        try:
            return replace(reading.read(merged(DataSpec.model_validate_json(own), spec)), private=True)
        except HiveError:
            # Not why: all nodes hear of a worker's failure, and the reason may quote a value. The daemon logs it when
            # it looks at the data again, which it does when the job is planned again.
            raise Unavailable(
                f"What is {spec.source} on this node cannot be read.", fix="The daemon's log there says why."
            ) from None
    if spec.kind == "sklearn":
        return reading.read(spec)
    raise Refused(
        f"A job names {spec.source[:80]}, and no job may read a file of this machine by its path.",
        fix="Submit it through a node of the hive, or have the owner name the file in data.private.",
    )


def merged(own: DataSpec, asked: DataSpec) -> DataSpec:
    """What the owner says the data are, divided as the job says."""
    return own.model_copy(update={"test_fraction": asked.test_fraction, "seed": asked.seed})
