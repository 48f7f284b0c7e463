"""Files as data sets, one reader per kind. Nothing in a file is ever run; every size it claims is checked first.

A reader is given the path and the declaration and returns `Raw`; `read` picks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from hivenode.data.readers.raw import Raw
from hivenode.errors import InvalidInput, NotFound
from hivenode.spec.data import DataSpec

_READERS: Mapping[str, str] = {
    "npz": "arrays:read_npz",
    "npy": "arrays:read_npy",
    "csv": "csv_file:read",
    "jsonl": "jsonl_file:read",
    "parquet": "arrow:read_parquet",
    "arrow": "arrow:read_saved",
    "text": "plain_text:read",
    "images": "image_folder:read",
}


def read(spec: DataSpec) -> Raw:
    """All of a file or folder.

    Raises:
        NotFound: there is none.
        InvalidInput: it is not what it should be, with file, line (or row) and column.
        Unavailable: a library that reads such files is not installed here.
    """
    path = Path(spec.name).expanduser()
    if not path.exists():
        raise NotFound(f"There is no {spec.kind} {path}.", fix="Check data.source; a path begins at the job file.")
    folder = spec.kind in ("images", "arrow") or (spec.kind in ("text", "parquet") and path.is_dir())
    if path.is_dir() != folder:
        raise InvalidInput(
            f"{path} is {'a file' if folder else 'a folder'}.",
            fix=f"Give a {'folder' if folder else 'file'} after {spec.kind}:.",
        )
    module, _, name = _READERS[spec.kind].partition(":")
    reader: Callable[[Path, DataSpec], Raw] = getattr(import_module(f"hivenode.data.readers.{module}"), name)
    return reader(path, spec)
