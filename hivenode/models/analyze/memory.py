"""From weights, activations and an optimizer to the most memory a process takes at once.

What a process keeps is more than what is alive in it: an allocator holds on to freed blocks. The value is what glibc's
malloc was seen to keep (benchmarks/requirements.py), the low end what is alive, the high end its worst case seen.
"""

from __future__ import annotations

from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.quantities import Method, Optimizer, Quantity
from hivenode.models.analyze.tape import MAPPED_BYTES
from hivenode.spec.tracing import TraceNumbers

LIBRARY_BYTES = 8 << 20
"""Buffers that the libraries of linear algebra keep once they have been used."""
KEPT = 1.1
"""What the process keeps over what its blocks take, from fragmentation."""
WORST = 1.35


def inference_traced(numbers: TraceNumbers, weight_bytes: float) -> Quantity:
    """`weight_bytes`: as held in memory. Keys and values are among what a trace has seen alive."""
    low = weight_bytes + numbers.forward_bytes
    value = KEPT * (weight_bytes + numbers.forward_resident_bytes) + LIBRARY_BYTES
    return Quantity(value, low, WORST * value, "bytes", Method.traced,
                    "weights, what is alive at the worst moment of a forward pass, and what the allocator keeps"
                    )  # fmt: skip


def training_traced(numbers: TraceNumbers, weight_bytes: float, state_bytes: float, optimizer: Optimizer) -> Quantity:
    """A second step, with the optimizer's state in place: gradients and activations do not take each other's room in
    small blocks; in large ones the backward pass and the update follow each other."""
    passing = optimizer.temporaries * numbers.largest_parameter_bytes
    large = passing if numbers.largest_parameter_bytes >= MAPPED_BYTES else 0.0
    held = weight_bytes + state_bytes
    low = held + max(float(numbers.step_bytes), numbers.gradient_bytes + passing)
    small_gradients = numbers.gradient_bytes - numbers.gradient_mapped_bytes
    mapped = max(float(numbers.step_mapped_bytes), numbers.gradient_mapped_bytes + large)
    kept = held + numbers.step_heap_bytes + small_gradients + mapped
    value = 1.05 * max(kept, low) + LIBRARY_BYTES
    return Quantity(value, low, WORST * value, "bytes", Method.traced,
                    "weights, optimizer state, gradients, what is alive at the worst moment of forward and backward, "
                    "and what the allocator keeps")  # fmt: skip


def inference_ruled(weights: Quantity, costs: Costs) -> Quantity:
    return _sum([weights, costs.passing, costs.kv_cache], "weights, activations" +
                (", keys and values" if costs.kv_cache else "") + " and what the allocator keeps")  # fmt: skip


def training_ruled(
    weights: Quantity, gradients: Quantity, state: Quantity, costs: Costs, optimizer: Optimizer, largest_bytes: float
) -> Quantity:
    passing = max(optimizer.temporaries * largest_bytes, costs.backward)
    return _sum(
        [weights, gradients, state, costs.kept],
        "weights, gradients, optimizer state, activations and what the allocator keeps",
        passing,
    )


def _sum(parts: list[Quantity | None], why: str, more: float = 0.0) -> Quantity:
    known = [part for part in parts if part is not None]
    low = sum(part.low for part in known)
    value = KEPT * (sum(part.value for part in known) + more) + LIBRARY_BYTES
    high = WORST * (sum(part.high for part in known) + more) + LIBRARY_BYTES
    return Quantity(value, low, max(high, value), "bytes", Method.rule, why)
