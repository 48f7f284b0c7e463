"""Batch normalisation over the samples of all members, so that a batch that is shared is normalised as one (Ioffe and
Szegedy, ICML 2015; in PyTorch's terms, synchronised). Members tell each other the mean and variance of what each has,
and on the way back what the gradient needs of all: twice a layer and step, a few numbers a channel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hivenode.training.frameworks.model import Gather


@dataclass(slots=True)
class Statistics:
    """Of all batch normalisation of one model.

    Attributes:
        gather: what all members give.
        counted: whether this member's samples are part of the batch; if not, it only answers the others.
    """

    gather: Gather
    counted: bool = True

    def told(self, place: int, samples: int, *values: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        """Samples of all members, and of each value, (channels,) here, what each member gave, (members, channels), and
        last the members' shares of the samples, (members, 1); in float64. All NaN where a value of any is not finite:
        that is told by a negative count, as such numbers are sent to nobody."""
        own = np.concatenate([[samples if self.counted else 0], *(value.numpy() for value in values)], dtype=np.float32)
        if not self.counted:
            own.fill(0.0)
        elif not np.isfinite(own).all():
            own.fill(-1.0)
        rows = torch.from_numpy(self.gather(own, place)).double()
        if bool((rows[:, 0] < 0).any()):
            rows.fill_(math.nan)
        if not rows[:, 0].any():  # whoever has samples is late, this member perhaps: it goes by what it has itself
            rows = torch.from_numpy(own[None]).double()
            rows[:, 0].clamp_(min=1.0)
        total = float(rows[:, 0].sum())
        return total, [*rows[:, 1:].chunk(len(values), 1), rows[:, :1] / total]


def together(module: nn.Module, gather: Gather) -> Statistics | None:
    """Have all batch normalisation of a module go by what all members have while it trains; None if it has none."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    statistics = Statistics(gather)
    for number, layer in enumerate(layers):
        layer.forward = _forward(layer, 1 + 2 * number, layer.forward, statistics)
    return statistics if layers else None


def _forward(
    layer: nn.Module, place: int, alone: Callable[[torch.Tensor], torch.Tensor], statistics: Statistics
) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return alone(x)
        with torch.autocast("cpu", enabled=False):
            made: torch.Tensor = _Normalised.apply(x.float(), layer.weight, layer.bias, layer, place, statistics)
        return made.to(x.dtype)

    return forward


class _Normalised(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        layer: nn.Module,
        place: int,
        statistics: Statistics,
    ) -> torch.Tensor:
        variance, mean = torch.var_mean(x, _but_channels(x), correction=0)
        total, (means, variances, shares) = statistics.told(place, len(x), mean, variance)
        common = (shares * means).sum(0)
        spread = (shares * (variances + (means - common).square())).sum(0)
        elements = total * x[0, 0].numel()
        _remember(layer, common, spread * (elements / max(elements - 1.0, 1.0)))
        mean = common.float()
        ctx.save_for_backward(x, weight, mean, (spread + layer.eps).rsqrt().float())
        ctx.statistics, ctx.place = statistics, place
        return functional.batch_norm(x, mean, spread.float(), weight, bias, training=False, eps=layer.eps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        statistics, axes = ctx.statistics, _but_channels(x)
        centred = (x - _wide(mean, x)) * _wide(scale, x)
        own, along = gradient.sum(axes), (gradient * centred).sum(axes)
        _, (owns, alongs, shares) = statistics.told(ctx.place + 1, len(x), own, along)
        # Each member's loss is the mean over its own samples, and counts by its share of them.
        elements = x[:, 0].numel()
        inner = gradient - _wide(((shares * owns).sum(0) / elements).float(), x)
        inner -= centred * _wide(((shares * alongs).sum(0) / elements).float(), x)
        inner *= _wide(scale if weight is None else scale * weight, x)
        if weight is None:
            return inner, None, None, None, None, None
        return inner, along, own, None, None, None


def _but_channels(x: torch.Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _wide(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(channels,), as it meets (samples, channels, ...)."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def _remember(layer: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """In its running statistics, as the layer itself would."""
    if layer.running_mean is None:
        return
    layer.num_batches_tracked += 1
    part = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean.float(), part)
    layer.running_var.lerp_(variance.float(), part)
