"""What a member's codec has still to say, as of a checkpoint: a file on its own node, for it is nobody else's.
Without it a run goes on as well, only not to the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hivenode.errors import Corrupted
from hivenode.spec.job import JobSpec
from hivenode.training import tensorfiles
from hivenode.training.checkpoints import spec_digest
from hivenode.training.frameworks.model import Vector

FORMAT = "hivenode-debts-1"


def name_of(step: int) -> str:
    return f"debts-{step}.safetensors"


def write(path: Path, step: int, debts: Mapping[str, Vector], spec: JobSpec) -> None:
    """Raises OSError when it cannot be written."""
    tensorfiles.save(path, debts, _metadata(step, debts, spec))


def read(path: Path, step: int, spec: JobSpec, limit_bytes: int) -> dict[str, Vector]:
    """Raises:
    Corrupted: it is not what was written for that job and step.
    Exhausted: it is larger than the limit.
    """
    tensors, said = tensorfiles.load(path, limit_bytes)
    debts = {name: np.array(tensor, np.float32).reshape(-1) for name, tensor in tensors.items()}
    if said != _metadata(step, debts, spec) or not all(np.isfinite(debt).all() for debt in debts.values()):
        raise Corrupted(
            f"{path.name} is not what this node still owed at step {step} of this job.",
            fix="Nothing to do: the run goes on without it.",
        )
    return debts


def _metadata(step: int, debts: Mapping[str, Vector], spec: JobSpec) -> dict[str, str]:
    content = hashlib.sha256()
    for name in sorted(debts):
        content.update(name.encode() + b"\0")
        content.update(np.ascontiguousarray(debts[name], "<f4").data)
    return {"format": FORMAT, "step": str(step), "spec": spec_digest(spec), "sha256": content.hexdigest()}
