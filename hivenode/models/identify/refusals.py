"""What is said of files that are no models, or none that can be read."""

from __future__ import annotations

from hivenode.errors import Corrupted, HiveError, InvalidInput
from hivenode.models.identify.formats.archives import ZIP_MAGIC, Archive
from hivenode.models.identify.source import Source

SAMPLES = 16
_KNOWN = (
    (b"\x7fELF", "a program or library (ELF)"),
    (b"MZ", "a Windows program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"#!", "a script"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"OggS", "a sound file"),
    (b"RIFF", "a sound or picture file (RIFF)"),
    (b"PAR1", "a table (Parquet)"),
    (b"ARROW1", "a table (Arrow)"),
)
_PACKED = (
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "RAR"),
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


def refusal(head: bytes, source: Source) -> HiveError:
    """The error for a file that no reader knows, as precise as its first bytes allow."""
    name = source.path
    if source.size == 0:
        return Corrupted(f"{name} is empty.", fix="Fetch it again, or wait until it is written.")
    if head.startswith(b"version https://git-lfs"):
        return InvalidInput(
            f"{name} is a Git-LFS pointer, not the file itself.", fix="Fetch the content: git lfs pull, in its folder."
        )
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return InvalidInput(
            f"{name} is a web page, not a model; the download ended on a login or error page.",
            fix="Open the address in a browser, then download the file itself.",
        )
    if start.startswith((b"access denied", b"not found", b"invalid username", b"entry not found", b"repository not")):
        return InvalidInput(f"{name} holds a server's error message, not a model.", fix="Download it again, signed in.")
    if _all_zeros(head, source):
        return Corrupted(f"{name} holds nothing but zeros.", fix="The download or the disk failed; fetch it again.")
    if head.startswith(b"ZF0x"):
        return InvalidInput(
            f"{name} is a compressed pickle of joblib before 0.10, which is not read here.",
            fix="On its owner's machine, load it and dump it again with a joblib of today.",
        )
    for magic, kind in _PACKED:
        if head.startswith(magic):
            return InvalidInput(f"{name} is packed ({kind}).", fix="Unpack it and give what is in it.")
    for magic, kind in _KNOWN:
        if head.startswith(magic):
            return InvalidInput(f"{name} is {kind}, not a model.", fix="Give the model's own file.")
    if head.startswith(ZIP_MAGIC):
        return _archive(source)
    if head.startswith(b"PK\x05\x06"):
        return InvalidInput(f"{name} is an archive with nothing in it.", fix="Give the model's own file.")
    return InvalidInput(
        f"{name} is of no format that is known here.", fix="docs/identify.md lists the formats; convert it to one."
    )


def _archive(source: Source) -> HiveError:
    """For a zip archive of no known kind, or one that cannot be read."""
    try:
        archive = Archive.of(source)
    except HiveError as error:
        return error
    locked = [entry.name for entry in archive.entries.values() if entry.encrypted]
    if locked:
        return InvalidInput(
            f"{source.path} is an encrypted archive ({locked[0]}).",
            fix="Unpack it with its password and give the files.",
        )
    return InvalidInput(
        f"{source.path} is a zip archive, but no model's ({len(archive.entries)} entries).",
        fix="Unpack it and give the model that is in it.",
    )


def _all_zeros(head: bytes, source: Source) -> bool:
    """By the first and last bytes and samples between; a sparse file that was never written looks like this."""
    if head.strip(b"\0"):
        return False
    step = max(1, source.size // SAMPLES)
    return not any(source.some(at, 512).strip(b"\0") for at in range(0, source.size, step)) and not source.tail(
        512
    ).strip(b"\0")
