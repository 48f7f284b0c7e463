"""Sparse files to measure how long it takes to know an ONNX or a GGUF file, beside the formats' own readers.

    python benchmarks/identify_graphs.py

`onnx_file` and `gguf_file` make the files; weights are holes, so 1.5 GB take a few hundred kilobytes of disk.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from hivenode.models.identify import identify


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _bytes(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def onnx_file(path: Path, *, size: int = 1_500_000_000, tensors: int = 300) -> int:
    """A stack of `tensors` products with weights inside the file, `size` bytes in all; returns the parameters."""
    side = int((size / tensors / 4) ** 0.5)
    parts: list[bytes | int] = []
    for place in range(tensors):
        node = (
            _bytes(1, b"x%d" % place)
            + _bytes(1, b"w%d" % place)
            + _bytes(2, b"x%d" % (place + 1))
            + _bytes(4, b"MatMul")
        )
        parts.append(_bytes(1, node))
    for place in range(tensors):
        raw = side * side * 4
        head = _number(1, side) * 2 + _number(2, 1) + _bytes(8, b"w%d" % place) + _varint(9 << 3 | 2) + _varint(raw)
        parts += [_varint(5 << 3 | 2) + _varint(len(head) + raw) + head, raw]
    shape = _bytes(2, _bytes(1, _bytes(2, b"n")) + _bytes(1, _number(1, side)))
    for number, name in ((11, b"x0"), (12, b"x%d" % tensors)):
        parts.append(_bytes(number, _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + shape))))
    length = sum(part if isinstance(part, int) else len(part) for part in parts)
    with path.open("wb") as file:
        file.write(_number(1, 9) + _bytes(2, b"pytorch") + _varint(7 << 3 | 2) + _varint(length))
        for part in parts:
            if isinstance(part, int):
                file.seek(part, os.SEEK_CUR)
            else:
                file.write(part)
        file.write(_bytes(8, _bytes(1, b"") + _number(2, 18)))
    return side * side * tensors


def gguf_file(
    path: Path, *, vocabulary: int = 128_256, merges: int = 280_147, blocks: int = 32, hidden: int = 4096
) -> int:
    """A llama of 16-bit weights with a tokenizer of this many tokens and merges; returns the parameters."""

    def text(raw: bytes) -> bytes:
        return struct.pack("<Q", len(raw)) + raw

    pairs = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"llama.block_count") + struct.pack("<II", 4, blocks),
        text(b"general.file_type") + struct.pack("<II", 4, 1),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, vocabulary)
        + b"".join(text(b"token%d" % place) for place in range(vocabulary)),
        text(b"tokenizer.ggml.token_type") + struct.pack("<IIQ", 9, 5, vocabulary) + b"\1\0\0\0" * vocabulary,
        text(b"tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, merges)
        + b"".join(text(b"ab %d" % place) for place in range(merges)),
    ]  # fmt: skip
    shapes = {b"token_embd.weight": (hidden, vocabulary)}
    for block in range(blocks):
        for name in (b"attn_q", b"attn_k", b"attn_v", b"attn_output", b"ffn_up", b"ffn_down", b"ffn_gate"):
            shapes[b"blk.%d.%s.weight" % (block, name)] = (hidden, hidden)
    infos, offset = [], 0
    for name, (columns, rows) in shapes.items():
        infos.append(text(name) + struct.pack("<IQQIQ", 2, columns, rows, 1, offset))
        offset += columns * rows * 2
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs)) + b"".join(pairs) + b"".join(infos)
    start = -(-len(head) // 32) * 32
    with path.open("wb") as file:
        file.write(head)
        file.truncate(start + offset)
    return sum(columns * rows for columns, rows in shapes.values())


def measure(path: Path, *, times: int = 7) -> tuple[float, int, int]:
    """The median in seconds over warm runs, the bytes read, the parameters."""
    identify(path)
    spans = []
    for _ in range(times):
        start = time.perf_counter()
        report = identify(path)
        spans.append(time.perf_counter() - start)
    return sorted(spans)[times // 2], report.bytes_read or 0, report.parameters or 0


def memory(path: Path) -> int:
    """The most bytes that Python held for one answer."""
    tracemalloc.start()
    identify(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def _load_onnx(path: Path) -> None:
    import onnx

    onnx.load(path)


def _load_gguf(path: Path) -> None:
    import gguf

    gguf.GGUFReader(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases: tuple[tuple[str, Callable[[Path], int], Callable[[Path], None]], ...] = (
            ("onnx", onnx_file, _load_onnx),
            ("gguf", gguf_file, _load_gguf),
        )
        for name, make, load in cases:
            path = Path(folder) / f"model.{name}"
            wanted = make(path)
            span, read, parameters = measure(path)
            most = memory(path)
            exact = "exact" if parameters == wanted else f"WRONG, {wanted} are in it"
            gigabytes = path.stat().st_size / 1e9
            print(f"{name}: {gigabytes:.1f} GB, {span * 1e3:.1f} ms, {read} bytes read, {most >> 20} MiB at most")
            print(f"  {parameters} parameters ({exact})")
            if importlib.util.find_spec(name) is not None:
                start = time.perf_counter()
                load(path)
                print(f"  the {name} package: {(time.perf_counter() - start) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
