"""Streams are unpacked as far as they are read, and never further than is allowed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivenode.errors import Corrupted, Exhausted, HiveError
from hivenode.models.identify.formats.compression import Unpacked, compression
from hivenode.models.identify.formats.lz4 import Lz4Error, unpack_block
from hivenode.models.identify.source import Held

DATA = bytes(random.Random(4).choices(b"abcdefg\0", k=1_200_000)) + b"\0" * 3_000_000


def raw_lz4(data: bytes) -> bytes:
    """A frame of stored blocks of 4 MiB, without checksums."""
    blocks = [data[at : at + (4 << 20)] for at in range(0, len(data), 4 << 20)]
    packed = b"".join(struct.pack("<I", len(block) | 1 << 31) + block for block in blocks)
    return b"\x04\x22\x4d\x18\x60\x70\x73" + packed + b"\0\0\0\0"


PACKED = {
    "gzip": gzip.compress(DATA, 1), "zlib": zlib.compress(DATA, 1), "bz2": bz2.compress(DATA, 1),
    "xz": lzma.compress(DATA, preset=0), "lzma": lzma.compress(DATA, lzma.FORMAT_ALONE, preset=0), "lz4": raw_lz4(DATA),
}  # fmt: skip


def unpacked(packed: bytes, kind: str, **more: int) -> Unpacked:
    return Unpacked(Held(packed), len(packed), kind, "the file", **more)


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_what_was_packed_comes_out_from_anywhere(kind: str) -> None:
    packed = PACKED[kind]
    assert compression(packed[:16]) == kind
    stream = unpacked(packed, kind)
    read = io.BytesIO()
    while part := stream.some(read.tell(), 300_001):
        read.write(part)
    assert read.getvalue() == DATA
    assert stream.some(5, 20) == DATA[5:25]
    assert stream.some(1_199_990, 20) == DATA[1_199_990:1_200_010]
    assert stream.some(len(DATA) - 3, 10) == DATA[-3:]
    assert stream.rest == 0


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_a_stream_that_is_cut_says_so(kind: str) -> None:
    packed = PACKED[kind]
    for length in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(Corrupted):
            unpacked(packed[:length], kind).some(len(DATA), 1)


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_bytes_after_the_stream_are_counted(kind: str) -> None:
    stream = unpacked(PACKED[kind] + b"cos\nsystem\n", kind)
    assert stream.some(len(DATA), 1) == b""
    assert stream.rest == 11


def test_members_follow_each_other() -> None:
    stream = unpacked(gzip.compress(b"one ") + gzip.compress(b"two"), "gzip")
    assert stream.some(0, 100) == b"one two"
    with pytest.raises(Corrupted, match="streams"):
        unpacked(gzip.compress(b"") * 5000, "gzip").some(0, 1)


@pytest.mark.parametrize("kind", ["gzip", "zlib", "bz2", "xz", "lzma"])
def test_a_bomb_is_put_out(kind: str) -> None:
    zeros = bytes(80 << 20)
    made = {"gzip": gzip.compress, "zlib": zlib.compress, "bz2": bz2.compress}.get(kind)
    if made is None:
        form = lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE
        packed = lzma.compress(zeros, form, preset=0)
    else:
        packed = made(zeros, 9)
    del zeros
    assert len(packed) < 1 << 20
    tracemalloc.start()
    with pytest.raises(Exhausted):
        unpacked(packed, kind, most=40 << 20).some(1 << 40, 1)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_bomb_of_lz4_is_put_out() -> None:
    block = b"\x1f\0\x01\0" + b"\xff" * 16_448 + b"\0" + b"\x50\0\0\0\0\0"  # one zero, repeated to almost 4 MiB
    assert len(unpack_block(block, b"", 4 << 20)) > 4_000_000
    frame = b"\x04\x22\x4d\x18\x60\x70\x73" + (struct.pack("<I", len(block)) + block) * 30 + b"\0\0\0\0"
    tracemalloc.start()
    with pytest.raises(Exhausted):
        unpacked(frame, "lz4", most=40 << 20).some(1 << 40, 1)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    longer = b"\x1f\0\x01\0" + b"\xff" * 40_000_000 + b"\0"
    with pytest.raises(Lz4Error):
        unpack_block(longer, b"", 4 << 20)


def test_a_dictionary_of_four_gigabytes_is_refused() -> None:
    head = b"\x5d" + struct.pack("<I", 0xFFFFFFFF) + b"\xff" * 8
    with pytest.raises(Corrupted, match=r"[Mm]emory"):
        unpacked(head + b"\0" * 100, "lzma").some(0, 1)


@given(st.binary(max_size=300), st.sampled_from(sorted(PACKED)))
def test_noise_is_refused_or_read(noise: bytes, kind: str) -> None:
    start = PACKED[kind][:40]
    with suppress(HiveError):
        unpacked(start + noise, kind).some(0, 4096)


@given(st.binary(max_size=400), st.binary(max_size=64))
def test_blocks_of_noise_never_grow_beyond_what_they_may(noise: bytes, history: bytes) -> None:
    with suppress(Lz4Error):
        assert len(unpack_block(noise, history, 1000)) <= 1000
