"""Any PyTorch module as a model with flat vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from hivenode.training.frameworks.model import Floats, Layout
from hivenode.training.frameworks.torch_framework import Built


def layout_of(module: nn.Module) -> tuple[Layout, dict[str, torch.Tensor]]:
    """What flat vectors of a module hold, which need not have its parameters in memory; and its running statistics."""
    saved = set(module.state_dict())
    running = {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    trained = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    return Layout(trained, {name: tuple(b.shape) for name, b in running.items()}), running


def of_module(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Built:
    """A module as it is: what it trains, its saved float statistics, and what stands still."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    layout, running = layout_of(module)
    constants: dict[str, Floats] = {name: p.detach().numpy() for name, p in frozen.items()}
    return Built(module, layout, _flat(trained), _flat(running), forward, constants)


def _flat(tensors: Mapping[str, torch.Tensor]) -> Floats:
    if not tensors:
        return np.zeros(0, np.float32)
    return np.concatenate([t.detach().numpy().astype(np.float32).ravel() for t in tensors.values()])
