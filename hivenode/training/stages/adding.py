"""Operations whose weights' gradients are added up where they belong: of layers, products, convolutions and look-ups.

Autograd makes the gradient of a whole matrix first and then adds it to what is there, once for every small batch: the
memory of another matrix, of several where a library arranges it differently inside, which the allocator keeps in
several places in the end, and more passes over it. What is computed, and in which order, is what autograd would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional

SLICE_BYTES = 2 * 1024 * 1024
CHANNELS = 64
"""A convolution's weights are taken so many bytes at a time, by multiples of so many channels: its library's own blocks
have fewer."""

aten = torch.ops.aten


class _Linear(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """`x @ weight.T + bias`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        if wants_weight:
            weight.grad.addmm_(rows.t(), x.reshape(-1, x.shape[-1]))
        return gradient @ weight if wants_input else None, None, rows.sum(0) if wants_bias else None


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """`bias + x @ weight`, of matrices."""

    @staticmethod
    def forward(ctx: Any, bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.flat = weight, bias.ndim == 1
        return torch.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        wants_bias, wants_input, wants_weight = ctx.needs_input_grad
        if wants_weight:
            weight.grad.addmm_(x.t(), gradient)
        whole = gradient.sum(0) if ctx.flat else gradient
        return whole if wants_bias else None, gradient @ weight.t() if wants_input else None, None


class _Convolution(torch.autograd.Function):  # type: ignore[misc]
    """Without groups, over one, two or three dimensions. Large weights are taken by output channels, and for the inner
    gradient by input channels, which have nothing to do with each other: the library makes a copy of what it takes.
    With strides it would choose another way for a part than for the whole, and the last bits would differ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        ctx.how = how = stride, padding, dilation, False, [0] * len(stride), 1
        return _joined(
            aten.convolution(x, weight[part], None if bias is None else bias[part], *how) for part in _parts(weight, 0)
        )

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,), weight, how, back = ctx.saved_tensors, ctx.weight, ctx.how, aten.convolution_backward
        wants_input, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        inner, biases = None, []
        if wants_input:
            inner = _joined(
                back(gradient, x[:, part], weight[:, part], None, *how, [True, False, False])[0]
                for part in (_parts(weight, 1) if set(how[0]) == {1} else [slice(None)])
            )
        for part in _parts(weight, 0) if wants_weight or wants_bias else ():
            own, wants = weight[part], [False, wants_weight, wants_bias]
            _, made, bias = back(gradient[:, part], x, own, [len(own)], *how, wants)
            if wants_weight:
                weight.grad[part] += made
            biases.append(bias)
        return inner, None, torch.cat(biases) if wants_bias else None, None, None, None


def _parts(weight: torch.Tensor, dimension: int) -> list[slice]:
    channels = weight.shape[dimension]
    step = CHANNELS * max(1, SLICE_BYTES * channels // (CHANNELS * 4 * weight.numel()))
    return [slice(first, min(first + step, channels)) for first in range(0, channels, step)]


def _joined(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """By channel."""
    made = list(parts)
    return made[0] if len(made) == 1 else torch.cat(made, 1)


class _Lookup(torch.autograd.Function):  # type: ignore[misc]
    """Rows of a table."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, indices: torch.Tensor, padding: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.weight, ctx.padding = weight, padding
        return functional.embedding(indices, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        (indices,), weight = ctx.saved_tensors, ctx.weight
        if ctx.padding >= 0:
            gradient = gradient.masked_fill((indices == ctx.padding).unsqueeze(-1), 0.0)
        weight.grad.index_add_(0, indices.reshape(-1), gradient.reshape(-1, gradient.shape[-1]))
        return None, None, None


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    made: torch.Tensor = _Linear.apply(x, weight, bias)
    return made


def _addmm(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = _Product.apply(bias, x, weight)
    return made


def _convolution(dimensions: int) -> Callable[..., torch.Tensor]:
    def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
    ) -> torch.Tensor:
        how = [list(each) * dimensions if len(each) == 1 else list(each) for each in (stride, padding, dilation)]
        made: torch.Tensor = _Convolution.apply(x, weight, bias, *how)
        return made

    return run


def _embedding(weight: torch.Tensor, indices: torch.Tensor, padding: int = -1) -> torch.Tensor:
    made: torch.Tensor = _Lookup.apply(weight, indices, padding)
    return made


_ADDING: Mapping[Any, tuple[int, int, Callable[..., torch.Tensor]]] = {
    aten.linear.default: (1, 3, _linear),
    aten.addmm.default: (2, 3, _addmm),
    aten.conv1d.default: (1, 6, _convolution(1)),
    aten.conv2d.default: (1, 6, _convolution(2)),
    aten.conv3d.default: (1, 6, _convolution(3)),
    aten.embedding.default: (0, 3, _embedding),
}
"""Operation -> place of the weight among its arguments, how many of these may be given, and what is done instead."""


def add_in_place(run: fx.GraphModule, parameters: int) -> None:
    """Change such operations of a graph, whose first inputs are so many parameters: each has to have a `grad`, which
    the backward pass adds to."""
    own = set([node for node in run.graph.nodes if node.op == "placeholder"][:parameters])
    for node in run.graph.nodes:
        place, most, instead = _ADDING.get(node.target, (0, 0, None))
        if instead is not None and len(node.args) <= most and not node.kwargs and node.args[place] in own:
            node.target = instead
    run.recompile()
