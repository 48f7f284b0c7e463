"""Sparse files to measure how long it takes to know them: 100 GB take a megabyte of disk, weights are holes.

Each maker returns how many bytes of its file are headers: everything but the weights.
"""

from __future__ import annotations

import binascii
import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import torch


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
    """A stack of `tensors` products with weights inside the file, `size` bytes in all."""
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
    return path.stat().st_size - side * side * tensors * 4


def gguf_file(
    path: Path, *, vocabulary: int = 128_256, merges: int = 280_147, blocks: int = 32, hidden: int = 4096
) -> int:
    """A llama of 16-bit weights with a tokenizer of this many tokens and merges."""

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
    return start


def safetensors_file(path: Path, size: int, tensors: int) -> int:
    """Float16 matrices of `size` bytes in all, as a transformer names them."""
    side = int((size / tensors / 2) ** 0.5)
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names(tensors):
        fields[name] = {"dtype": "F16", "shape": [side, side], "data_offsets": [at, at + side * side * 2]}
        at += side * side * 2
    header = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
    return 8 + len(header)


def names(count: int) -> list[str]:
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")  # fmt: skip
    return [f"model.layers.{place // 9}.{parts[place % 9]}.weight" for place in range(count)]


class _Storage:
    """Stands for a storage in the pickle below."""

    def __init__(self, key: int, elements: int) -> None:
        self.id = ("storage", torch.HalfStorage, str(key), "cpu", elements)


class _Tensor:
    """Is pickled as torch pickles a tensor."""

    def __init__(self, key: int, side: int) -> None:
        self.storage, self.side = _Storage(key, side * side), side

    def __reduce__(self) -> tuple[object, ...]:
        shape = (self.side, self.side)
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, (self.side, 1), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.id if isinstance(value, _Storage) else None


def torch_file(path: Path, size: int, tensors: int) -> int:
    """A zip checkpoint as torch.save writes it: storages are holes, aligned to 64 bytes, all in zip64."""
    side = int((size / tensors / 2) ** 0.5)
    scratch = path.with_suffix(".pkl")
    with scratch.open("wb") as file:
        _Pickler(file, 2).dump(OrderedDict((name, _Tensor(key, side)) for key, name in enumerate(names(tensors))))
    entries: list[tuple[str, bytes | int]] = [("m/data.pkl", scratch.read_bytes()), ("m/byteorder", b"little")]
    entries += [(f"m/data/{key}", side * side * 2) for key in range(tensors)]
    entries += [("m/version", b"3\n")]
    scratch.unlink()
    directory = []
    with path.open("wb") as file:
        for name, data in entries:
            length = data if isinstance(data, int) else len(data)
            crc = 0 if isinstance(data, int) else binascii.crc32(data)
            place, raw = file.tell(), name.encode()
            padding = -(place + 30 + len(raw) + 4) % 64
            head = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, length, length, len(raw), 4 + padding)
            file.write(head + raw + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
            if isinstance(data, int):
                file.seek(length, os.SEEK_CUR)
            else:
                file.write(data)
            wide = struct.pack("<2H3Q", 1, 24, length, length, place)
            most = 0xFFFFFFFF
            fixed = (45, 45, 0, 0, 0, 0, crc, most, most, len(raw), 28, 0, 0, 0, 0, most)
            directory.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", *fixed) + raw + wide)
        start, whole = file.tell(), b"".join(directory)
        count = len(entries)
        file.write(whole)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(whole), start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
        return file.tell() - tensors * side * side * 2
