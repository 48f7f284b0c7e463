"""Zip and tar archives by their directories, with every number checked; nothing is unpacked but what is asked for.

Zip after PKWARE's APPNOTE 6.3.10. Readers of zip files disagree about damaged ones, and such disagreement hides things
from scanners: where the directory and the local headers differ, the archive is refused.
"""

from __future__ import annotations

import struct
import zlib
from typing import NoReturn

import msgspec

from hivenode.errors import Corrupted, Exhausted, InvalidInput
from hivenode.models.identify.source import LARGEST_READ, Part, Readable, Source

ZIP_MAGIC = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
STORED, DEFLATED = 0, 8
MOST_ENTRIES = 200_000
MOST_UNPACKED = 64 << 20
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_MARK32 = 0xFFFFFFFF
_ENCRYPTED = 0x1 | 0x40


class Entry(msgspec.Struct, frozen=True):
    """One file in an archive.

    Attributes:
        header: offset of the local header.
        packed, size: bytes as stored and unpacked.
    """

    name: str
    header: int
    packed: int
    size: int
    method: int
    flags: int
    crc: int

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & _ENCRYPTED)


class Archive:
    """The directory of a zip archive.

    Raises (when made):
        Corrupted: no end record (cut short), entries that overlap or lie outside, a name twice, a directory that lies.
        Exhausted: more entries than a model has.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.entries: dict[str, Entry] = {}
        self._starts: dict[str, int] = {}
        self._read_directory()

    @classmethod
    def of(cls, source: Source) -> Archive:
        """The archive that `source` is, its directory read once for all who ask."""
        kept = source.kept.get("zip")
        if isinstance(kept, Archive):
            return kept
        if isinstance(kept, Corrupted | Exhausted):
            raise kept
        try:
            made = cls(source)
        except (Corrupted, Exhausted) as error:
            source.kept["zip"] = error
            raise
        source.kept["zip"] = made
        return made

    @classmethod
    def sound(cls, head: bytes, source: Source) -> Archive | None:
        """For `detects`: the archive if `source` is one and its directory can be read; never raises."""
        if not head.startswith(ZIP_MAGIC):
            return None
        try:
            return cls.of(source)
        except (Corrupted, Exhausted):
            return None

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str, *, limit: int = MOST_UNPACKED) -> bytes:
        """One entry, unpacked, its checksum checked.

        Raises:
            Corrupted: there is no such entry, it is damaged, or unpacks to another size than declared.
            Exhausted: it unpacks to more than `limit` bytes.
            InvalidInput: it is encrypted or packed in a way that is not read.
        """
        entry = self._entry(name)
        start = self.start(name)
        if entry.size > limit:
            raise Exhausted(
                f"{name} in {self.source.name} unpacks to {entry.size} bytes, more than headers may take ({limit}).",
                fix="The archive is damaged or made to waste memory; fetch it from where it was made.",
            )
        if entry.method == STORED:
            data = self._pieces(start, entry.packed)
        elif entry.method == DEFLATED:
            data = self._inflate(entry, start)
        else:
            raise InvalidInput(
                f"{name} in {self.source.name} is packed by method {entry.method}, which is not read.",
                fix="Pack it with deflate, or store it as it is.",
            )
        if len(data) != entry.size:
            self._fail(f"{name} unpacks to {len(data)} bytes where {entry.size} are declared")
        if zlib.crc32(data) != entry.crc:
            self._fail(f"{name} does not match its checksum")
        return data

    def stored(self, name: str) -> Readable:
        """An entry to be read in pieces: without a copy where it is stored as it is, else unpacked; the checksum is
        checked only in the second case."""
        entry = self._entry(name)
        if entry.method == STORED:
            return self.part(name)
        from hivenode.models.identify.source import Held

        return Held(self.read(name))

    def part(self, name: str) -> Part:
        """The bytes of an entry, as they lie in the file."""
        return self.source.part(self.start(name), self._entry(name).packed)

    def start(self, name: str) -> int:
        """Where the bytes of an entry begin; its local header is checked against the directory.

        Raises:
            Corrupted: they differ, or there is no such entry.
            InvalidInput: it is encrypted.
        """
        known = self._starts.get(name)
        if known is not None:
            return known
        entry = self._entry(name)
        raw = name.encode("utf-8" if entry.flags & 0x800 else "cp437", "replace")
        header = self.source.read(entry.header, _LOCAL.size + len(raw))
        signature, _, flags, method, _, _, _, packed, size, name_length, extra = _LOCAL.unpack_from(header)
        if signature != ZIP_MAGIC or name_length != len(raw):
            self._fail(f"the directory and the header of {name} differ")
        own = header[_LOCAL.size :]
        if own != raw and own.decode("utf-8", "replace") != name:
            self._fail(f"the directory calls an entry {name}, its header calls it {own!r}")
        if entry.encrypted or flags & _ENCRYPTED:
            raise InvalidInput(
                f"{name} in {self.source.name} is encrypted.", fix="Unpack it with its password and give the files."
            )
        described = flags & 0x8 and not packed and not size  # the sizes follow the data
        if method != entry.method or (
            not described and _MARK32 not in (packed, size) and (packed, size) != (entry.packed, entry.size)
        ):
            self._fail(f"the directory and the header of {name} differ")
        start: int = entry.header + _LOCAL.size + name_length + extra
        if start + entry.packed > self.source.size:
            self._fail(f"{name} ends beyond the end of the file")
        self._starts[name] = start
        return start

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            self._fail(f"there is no {name} in it")
        return entry

    def _pieces(self, start: int, length: int) -> bytes:
        if length <= LARGEST_READ:
            return self.source.read(start, length)
        steps = range(0, length, LARGEST_READ)
        return b"".join(self.source.read(start + at, min(LARGEST_READ, length - at)) for at in steps)

    def _inflate(self, entry: Entry, start: int) -> bytes:
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = machine.decompress(self._pieces(start, entry.packed), entry.size + 1)
        except zlib.error:
            self._fail(f"{entry.name} cannot be unpacked")
        return data

    def _fail(self, what: str) -> NoReturn:
        raise Corrupted(
            f"The archive {self.source.name} is damaged: {what}.", fix="Fetch it again from where it was made."
        )

    def _read_directory(self) -> None:
        end = self._find_end()
        raw = self.source.tail(self.source.size - end)
        _, disk, first_disk, here, count, size, offset, _ = _END.unpack_from(raw)
        limit = end
        if end >= _LOCATOR.size:
            locator = self.source.read(end - _LOCATOR.size, _LOCATOR.size)
            if locator.startswith(b"PK\x06\x07"):
                _, _, place, _ = _LOCATOR.unpack(locator)
                _, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack(
                    self.source.read(place, _END64.size)
                )
                if self.source.read(place, 4) != b"PK\x06\x06":
                    self._fail("its end record points to nothing")
                limit = place
        if disk or first_disk or here != count:
            self._fail("it is one of several pieces")
        if offset + size != limit:
            self._fail("its directory does not lie before its end record; it is cut short or glued to something")
        if count > MOST_ENTRIES or size > LARGEST_READ:
            raise Exhausted(
                f"{self.source.name} has {count} entries, more than a model has.",
                fix="Give the file of the model itself.",
            )
        self._parse(self.source.read(offset, size), count, offset)

    def _find_end(self) -> int:
        """Offset of the end record: the last one whose comment reaches to the end of the file."""
        size = self.source.size
        tail = self.source.tail(_END.size)
        if len(tail) == _END.size and tail.startswith(EMPTY_ZIP) and tail.endswith(b"\0\0"):
            return size - _END.size
        tail = self.source.tail(_END.size + _LONGEST_COMMENT)
        at = len(tail)
        while (at := tail.rfind(EMPTY_ZIP, 0, at)) >= 0:
            if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
                if not tail[at + _END.size :].decode("latin1").isprintable():
                    self._fail("its comment is no text, and hides something")
                return size - len(tail) + at
        return self._fail("it has no end record; it is cut short")

    def _parse(self, raw: bytes, count: int, offset: int) -> None:
        at = 0
        ends: list[tuple[int, int]] = []
        for _ in range(count):
            if at + _CENTRAL.size > len(raw):
                self._fail("its directory is cut short")
            fields = _CENTRAL.unpack_from(raw, at)
            flags, method = fields[3:5]
            crc, packed, size, name_length, extra, comment, disk = fields[7:14]
            header = fields[16]
            at += _CENTRAL.size
            if fields[0] != b"PK\x01\x02" or disk:
                self._fail("its directory holds something else than entries")
            name = raw[at : at + name_length].decode("utf-8" if flags & 0x800 else "cp437", "replace")
            if _MARK32 in (packed, size, header):
                more = raw[at + name_length : at + name_length + extra]
                size, packed, header = self._wide(more, size, packed, header)
            at += name_length + extra + comment
            if name in self.entries:
                self._fail(f"it holds {name} twice")
            entry = Entry(name, header, packed, size, method, flags, crc)
            if method == STORED and packed != size and not entry.encrypted:
                self._fail(f"{name} is stored as it is and yet changes its size")
            self.entries[name] = entry
            ends.append((header, header + _LOCAL.size + name_length + packed))
        if at != len(raw):
            self._fail("its directory holds something else than entries")
        ends.sort()
        for (_, end), (following, _) in zip(ends, [*ends[1:], (offset, 0)], strict=True):
            if end > following:
                self._fail("entries overlap each other or its directory")

    def _wide(self, extra: bytes, *short: int) -> tuple[int, int, int]:
        """Sizes and offset, those that do not fit in 32 bits taken from the extra field 1."""
        values = list(short)
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            at += 4
            if kind == 1:
                wide = [place for place, value in enumerate(values) if value == _MARK32]
                if length < 8 * len(wide) or at + length > len(extra):
                    break
                for number, place in enumerate(wide):
                    values[place] = struct.unpack_from("<Q", extra, at + 8 * number)[0]
                return values[0], values[1], values[2]
            at += length
        return self._fail("a size is missing in its directory")


TAR_BLOCK = 512
MOST_MEMBERS = 20_000


class Member(msgspec.Struct, frozen=True):
    """One file in a tar archive: where its bytes lie."""

    name: str
    start: int
    size: int


def is_tar(head: bytes) -> bool:
    """By the mark of ustar and the checksum of the first header (v7 archives have no mark)."""
    return len(head) >= TAR_BLOCK and _checksum_holds(head[:TAR_BLOCK])


def members(source: Source) -> dict[str, Member]:
    """The regular files of a tar archive.

    Raises:
        Corrupted: a header is damaged, a member ends beyond the end, or a name is there twice.
        Exhausted: too many members.
    """
    found: dict[str, Member] = {}
    at = 0
    for _ in range(MOST_MEMBERS):
        if at + TAR_BLOCK > source.size:
            raise Corrupted(f"{source.name} is cut short: the tar archive has no end.", fix="Fetch the file again.")
        header = source.read(at, TAR_BLOCK)
        if not header.strip(b"\0"):
            return found
        if not _checksum_holds(header):
            raise Corrupted(f"{source.name} has a damaged tar header at byte {at}.", fix="Fetch the file again.")
        size = _octal(header[124:136])
        start = at + TAR_BLOCK
        if size < 0 or start + size > source.size:
            raise Corrupted(f"{source.name} is cut short: a member ends beyond its end.", fix="Fetch the file again.")
        if header[156:157] in b"\x000":
            name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
            name = name.removeprefix("./")
            if name in found:
                raise Corrupted(f"{source.name} holds {name} twice.", fix="Fetch it from where it was made.")
            found[name] = Member(name, start, size)
        at = start + -(-size // TAR_BLOCK) * TAR_BLOCK
    raise Exhausted(f"{source.name} has more than {MOST_MEMBERS} members.", fix="Give the file of the model.")


def _checksum_holds(header: bytes) -> bool:
    stated = _octal(header[148:156])
    return stated > 0 and stated == sum(header[:148]) + 8 * 0x20 + sum(header[156:])


def _octal(raw: bytes) -> int:
    """The number in a tar field; -1 if it is none."""
    if raw[:1] == b"\x80":
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b"\0 ")
    return int(digits, 8) if digits and all(48 <= digit <= 55 for digit in digits) else -1
