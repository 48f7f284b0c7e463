"""The manifest of a data set cut into pieces: everything about it but its values. Needs no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from hivenode.data.info import DataInfo
from hivenode.data.normalisation import Normalisation
from hivenode.errors import Corrupted
from hivenode.spec.values import Digest

MANIFEST_BYTES = 64 << 20
"""Of a manifest, at most; tokenizers are in it."""
MOST_SHARDS = 4096
FORMAT: Literal["hivenode-data-1"] = "hivenode-data-1"

Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Shard(msgspec.Struct, frozen=True, array_like=True):
    digest: Digest
    size: Count
    rows: Annotated[int, msgspec.Meta(ge=1, le=2**40)]


Shards = Annotated[tuple[Shard, ...], msgspec.Meta(max_length=2 * MOST_SHARDS)]


class Manifest(msgspec.Struct, frozen=True):
    """Everything about a set but its values."""

    format: Literal["hivenode-data-1"]
    info: DataInfo
    normalisation: Normalisation
    targets: Normalisation
    tokenizer: str
    train: Shards
    test: Shards
    summary: tuple[str, ...]
    """Sizes and balance, in sentences."""

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.train + self.test


def overlapping(shards: Sequence[Shard], rows: range) -> tuple[Shard, ...]:
    """Those that hold any of these rows."""
    found, start = [], 0
    for shard in shards:
        if start < rows.stop and start + shard.rows > rows.start and len(rows):
            found.append(shard)
        start += shard.rows
    return tuple(found)


def read_manifest(data: bytes) -> Manifest:
    """Raises Corrupted when it is none."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupted(f"The list of a data set's pieces cannot be used: {error}.", fix="Submit again.") from error
