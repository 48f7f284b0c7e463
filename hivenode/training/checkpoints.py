"""Checkpoints: all that is needed to go on from a step exactly, as one safetensors file.

There is no random state to keep: every random number of a run is a function of the job's seeds and the step.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from hivenode.errors import Corrupted, InvalidInput
from hivenode.spec.job import JobSpec
from hivenode.training import tensorfiles
from hivenode.training.frameworks.model import Layout, Vector, views

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

    def copy(self, into: State | None = None) -> State:
        """One that training will not change.

        Args:
            into: an earlier copy, whose memory is used again.
        """
        held = into.slots if into is not None else {}
        return State(
            self.step,
            _copied(self.weights, into.weights if into is not None else None),
            _copied(self.buffers, into.buffers if into is not None else None),
            {name: _copied(slot, held.get(name)) for name, slot in self.slots.items()},
            dict(self.scalars),
        )


def _copied(vector: Vector, into: Vector | None) -> Vector:
    if into is None or into.shape != vector.shape:
        return vector.copy()
    np.copyto(into, vector)
    return into


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
    """Tensor by tensor: no more is in memory than what is returned.

    Raises:
        Corrupted: it is not a checkpoint.
        InvalidInput: it is one of a different job.
        Exhausted: it is larger than the limit.
    """
    parts = tensorfiles.Parts(path, limit_bytes)
    head, shapes = check(path, parts.metadata, spec), parts.shapes
    try:
        weights, running = np.empty(layout.size, np.float32), np.empty(layout.buffer_size, np.float32)
        for prefix, vector, own in ((MODEL, weights, layout.parameters), (BUFFER, running, layout.buffers)):
            for name, place in views(vector, own).items():
                if shapes.pop(prefix + name) != place.shape:
                    raise ValueError(f"tensor {name} has another shape than the model's")
                parts.read_into(place.reshape(-1), prefix + name)
        slots = {name.removeprefix(OPTIMIZER): np.empty(prod(shape), np.float32) for name, shape in shapes.items()}
        for name, slot in slots.items():
            parts.read_into(slot, OPTIMIZER + name)
        return State(head.step, weights, running, slots, head.scalars)
    except (KeyError, ValueError) as error:
        raise Corrupted(f"{path.name} is an incomplete checkpoint: {error}.", fix="Use another copy of it.") from error


class Writer:
    """Writes checkpoints beside the training thread, which only waits for a copy in memory. There is one copy: what is
    submitted while it is being written is left out.

    Args:
        write: writes one state.
        failed: told why one could not be written. Both run in the writer's thread.
    """

    def __init__(self, write: Callable[[State], None], failed: Callable[[State, str], None]) -> None:
        self._write = write
        self._failed = failed
        self._copy: State | None = None
        self._busy = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, state: State, *, last: bool = False) -> None:
        """Have a copy of `state` written, unless another is being written.

        Args:
            last: wait until it is not.
        """
        with self._changed:
            if last:
                self._changed.wait_for(lambda: not self._busy)
            if self._busy:
                return
            try:
                self._copy = state.copy(self._copy)
            except MemoryError:
                self._copy = None
                self._failed(state, "there is no memory for a copy of the state")
                return
            self._busy = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until what was submitted is written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._closed)
                if not self._busy:
                    return
                state = self._copy
            assert state is not None
            try:
                self._write(state)
            except OSError as error:
                self._failed(state, error.strerror or str(error))
            except MemoryError:
                self._failed(state, "memory has run out")
            with self._changed:
                self._busy = False
                self._changed.notify_all()
