"""A plan spelled out: what each node does of a job, and how all work together."""

from __future__ import annotations

import msgspec

from hivenode.spec.values import Plan


class Subtask(msgspec.Struct, frozen=True):
    """One node's part of a job."""

    node: str
    rank: int
    data_range: tuple[int, int] | None
    """Samples of the training part that it answers for, first and past the last; of bundled sets, which every node has,
    the places in each epoch's own order. All of them where layers, members or trees are divided; None where each node
    has samples of its own."""
    batch: int
    """Samples of each full batch that it computes."""
    layer_range: tuple[int, int] | None
    """Layers, or members of an ensemble, that it holds, first and past the last; None for all."""
    stage: int | None
    """Place in the line of stages, 0 first; None where every node holds the whole model."""
    line: int | None
    """Which line of stages it belongs to; None where there are no stages."""
    input_shape: tuple[int, ...]
    """Of one sample as it comes into its layers; empty where it is not known."""
    output_shape: tuple[int, ...]
    memory_bytes: int
    """Predicted peak of its worker."""
    step_seconds: float
    """Predicted compute time of one step."""
    receives_from: tuple[str, ...]
    """Nodes whose tensors it needs in the forward direction, or to reduce gradients or weights."""
    sends_to: tuple[str, ...]


class Breakdown(Plan, frozen=True):
    """A plan with what follows from it for a job."""

    subtasks: tuple[Subtask, ...] = ()
    """By rank."""
    coordination: str = ""
    """How the nodes work together, in a sentence."""
    unused: str = ""
    """What was given and has no effect, in a sentence."""
