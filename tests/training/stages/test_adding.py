"""Gradients that are added up in place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hivenode.data.sources import information
from hivenode.net.local import Resources
from hivenode.spec.data import DataSpec
from hivenode.spec.model import ModelSpec
from hivenode.training.stages.adding import add_in_place
from hivenode.training.stages.blueprint import blueprint
from hivenode.training.stages.graph import cut
from hivenode.training.stages.stage import Cutting, Stage


class Made(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """The largest tensor, in elements, that operations made other than in the given memory."""

    def __init__(self, *known: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.largest = 0
        self._known = [range(each.ctypes.data, each.ctypes.data + each.nbytes) for each in known]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, torch.Tensor) and not any(each.data_ptr() in known for known in self._known):
                self.largest = max(self.largest, each.numel())
        return made


@pytest.mark.parametrize(
    ("source", "params", "data"),
    [
        ("zoo:mlp", {"hidden": 96, "depth": 3}, "sklearn:digits"),
        ("zoo:gpt", {"width": 48, "layers": 2, "heads": 2}, "sklearn:descriptions"),
        ("zoo:cnn", {"channels": 32, "hidden": 16}, "sklearn:digits"),
    ],
)
def test_the_gradient_is_autograds_and_no_other_matrix_is_made(source: str, params: dict[str, int], data: str) -> None:
    model, info = ModelSpec(source=source, params=params), information(DataSpec(source=data))

    def example(samples: int) -> torch.Tensor:
        return torch.zeros(samples, *info.input_shape, dtype=torch.int64 if info.vocabulary else torch.float32)

    cutting = Cutting(blueprint(model, info, 0, Resources()), example, [2])
    samples, count = 2, 3
    held, running = cutting.holdings(samples)
    stage = Stage(cutting, 1, held, running)
    generator = torch.Generator().manual_seed(1)
    stage.weights[:] = 0.1 * torch.randn(stage.weights.size, generator=generator).numpy()
    graph = stage.graph(samples, training=True)
    received = [[torch.randn(v.shape, generator=generator) for v in graph.receives] for _ in range(count)]
    back = [[torch.randn(v.shape, generator=generator) for v in graph.sends] for _ in range(count)]
    stage.begin_step()
    for number in range(count):
        stage.forward(number, samples, received[number], 0)
    with Made(stage.weights, stage.vector) as watched:
        inner = [stage.backward(number, samples, back[number]) for number in range(count)]
    largest = max(np.prod(held.shapes[name], dtype=int) for name in held.names[1] if name.endswith("weight"))
    if source == "zoo:mlp":
        assert watched.largest < largest

    weights = torch.from_numpy(stage.weights.copy()).requires_grad_()
    parts = held.parts(1)
    module = cutting.blueprint.module
    plain = cut(module, {"x": example(samples)}, [cutting.blueprint.place(2)])[1]
    own = [weights[parts[name]].view(held.shapes[name]) for name in graph.parameters]
    buffers = [dict(module.named_buffers())[name] for name in plain.buffers]
    for given, gradients, found in zip(received, back, inner, strict=True):
        inputs = [each.detach().clone().requires_grad_() for each in given]
        outputs = plain.run(*own, *buffers, *plain.constants, *inputs)
        torch.autograd.backward(list(outputs), gradients, retain_graph=True)
        for mine, each in itertools.zip_longest(found, inputs):
            torch.testing.assert_close(mine, each.grad)
    assert weights.grad is not None
    np.testing.assert_allclose(stage.gradient, weights.grad.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(stage.gradient).max() > 0.01


def both(
    plain: Callable[..., torch.Tensor], ours: Callable[..., torch.Tensor], *given: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs and gradients, by autograd alone and added in place."""
    tensors = [each.requires_grad_() for each in given if each.is_floating_point()]
    output = plain(*given)
    back = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad(output, tensors, back)
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    found = ours(*given)
    found.backward(back)
    return [(output, found), *zip(expected, [tensor.grad for tensor in tensors], strict=True)]


def changed(operation: Callable[..., torch.Tensor], *given: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A function as a graph that adds in place; all that it takes counts as parameters."""

    class Only(torch.nn.Module):  # type: ignore[misc]
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return operation(*tensors)

    run = torch.export.export(Only(), given).graph_module
    targets = {node.target for node in run.graph.nodes}
    add_in_place(run, len(given))
    assert {node.target for node in run.graph.nodes} != targets, "an operation was changed"
    return lambda *tensors: run(*tensors)[0]


conv1d, conv2d = functional.conv1d, functional.conv2d
OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "product": (torch.addmm, [(96,), (32, 48), (48, 96)]),
    "layer": (functional.linear, [(4, 8, 48), (96, 48), (96,)]),
    "convolution": (lambda x, w, b: conv2d(x, w, b, 1, 1), [(4, 3, 8, 8), (16, 3, 3, 3), (16,)]),
    "patches": (lambda x, w, b: conv2d(x, w, b, 4), [(4, 3, 8, 8), (16, 3, 4, 4), (16,)]),
    "in parts": (lambda x, w, b: conv2d(x, w, b, 1, 1), [(4, 512, 4, 4), (576, 512, 3, 3), (576,)]),
    "in parts, with strides": (lambda x, w: conv2d(x, w, None, 2, 1), [(4, 512, 8, 8), (320, 512, 3, 3)]),
    "of a line": (lambda x, w, b: conv1d(x, w, b, 2, 1), [(4, 8, 20), (16, 8, 3), (16,)]),
}


@pytest.mark.parametrize("kind", list(OPERATIONS))
def test_what_is_added_in_place_is_autograds_to_the_bit(kind: str) -> None:
    operation, shapes = OPERATIONS[kind]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    for expected, found in both(operation, changed(operation, *given), *given):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("padding", [None, 3])
def test_look_ups_add_to_the_rows_that_were_looked_up(padding: int | None) -> None:
    indices = torch.tensor([[1, 3, 1], [7, 1, 0]])
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))

    def look_up(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return functional.embedding(rows, table, padding_idx=padding)

    for expected, found in both(look_up, changed(look_up, weight, indices), weight, indices):
        assert torch.equal(expected, found)
