"""What a PyTorch module would take, found by running it on tensors without storage.

`FakeTensorMode` computes shapes as if on the processor and allocates nothing; every operator that runs is seen here
with its outputs, so the bytes alive at each moment and the FLOPs are counted, not estimated. A multiply-add counts as
two operations; only products, convolutions and attention count, as in `torch.utils.flop_counter`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hivenode.spec.tracing import TraceNumbers

aten = torch.ops.aten
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
_CONVOLUTIONS = {aten.convolution, aten.convolution_backward}
_RECURRENT = {aten.mkldnn_rnn_layer, aten.mkldnn_rnn_layer_backward}
DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "mixed": torch.float32,
}  # fmt: skip

MAPPED_BYTES = 32 << 20
"""DEFAULT_MMAP_THRESHOLD_MAX of glibc's malloc on 64 bits."""

GAPS = 1.5
"""What the allocator keeps of a small block that lives for one operator only, between others that stay, as a factor."""
TARGETS = frozenset({"labels", "start_positions", "end_positions"})

Make = Callable[[], torch.nn.Module]
Feed = Callable[[torch.nn.Module], dict[str, torch.Tensor]]


def trace(make: Make, feed: Feed, *, dtype: str = "float32", train: bool = True) -> TraceNumbers:
    """Build a module and run it, all without storage.

    Args:
        make: the module; called within the fake mode.
        feed: keyword arguments of its forward pass; called within the fake mode. `TARGETS` are left out at
            inference.
        train: the training step too.

    Raises:
        Exception: whatever the module raises where it needs values, not only shapes, to go on.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = _made(make, DTYPES[dtype])
        half = torch.autocast("cpu", torch.bfloat16) if dtype == "mixed" else nullcontext()
        parameters = list(module.parameters())
        buffers = list(module.buffers())
        held = {_key(tensor): tensor.untyped_storage().nbytes() for tensor in (*parameters, *buffers)}
        module.eval()
        inference = _Meter(set(held))
        with torch.no_grad(), half, inference:
            batch = feed(module)
            for name in TARGETS & batch.keys():
                del batch[name]
            output = module(**_cast(batch, DTYPES[dtype]))
        del output, batch
        step, saved = _Meter(set(held)), 0
        if train:
            saved = _step(module, feed, step, half, DTYPES[dtype])
        gradients = [_bytes(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return TraceNumbers(
        parameters=sum(parameter.numel() for parameter in parameters),
        buffers=sum(buffer.numel() for buffer in buffers),
        weight_bytes=sum(held.values()),
        forward_flops=inference.flops,
        forward_bytes=inference.peak,
        forward_resident_bytes=round(inference.resident),
        largest_parameter_bytes=max((_bytes(parameter) for parameter in parameters), default=0),
        step_flops=step.flops,
        step_bytes=step.peak,
        step_heap_bytes=step.heap,
        step_mapped_bytes=step.mapped,
        saved_bytes=saved,
        gradient_bytes=sum(gradients),
        gradient_mapped_bytes=sum(size for size in gradients if size >= MAPPED_BYTES),
    )


def _made(make: Make, dtype: torch.dtype) -> torch.nn.Module:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(usual)


def _step(
    module: torch.nn.Module, feed: Feed, meter: _Meter, half: AbstractContextManager[Any], dtype: torch.dtype
) -> int:
    """Forward and backward; returns the bytes alive between them."""
    module.train()
    with meter:
        with half:
            output = module(**_cast(feed(module), dtype))
            loss = _loss(output)
        saved = meter.alive
        loss.backward()
        del loss, output
    return saved


def _loss(output: Any) -> torch.Tensor:
    """The model's own loss, else the mean of its first floating-point output: as much to keep, hardly more to do."""
    own = getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own
    for value in tree_iter(output):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.requires_grad:
            return value.float().mean()
    raise ValueError("it gives nothing that could be trained")


def _cast(batch: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Meter(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """Counts the bytes of storages alive and the FLOPs done while it is on.

    glibc's malloc gives blocks of `MAPPED_BYTES` and more back to the system when they are freed, and keeps smaller
    ones for later: what those took at their peak (`heap`) stays with the process, beside what is mapped at the moment;
    `resident` is the most of both together.

    Args:
        known: storages that are not to be counted: the weights.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.flops = 0
        self.heap = 0
        self.mapped = 0
        self.resident = 0.0
        self._gapped = 0.0
        self._heap_alive = 0
        self._mapped_alive = 0
        self._known = known
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        self.flops += _flops(packet, args, kwargs, out)
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._hold(value)
        copies = self._copies(packet, args, out)
        self.peak = max(self.peak, self.alive + sum(copies))
        small = sum(size for size in copies if size < MAPPED_BYTES)
        self.heap = max(self.heap, self._heap_alive + small)
        self._gapped = max(self._gapped, self._heap_alive + GAPS * small)
        mapped = self._mapped_alive + sum(copies) - small
        self.mapped = max(self.mapped, mapped)
        self.resident = max(self.resident, self._gapped + mapped)
        return out

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._known or key in self._seen:
            return
        size = storage.nbytes()
        self._change(size, size)

        def gone(_: weakref.ref[Any], key: int = key, size: int = size) -> None:
            self._seen.pop(key, None)
            self._change(size, -size)

        self._seen[key] = weakref.ref(storage, gone)

    def _change(self, size: int, by: int) -> None:
        self.alive += by
        if size >= MAPPED_BYTES:
            self._mapped_alive += by
        else:
            self._heap_alive += by

    def _copies(self, packet: Any, args: tuple[Any, ...], out: Any) -> list[int]:
        """What an operator takes in passing: oneDNN copies a convolution's operands into layouts of its own."""
        if packet not in _CONVOLUTIONS:
            return []
        return [_bytes(value) for value in (*args, *tree_iter(out)) if isinstance(value, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if packet is _ATTENTION:
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if packet is _ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(args[0].shape, args[1].shape, args[2].shape, args[3].shape))
    if packet in _RECURRENT:
        return _recurrent(packet, args)
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _recurrent(packet: Any, args: tuple[Any, ...]) -> int:
    """One layer of an LSTM, one direction: input (steps, samples, width), weights (4 h, width) and (4 h, h)."""
    steps, samples = args[0].shape[:2]
    once = 2 * steps * samples * (math.prod(args[1].shape) + math.prod(args[2].shape))
    return int(once if packet is aten.mkldnn_rnn_layer else 2 * once)
