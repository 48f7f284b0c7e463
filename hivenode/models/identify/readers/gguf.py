"""GGUF: llama.cpp's container. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import math
import struct

from hivenode.errors import Corrupted, Exhausted
from hivenode.models.identify.formats.templates import judge_template
from hivenode.models.identify.formats.windows import Window
from hivenode.models.identify.naming.gguf import FILE_TYPES, KINDS, recognise
from hivenode.models.identify.report import Confidence, Report, Tensor
from hivenode.models.identify.source import Source

MAGIC = b"GGUF"
MOST_KEYS = 65_536
MOST_TENSORS = 200_000
MOST_ELEMENTS = 20_000_000
"""Strings in all arrays: the largest vocabulary with its merges has about a million."""
LONGEST_TEXT = 8 << 20
DEEPEST_ARRAY = 4
MOST_AXES = 8
_LONGEST_KEPT = 4096
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ZEROS = b"\0" * 7

Value = bool | int | float | str


def detects(head: bytes, source: Source) -> bool:
    return head.startswith(MAGIC)


def read(source: Source) -> Report:
    """Keys, values and tensor infos; arrays are skipped over, their lengths kept.

    Raises:
        Corrupted: unknown types, tensors outside the file or on top of each other, a name twice.
        Exhausted: more keys, tensors or strings than any model has.
    """
    report = Report(safe=True)
    header = _Header(source)
    header.read_all()
    values = header.values
    report.know(Confidence.read, "magic and version", format="gguf", framework="gguf")
    report.hold(header.tensors(), "tensor infos")
    if header.after:
        place = f"byte {source.size - header.after}"
        report.find(f"{header.after} bytes after the last tensor", place, "GGUF has nothing there")
    for key, at, text in header.templates:
        if text is None:
            report.find(key, f"byte {at}", "It is an array where a chat template would be a text.")
        else:
            judge_template(report, text, key, f"byte {at}: {text[:120]!r}")
    kind = values.get("general.file_type")
    named = FILE_TYPES.get(kind) if isinstance(kind, int) else None
    stored = max(header.bytes_by_type, key=lambda name: header.bytes_by_type[name], default=None)
    if named is not None and named not in ("f32", "f16", "bf16"):
        report.know(Confidence.read, "general.file_type", quantization=named)
    elif named is None and stored is not None and stored not in ("float32", "float16", "bfloat16", "float64"):
        report.know(Confidence.inferred, "the type of most tensors", quantization=stored)
    recognise(report, values, header.lengths)
    return report


class _Header:
    """What stands before the tensors.

    Attributes:
        values: scalars and short texts by key.
        lengths: key -> elements, for arrays.
        after: bytes behind the last tensor and its padding, once `tensors` was called.
        templates: chat templates: key, byte offset, text (None: an array).
        bytes_by_type: tensor type -> bytes stored so.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.window = Window(source.part(0, source.size), source.size, source.name)
        self.values: dict[str, Value] = {}
        self.lengths: dict[str, int] = {}
        self.after = 0
        self.templates: list[tuple[str, int, str | None]] = []
        self.bytes_by_type: dict[str, int] = {}
        self._infos: list[tuple[str, tuple[int, ...], int, int]] = []
        self._elements = 0
        self.at = 4

    def read_all(self) -> None:
        raw = self.window.read(4, 4)
        (version,) = struct.unpack("<I", raw)
        self.order = "<"
        if version & 0xFFFF == 0:
            self.order = ">"
            (version,) = struct.unpack(">I", raw)
        if version not in (1, 2, 3):
            raise self.window.broken(f"it is of GGUF version {version}, known are 1 to 3")
        self.at = 8
        self.wide = "Q" if version > 1 else "I"
        tensors, keys = self._number(self.wide), self._number(self.wide)
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise Exhausted(
                f"{self.source.name} claims {keys} keys and {tensors} tensors, more than any model has.",
                fix="It is damaged or made to waste memory; fetch it from where it was made.",
            )
        for _ in range(keys):
            self._pair()
        for _ in range(tensors):
            self._info()

    def _number(self, code: str) -> int:
        width = 8 if code == "Q" else 4
        value = int.from_bytes(self.window.read(self.at, width), "little" if self.order == "<" else "big")
        self.at += width
        return value

    def _text(self, longest: int) -> str:
        length = self._number(self.wide)
        if length > longest:
            raise Exhausted(
                f"{self.source.name} has a text of {length} bytes at {self.at}.", fix="It is damaged; fetch it again."
            )
        raw = self.window.read(self.at, length)
        self.at += length
        return raw.decode("utf-8", "backslashreplace")

    def _pair(self) -> None:
        key = self._text(1 << 16)
        if key in self.values or key in self.lengths:
            raise self.window.broken(f"it holds the key {key[:80]} twice")
        kind = self._number("I")
        place = self.at
        if kind == _ARRAY:
            self.lengths[key] = self._skip_array(0)
            if "chat_template" in key and key != "tokenizer.chat_templates":  # which holds names only
                self.templates.append((key, place, None))
        elif kind == _STRING:
            text = self._text(LONGEST_TEXT)
            self.values[key] = text[:_LONGEST_KEPT]
            if "chat_template" in key:
                self.templates.append((key, place, text))
        elif kind in _SCALARS:
            width = _WIDTHS[kind]
            (value,) = struct.unpack(self.order + _SCALARS[kind], self.window.read(self.at, width))
            self.at += width
            self.values[key] = value
        else:
            raise self.window.broken(f"the key {key[:80]} is of type {kind}, which is none")

    def _skip_array(self, depth: int) -> int:
        """Go past an array; returns its length."""
        kind, length = self._number("I"), self._number(self.wide)
        if kind in _WIDTHS:
            self.at += length * _WIDTHS[kind]
            if self.at > self.window.size:
                raise self.window.broken(f"an array of {length} elements ends beyond the end")
            return length
        if kind not in (_STRING, _ARRAY):
            raise self.window.broken(f"an array at byte {self.at} is of type {kind}, which is none")
        self._elements += length
        if self._elements > MOST_ELEMENTS or depth >= DEEPEST_ARRAY:
            raise Exhausted(
                f"{self.source.name} has arrays of more than {MOST_ELEMENTS} texts, or arrays within arrays.",
                fix="It is damaged or made to waste time; fetch it from where it was made.",
            )
        smallest = struct.calcsize(self.wide)
        if length * smallest > self.window.size - self.at:
            raise self.window.broken(f"an array of {length} texts ends beyond the end")
        if kind == _ARRAY:
            for _ in range(length):
                self._skip_array(depth + 1)
        else:
            self._skip_texts(length)
        return length

    def _skip_texts(self, left: int) -> None:
        """Hop from length to length; the texts themselves are not decoded."""
        window = self.window
        one = struct.Struct(self.order + self.wide)
        width, unpack = one.size, one.unpack_from
        while left:
            window.near(self.at, width)
            if width == 8 and self.order == "<":
                passed, self.at = self._hop(left)
                left -= passed
            buffer, at, last = window.buffer, self.at - window.base, len(window.buffer) - width
            if at > last and window.limit == window.size and left:
                raise window.broken(f"an array of texts ends at byte {window.limit}")
            while left and at <= last:
                at += width + unpack(buffer, at)[0]
                left -= 1
            self.at = window.base + at
            if self.at > window.size:
                raise window.broken("a text in an array ends beyond the end")

    def _hop(self, left: int) -> tuple[int, int]:
        """Past as many texts of the buffer as can be told at once, up to `left`: how many, and where the next begins.

        The length of a text of less than 256 bytes is a byte and seven zeros. Cut at the zeros, each piece is a text
        and the length byte of the next; if every piece is as long as the byte before says, these are the true borders.
        """
        window = self.window
        pieces = window.buffer[self.at - window.base :].split(_ZEROS, left + 1)
        del pieces[-1]  # not followed by zeros: no length is known to end here
        if len(pieces) < 2 or len(pieces[0]) != 1 or not all(pieces):
            return 0, self.at
        sizes = list(map(len, pieces))
        stated = [piece[-1] + 1 for piece in pieces]
        if sizes[1:] != stated[:-1]:
            return 0, self.at
        return len(pieces) - 1, self.at + sum(sizes) + 7 * (len(pieces) - 1) - 1

    def _info(self) -> None:
        name = self._text(1 << 12)
        axes = self._number("I")
        if axes > MOST_AXES:
            raise self.window.broken(f"the tensor {name[:80]} has {axes} axes")
        shape = tuple(self._number(self.wide) for _ in range(axes))[::-1]
        self._infos.append((name, shape, self._number("I"), self._number("Q")))

    def tensors(self) -> list[Tensor]:
        """The listing, every tensor checked against the file and its neighbours; shapes are GGUF's, reversed."""
        alignment = self.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.window.broken(f"its alignment is {alignment}")
        start = -(-self.at // alignment) * alignment
        listing: list[Tensor] = []
        spans: list[tuple[int, int, str]] = []
        names: set[str] = set()
        for name, shape, number, offset in self._infos:
            kind = KINDS.get(number)
            if kind is None:
                raise self.window.broken(f"the tensor {name[:80]} is of type {number}, which is not known")
            if name in names:
                raise self.window.broken(f"it holds the tensor {name[:80]} twice")
            names.add(name)
            nbytes = self._bytes(name, shape, kind.block, kind.bytes)
            spans.append((offset, nbytes, name))
            if offset % alignment or start + offset + nbytes > self.window.size:
                raise self.window.broken(
                    f"the tensor {name[:80]} takes {nbytes} bytes at {start + offset}, the file has {self.window.size}"
                )
            self.bytes_by_type[kind.name] = self.bytes_by_type.get(kind.name, 0) + nbytes
            trainable = False if name.startswith(("rope_freqs", "rope_factors")) else None
            listing.append(Tensor(name, kind.name, shape, "", start + offset, nbytes, None, trainable))
        self._check_overlap(spans)
        end = start + max((offset + nbytes for offset, nbytes, _ in spans), default=0)
        self.after = max(0, self.window.size - -(-end // alignment) * alignment)
        return listing

    def _bytes(self, name: str, shape: tuple[int, ...], block: int, size: int) -> int:
        elements = math.prod(shape)
        if elements >= 1 << 62:
            raise self.window.broken(f"the shape of the tensor {name[:80]} makes no sense")
        if shape and shape[-1] % block:
            raise self.window.broken(f"the rows of the tensor {name[:80]} are no whole blocks of {block}")
        return elements // block * size

    def _check_overlap(self, spans: list[tuple[int, int, str]]) -> None:
        end, before = 0, ""
        for offset, nbytes, name in sorted(spans):
            if offset < end:
                raise Corrupted(
                    f"{self.source.name} is damaged: the tensors {before[:80]} and {name[:80]} overlap.",
                    fix="Fetch it again from where it was made.",
                )
            end, before = offset + nbytes, name
