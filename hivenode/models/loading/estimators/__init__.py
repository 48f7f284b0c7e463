"""Estimators of scikit-learn rebuilt from what their file says they hold; nothing the file names is called.

The pickle machine of `identify` turns a file into inert nodes; `values.py` turns nodes into numbers, arrays and
instances of the classes in `classes.py`; `checks.py` looks through every array that compiled code will trust.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from hivenode.errors import Exhausted
from hivenode.models.identify.formats.compression import Unpacked, compression
from hivenode.models.identify.formats.pickles import Value
from hivenode.models.identify.formats.python_pickles import content
from hivenode.models.identify.naming.estimator_pickles import ALLOWED, NEVER_GIVEN_ARGUMENTS
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Held, Readable, Source
from hivenode.models.loading import memory
from hivenode.models.loading.estimators.values import Rebuilder

WHOLE = 1 << 40
"""Bytes that may be read of a file whose size was checked before."""
CHUNK = 4 << 20


def load_estimator(path: Path, form: str, budget: int) -> tuple[Any, tuple[str, ...]]:
    """What a pickle, a joblib or a skops file holds, and the attributes that were left out.

    Args:
        budget: bytes that arrays and unpacked data may take.

    Raises:
        Refused: it holds something that is not rebuilt; the sentence names it and its place.
        Corrupted: it is damaged, or its arrays lie.
        Exhausted: it takes more than the budget.
    """
    if form == "skops":
        from hivenode.models.loading.estimators import skops

        with Source(path, budget=WHOLE) as source:
            rebuilder = Rebuilder(path, b"", source, budget)
            return rebuilder.whole(skops.read(source, budget)), tuple(dict.fromkeys(rebuilder.left_out))
    with Source(path, budget=WHOLE) as source:
        data, within = _data(source, budget)
        values = _values(path, source.name, within)
        rebuilder = Rebuilder(path, data, source, budget)
        made = [rebuilder.whole(value) for value in values]
        return made[0] if len(made) == 1 else made, tuple(dict.fromkeys(rebuilder.left_out))


def _data(source: Source, budget: int) -> tuple[bytes | mmap.mmap, Readable]:
    """The bytes the pickles are in: the file as it lies, or all it unpacks to."""
    kind = compression(source.head(16))
    if kind is None:
        with source.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), source
    packed = Unpacked(source, source.size, kind, source.name, most=budget + CHUNK)
    made = bytearray()
    while piece := packed.some(len(made), CHUNK):
        made += piece
        if len(made) * 2 > budget:
            raise Exhausted(
                f"{source.name} unpacks to more than half of the budget of {budget / memory.MIB:,.1f} MiB.",
                fix="Give it more memory, or save the model without compression.",
            )
    whole = bytes(made)
    return whole, Held(whole)


def _values(path: Path, name: str, data: Readable) -> list[Value]:
    """The pickles' values; judged once more, since the file is read once more."""
    from hivenode.models.loading import refuse

    report = Report(safe=True)
    held = content(report, data, name, ALLOWED, NEVER_GIVEN_ARGUMENTS)
    if report.findings:
        raise refuse(path, report.findings[0], len(report.findings) - 1)
    return held.values
