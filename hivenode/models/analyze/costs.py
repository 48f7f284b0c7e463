"""What rules find of one model: FLOPs and activations of a batch, before memory is added up."""

from __future__ import annotations

from dataclasses import dataclass

from hivenode.models.analyze.quantities import Quantity


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one batch.

    Attributes:
        forward: FLOPs of inference; None if nothing is known.
        kept: bytes kept from the forward pass of a training step for the backward pass.
        passing: bytes alive at once during inference, besides the weights.
        kv_cache: bytes of keys and values for the whole sequence; None where there is no such cache.
        backward: bytes alive for a moment of the backward pass, besides what is kept.
        backward_factor: FLOPs of forward and backward over those of forward.
    """

    forward: Quantity | None
    kept: Quantity | None
    passing: Quantity | None
    kv_cache: Quantity | None = None
    backward: float = 0.0
    backward_factor: float = 3.0
