"""Reads a file and cuts it into pieces, in a process of its own: `python -m hivenode.worker.prepare BYTES [DIRECTORY]`.

The declaration comes in as JSON on standard input; the manifest, or the error, goes out as JSON on standard output. So
that the daemon need not wait, import what reads files, or hold them; and so that a file made to break its reader breaks
nothing else: before it is opened the process walls itself in, and is left that file to read, DIRECTORY to write in, and
BYTES of memory. Without a DIRECTORY nothing is cut.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import msgspec

from hivenode.data.preparing import SECONDS
from hivenode.errors import Exhausted, HiveError, InvalidInput
from hivenode.spec.data import DataSpec
from hivenode.worker import reach, sandbox

FILE_BYTES = 256 << 20
"""Of one piece, far more than it should have; what all of them take is looked at from without."""
CORES = 8
"""That may compute for as long as reading may take."""
_FULL = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(memory_bytes: int, directory: Path | None) -> int:
    """Exit status: 0 with a manifest, 1 with an error, each as one JSON object."""
    parent = os.getppid()
    sandbox.die_with_parent(parent)
    spec = DataSpec.model_validate_json(sys.stdin.buffer.read())
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries may print
    writes = () if directory is None else (directory,)
    sandbox.set_apart(
        sandbox.Apart(tuple(reach.to_read(spec)), writes, memory_bytes, cpu_s=CORES * SECONDS, file_bytes=FILE_BYTES)
    )
    sandbox.die_with_parent(parent)  # again: new credentials may undo it
    status, said = _answer(spec, directory)
    with os.fdopen(answers, "wb") as out:
        out.write(said)
    return status


def _answer(spec: DataSpec, directory: Path | None) -> tuple[int, bytes]:
    from hivenode.data import shards  # here, within the walls
    from hivenode.data.reading import read

    try:
        dataset = read(spec)
        manifest = shards.described(dataset) if directory is None else shards.write(dataset, directory)
    except HiveError as error:
        return 1, _error(error)
    except (MemoryError, OSError) as error:
        return 1, _error(_told(error))
    return 0, msgspec.json.encode(manifest)


def _error(error: HiveError) -> bytes:
    return json.dumps({"error": error.to_dict()}).encode()


def _told(error: MemoryError | OSError) -> HiveError:
    if isinstance(error, OSError) and error.errno not in _FULL:
        where = f"{error.filename}: " if error.filename else ""
        return InvalidInput(
            f"The data cannot be prepared: {where}{error.strerror or error}.", fix="See to the file or its permissions."
        )
    return Exhausted(f"The data cannot be prepared: {error or 'memory has run out'}.", fix="Free some, or split.")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
