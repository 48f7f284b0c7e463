"""Reads a file and cuts it into pieces, in a process of its own: `python -m hivenode.data.prepare BYTES [DIRECTORY]`.

The declaration comes in as JSON on standard input; the manifest, or the error, goes out as JSON on standard output. So
that the daemon need not wait, import what reads files, or hold them. BYTES are the memory it may take; without a
DIRECTORY nothing is cut.
"""

from __future__ import annotations

import errno
import json
import resource
import sys
from pathlib import Path

import msgspec

from hivenode.data import shards
from hivenode.data.reading import read
from hivenode.errors import Exhausted, HiveError, InvalidInput
from hivenode.spec.data import DataSpec

_FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(memory_bytes: int, directory: Path | None) -> int:
    """Exit status: 0 with a manifest, 1 with an error, each as one JSON object."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    try:
        dataset = read(DataSpec.model_validate_json(sys.stdin.buffer.read()))
        manifest = shards.described(dataset) if directory is None else shards.write(dataset, directory)
    except HiveError as error:
        print(json.dumps({"error": error.to_dict()}))
        return 1
    except (MemoryError, OSError) as error:
        print(json.dumps({"error": _told(error).to_dict()}))
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(manifest))
    return 0


def _told(error: MemoryError | OSError) -> HiveError:
    if isinstance(error, OSError) and error.errno not in _FULL:
        where = f"{error.filename}: " if error.filename else ""
        return InvalidInput(
            f"The data cannot be prepared: {where}{error.strerror or error}.", fix="See to the file or its permissions."
        )
    return Exhausted(f"The data cannot be prepared: {error or 'memory has run out'}.", fix="Free some, or split.")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
