"""Linear layers whose weights' gradients are added up where they belong, one product for both.

Autograd makes the gradient of a whole matrix first and then adds it to what is there, once for every small batch: the
memory of another matrix, which the allocator keeps in several places in the end, and three passes over it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional


class _Adding(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        if wants_weight:
            weight.grad.addmm_(rows.t(), x.reshape(-1, x.shape[-1]))
        return gradient @ weight if wants_input else None, None, rows.sum(0) if wants_bias else None


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    made: torch.Tensor = _Adding.apply(x, weight, bias)
    return made


def add_in_place(run: fx.GraphModule, parameters: int) -> None:
    """Change the linear layers of a graph, whose first inputs are so many parameters: each has to have a `grad`, which
    the backward pass adds to."""
    own = set([node for node in run.graph.nodes if node.op == "placeholder"][:parameters])
    for node in run.graph.nodes:
        if node.target is torch.ops.aten.linear.default and node.args[1] in own:
            node.target = _linear
    run.recompile()
