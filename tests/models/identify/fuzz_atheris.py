"""Looks for files that upset a reader, led by coverage. Wants atheris, which the tests do not.

    python -m tests.models.identify.fuzz_atheris FAMILY [options of libFuzzer, e.g. -max_total_time=120]

FAMILY is a group of samples (pytorch, transformers, graphs, tabular, agents) or `all`: its files are what the search
begins with. It ends at the first file that raises, hangs (10 s), takes 512 MB, or gets neither verdict nor error.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import msgspec

with atheris.instrument_imports(include=["hivenode.models.identify"]):
    from importlib import import_module

    from hivenode.models.identify import FILE_READERS, identify

    for reader in FILE_READERS:
        import_module(f"hivenode.models.identify.readers.{reader.module}")

SAMPLES = Path(__file__).parents[1] / "samples"
LONGEST = 40_000


def main() -> None:
    family, options = sys.argv[1], sys.argv[2:]
    held = Path(tempfile.mkdtemp(prefix="identify-"))
    corpus = held / "corpus"
    corpus.mkdir()
    for number, path in enumerate(sorted((SAMPLES / ("" if family == "all" else family)).rglob("*"))):
        if path.is_file() and path.suffix != ".py" and 0 < path.stat().st_size <= LONGEST:
            shutil.copy(path, corpus / f"{number}")
    victim = held / "model"

    def look(data: bytes) -> None:
        victim.write_bytes(data)
        report = identify(victim)
        msgspec.json.encode(report.to_dict(listing=True))
        if report.error is None and report.safe is None:
            raise AssertionError("neither a verdict nor an error")
        if report.error is not None and (report.safe or not report.error.fix):
            raise AssertionError("an error, and safe or without a way out")

    os.chdir(held)  # where libFuzzer leaves what it finds
    limits = [f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=512", *options]
    atheris.Setup([sys.argv[0], str(corpus), *limits], look)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
