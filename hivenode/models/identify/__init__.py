"""What a file is, from its headers: nothing in it is run, unpickled or imported.

`report.py` is what is answered, `source.py` how bytes are read, `formats/` the bounded primitives (zip, pickle,
protobuf, HDF5, ...), `readers/` one reader per format, chosen by content, `naming/` the tables that turn names and
shapes into family, task and architecture, `refusals.py` what is said of files that are no models.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from hivenode.errors import Corrupted, HiveError, InvalidInput
from hivenode.models.identify.report import Report, Trouble
from hivenode.models.identify.source import Source

__all__ = ["Report", "identify"]

HEAD = 4096


class Reader(NamedTuple):
    """Where a reader of files is, and what such files begin with, so that it is imported only when it may be needed.

    Attributes:
        module: below `readers`.
        starts: first bytes, any of them; empty for formats that can be told by none.
    """

    module: str
    starts: tuple[bytes, ...] = ()


ZIP = b"PK\x03\x04"
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
OLD_PICKLES = (b"c", b"i", b"(", b"]", b"}")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18", b"\x5d\x00", b"\x78")

# In this order: the particular before the general.
FILE_READERS: tuple[Reader, ...] = (
    Reader("safetensors"),
    Reader("torch_export", (ZIP,)),
    Reader("torch_script", (ZIP,)),
    Reader("ultralytics", (ZIP,)),
    Reader("torch_zip", (ZIP,)),
    Reader("keras", (ZIP, b"\x89HDF\r\n\x1a\n", b"\0")),
    Reader("stable_baselines", (ZIP,)),
    Reader("tabnet", (ZIP,)),
    Reader("skops", (ZIP,)),
    Reader("numpy_arrays", (ZIP, b"\x93NUMPY")),
    Reader("torch_legacy", PICKLES),
    Reader("torch_tar"),
    Reader("xgboost", (b"{", b"binf", b" ", b"\n", b"\r", b"\t")),
    Reader("lightgbm", (b"tree",)),
    Reader("catboost", (b"CBM1", b"{", b" ", b"\n", b"\r", b"\t")),
    Reader("pickled", (*PICKLES, *COMPRESSED, *OLD_PICKLES)),
    Reader("gguf", (b"GGUF",)),
    Reader("tflite"),
    Reader("onnx", (b"\x08", b"\x12", b":")),
    Reader("saved_model", (b"\x08\x01\x12", b"\x0a")),
    Reader("tf_checkpoint"),
    Reader("sharded_index", (b"{",)),
    Reader("flax_msgpack", tuple(bytes([code]) for code in (*range(0x81, 0x90), 0xDE, 0xDF))),
)

DIRECTORY_READERS: tuple[str, ...] = (
    "torch_distributed",
    "deepspeed_directory",
    "diffusers_directory",
    "peft_directory",
    "transformers_directory",
    "saved_model",
    "tf_checkpoint",
)


class _FileReader(Protocol):
    def detects(self, head: bytes, source: Source) -> bool: ...

    def read(self, source: Source) -> Report: ...


class _DirectoryReader(Protocol):
    def detects_directory(self, path: Path, names: frozenset[str]) -> bool: ...

    def read_directory(self, path: Path) -> Report: ...


def identify(path: Path | str) -> Report:
    """What `path`, a model file or a directory that holds one, is.

    Never raises for what is in the file: what cannot be read ends in `error`, with `safe` None.
    """
    given = Path(path)
    try:
        report = _read_directory(given) if given.is_dir() else _read_file(given)
    except HiveError as error:
        report = Report(error=Trouble(error.code, error.sentence, error.fix))
    except RecursionError:
        deep = Corrupted(f"{given} nests too deeply.", fix="It is made to mislead; fetch it from where it was made.")
        report = Report(error=Trouble(deep.code, deep.sentence, deep.fix))
    except OSError as error:
        barred = InvalidInput(f"{given} cannot be read: {error.strerror}.", fix="Check the path and its permissions.")
        report = Report(error=Trouble(barred.code, barred.sentence, barred.fix))
    report.path = str(path)
    if report.dangerous:
        report.safe = False
    report.settle()
    return report


def read_open(source: Source) -> Report:
    """The report on an open file, by the first reader that knows its content.

    Raises:
        HiveError: none knows it, or it is damaged.
    """
    head = source.head(HEAD)
    for entry in FILE_READERS:
        if entry.starts and not head.startswith(entry.starts):
            continue
        reader = cast(_FileReader, import_module(f"{__name__}.readers.{entry.module}"))
        if reader.detects(head, source):
            report = reader.read(source)
            if report.size_bytes is None:
                report.size_bytes = source.size
            return report
    from hivenode.models.identify.refusals import refusal

    raise refusal(head, source)


def _read_file(path: Path) -> Report:
    with Source(path) as source:
        report = read_open(source)
        report.bytes_read = source.bytes_read
    return report


def is_model_directory(path: Path) -> bool:
    """Whether a directory as a whole is a model; a folder of model files is not."""
    try:
        return _directory_reader(path, _names(path)) is not None
    except InvalidInput:
        return False


def _names(path: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in path.iterdir())
    except PermissionError:
        raise InvalidInput(f"{path} may not be read by this user.", fix=f"Allow it: chmod u+rx {path}") from None


def _directory_reader(path: Path, names: frozenset[str]) -> _DirectoryReader | None:
    for module in DIRECTORY_READERS:
        reader = cast(_DirectoryReader, import_module(f"{__name__}.readers.{module}"))
        if reader.detects_directory(path, names):
            return reader
    return None


def _read_directory(path: Path) -> Report:
    names = _names(path)
    reader = _directory_reader(path, names)
    if reader is not None:
        return reader.read_directory(path)
    if not names:
        raise InvalidInput(f"The directory {path} is empty.", fix="Give a model file or a directory that holds one.")
    raise InvalidInput(
        f"The directory {path} holds no model of a known layout.",
        fix="Give a model file, or a directory with config.json and weights, model_index.json or saved_model.pb.",
    )
