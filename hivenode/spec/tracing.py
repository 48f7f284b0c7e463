"""What a worker is asked to trace, and the numbers it finds."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from hivenode.spec.values import Name

MAX_CONFIG_BYTES = 512 * 1024

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class TraceOrder(msgspec.Struct, frozen=True):
    """A model that can be built without its file, and what to run it on."""

    kind: Literal["transformers", "declared"]
    source: Annotated[str, msgspec.Meta(max_length=200)]
    """The class among transformers' own, or that of a declared model."""
    config: Annotated[bytes, msgspec.Meta(max_length=MAX_CONFIG_BYTES)]
    """JSON: config.json of a transformers model, or the `ModelSpec` of a declared one."""
    batch: Size
    sequence: Size
    dtype: Name
    """Of inference."""
    train_dtype: Name
    train: bool
    info: Annotated[bytes, msgspec.Meta(max_length=MAX_CONFIG_BYTES)] = b""
    """JSON: the `DataInfo` that a declared model is for."""


class TraceNumbers(msgspec.Struct, frozen=True):
    """Of one forward pass, and of one training step if it was asked for; else what belongs to that is 0.

    Attributes:
        parameters, buffers: elements; tied parameters once.
        weight_bytes: parameters and buffers, in the traced dtype.
        forward_flops: of inference.
        step_flops: forward and backward.
        forward_bytes: most alive at once during inference, besides the weights.
        forward_resident_bytes: the same as a process keeps it: what was freed in small blocks stays.
        step_bytes: most alive at once during forward and backward, gradients included, besides the weights.
        step_heap_bytes, step_mapped_bytes: the same in blocks that stay with the process, and in those that do not.
        saved_bytes: alive when the forward pass of training is over: what is kept for the backward pass.
        gradient_bytes: of all parameters that have one.
        gradient_mapped_bytes: of those, in large blocks.
        largest_parameter_bytes: for what an optimizer takes in passing.
    """

    parameters: int
    buffers: int
    weight_bytes: int
    forward_flops: int
    forward_bytes: int
    forward_resident_bytes: int
    largest_parameter_bytes: int
    step_flops: int = 0
    step_bytes: int = 0
    step_heap_bytes: int = 0
    step_mapped_bytes: int = 0
    saved_bytes: int = 0
    gradient_bytes: int = 0
    gradient_mapped_bytes: int = 0
