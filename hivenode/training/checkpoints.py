"""Checkpoints: all that is needed to go on from a step exactly, as one safetensors file.

There is no random state to keep: every random number of a run is a function of the job's seeds and the step.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hivenode.errors import Corrupted, InvalidInput
from hivenode.spec.job import JobSpec
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Layout, Vector, flatten, views

FORMAT = "hivenode-checkpoint-1"
MODEL, BUFFER, OPTIMIZER, _SCALAR = "model.", "buffer.", "optimizer.", "optimizer."
"""Prefixes: of tensors and running statistics by name, of the optimizer's flat vectors, and of the rest of its state
in the metadata."""


@dataclass(frozen=True)
class State:
    """A run between two steps. `step` counts finished ones; `buffers` are running statistics; `slots` and `scalars` are
    the optimizer's."""

    step: int
    weights: Vector
    buffers: Vector
    slots: Mapping[str, Vector]
    scalars: Mapping[str, str]

    def copy(self) -> State:
        """One that training will not change."""
        slots = {name: slot.copy() for name, slot in self.slots.items()}
        return State(self.step, self.weights.copy(), self.buffers.copy(), slots, dict(self.scalars))


def spec_digest(spec: JobSpec) -> str:
    """SHA-256 over what decides the course of training; name and placement do not."""
    parts = spec.model_dump(mode="json", include={"framework", "model", "data", "training"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write(path: Path, state: State, spec: JobSpec, layout: Layout) -> None:
    """The same state gives the same bytes on every member. Raises OSError when it cannot be written."""
    tensors = {MODEL + name: tensor for name, tensor in views(state.weights, layout.parameters).items()}
    tensors |= {BUFFER + name: tensor for name, tensor in views(state.buffers, layout.buffers).items()}
    tensors |= {OPTIMIZER + name: slot for name, slot in state.slots.items()}
    tensorfiles.save(path, tensors, metadata(state.step, state.scalars, spec))


def metadata(step: int, scalars: Mapping[str, str], spec: JobSpec) -> dict[str, str]:
    """What a checkpoint says beside its tensors."""
    return {
        "format": FORMAT,
        "step": str(step),
        "spec": spec_digest(spec),
        "source": spec.model.source,
        "seed": str(spec.training.seed),
    } | {_SCALAR + name: value for name, value in scalars.items()}


@dataclass(frozen=True, slots=True)
class Head:
    """Finished steps, and the optimizer's scalars."""

    step: int
    scalars: Mapping[str, str]


def check(path: Path, metadata: Mapping[str, str], spec: JobSpec) -> Head:
    """Whether a file is a checkpoint of that job, by what it says.

    Raises:
        Corrupted: it is not a checkpoint.
        InvalidInput: it is one of a different job.
    """
    if metadata.get("format") != FORMAT:
        raise Corrupted(f"{path.name} is not a checkpoint.", fix="Use another copy of it.")
    if metadata.get("spec") != spec_digest(spec):
        raise InvalidInput(
            f"{path.name} is a checkpoint of a job with another model, data or training section.",
            fix="Continue with the job it was written by.",
        )
    try:
        step = int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise Corrupted(f"{path.name} is an incomplete checkpoint: {error}.", fix="Use another copy of it.") from error
    return Head(step, {n.removeprefix(_SCALAR): value for n, value in metadata.items() if n.startswith(_SCALAR)})


def read(path: Path, spec: JobSpec, layout: Layout, limit_bytes: int) -> State:
    """Raises:
    Corrupted: it is not a checkpoint.
    InvalidInput: it is one of a different job.
    """
    tensors, said = tensorfiles.load(path, limit_bytes)
    head = check(path, said, spec)
    try:
        model = {name: tensors.pop(MODEL + name) for name in layout.parameters}
        buffers = {name: tensors.pop(BUFFER + name) for name in layout.buffers}
        slots = {name.removeprefix(OPTIMIZER): np.array(tensor) for name, tensor in tensors.items()}
        weights, running = flatten(model, layout.parameters), flatten(buffers, layout.buffers)
        return State(head.step, weights, running, slots, head.scalars)
    except (KeyError, ValueError) as error:
        raise Corrupted(f"{path.name} is an incomplete checkpoint: {error}.", fix="Use another copy of it.") from error


class Writer:
    """Writes checkpoints beside the training thread, which only waits for a copy in memory.

    At most one is being written and one waits; a newer one takes the waiting one's place.

    Args:
        write: writes one state.
        failed: told why one could not be written. Both run in the writer's thread.
    """

    def __init__(self, write: Callable[[State], None], failed: Callable[[State, str], None]) -> None:
        self._write = write
        self._failed = failed
        self._waiting: State | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, state: State) -> None:
        """Have a copy of `state` written."""
        copy = state.copy()
        with self._changed:
            self._waiting = copy
            self._changed.notify()

    def close(self) -> None:
        """Wait until what was submitted is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                state, self._waiting = self._waiting, None
            if state is None:
                return
            try:
                self._write(state)
            except (OSError, MemoryError) as error:
                self._failed(state, str(error) or type(error).__name__)
