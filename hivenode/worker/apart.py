"""A process that handles one file nobody vouches for: `python -m hivenode.worker.apart`, its order on stdin.

It walls itself in before it looks at the file or imports a framework; its answer goes to what was its stdout.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import msgspec

from hivenode.errors import Exhausted, HiveError
from hivenode.models.apart import DEFECT, Answer, Convert, Held, Limits, Load, Order, Text
from hivenode.models.identify.report import Trouble
from hivenode.worker import sandbox
from hivenode.worker.failures import is_allocation

LONGEST_ORDER = 4 << 20


def main() -> int:
    """Read the order, wall in, do it, answer."""
    parent = os.getppid()
    sandbox.die_with_parent(parent)
    order = msgspec.json.decode(sys.stdin.buffer.read(LONGEST_ORDER), type=Order)
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries, and what a pickle runs, may print
    limits = order.limits
    layers = sandbox.set_apart(
        sandbox.Apart(
            tuple(map(Path, order.reads)),
            tuple(map(Path, order.writes)),
            limits.memory_bytes,
            limits.cpu_s,
            limits.file_bytes,
        )
    )
    sandbox.die_with_parent(parent)  # again: new credentials may undo it
    with os.fdopen(answers, "wb") as out:
        out.write(msgspec.json.encode(_done(order.work, limits, layers)))
    return 0


def _done(work: Load | Convert, limits: Limits, layers: list[Text]) -> Answer:
    began = time.monotonic()
    try:
        made = _loaded(work, limits) if isinstance(work, Load) else _converted(work)
    except HiveError as error:
        return Answer(layers, Trouble(error.code, error.sentence, error.fix))
    except Exception as error:
        if not is_allocation(error):
            raise
        full = Exhausted(
            f"Memory ran out at the limit of {limits.memory_bytes >> 20} MiB.", fix="Allow more: --memory MIB."
        )
        return Answer(layers, Trouble(full.code, full.sentence, full.fix))
    return msgspec.structs.replace(made, layers=layers, seconds=time.monotonic() - began)


def _loaded(work: Load, limits: Limits) -> Answer:
    from hivenode.models.loading import load

    before = _anonymous()
    loaded = load(work.path, budget=limits.memory_bytes, only=work.only or None, model=work.model)
    return Answer(
        [],
        tensors=[
            Held(weight.name[:1_000], weight.dtype, list(weight.shape), weight.nbytes)
            for weight in loaded.weights.values()
        ],
        model="" if loaded.model is None else f"{type(loaded.model).__module__}.{type(loaded.model).__qualname__}",
        left_out=list(loaded.left_out),
        own_bytes=max(0, _anonymous() - before),
    )


def _converted(work: Convert) -> Answer:
    from hivenode.worker.converting import convert

    return Answer([], notes=convert(work))


def _anonymous() -> int:
    """Bytes of anonymous memory that are resident: RssAnon of proc(5)."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except BaseException:  # noqa: BLE001 - the parent shows its last line
        traceback.print_exc()
        status = DEFECT
    sys.stderr.flush()
    os._exit(status)
