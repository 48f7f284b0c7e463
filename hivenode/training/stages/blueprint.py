"""A declared model as stages need it: a module without memory, and what each of its tensors starts as."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hivenode.data.info import DataInfo
from hivenode.errors import InvalidInput
from hivenode.models.declared import layers_of
from hivenode.models.layers import Layer, buffers, tensors
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.training.frameworks import torch_models
from hivenode.training.frameworks.model import Layout, Vector, fill_uniform, initial_tensor, views
from hivenode.training.frameworks.torch_building import build, directory_of
from hivenode.training.frameworks.torch_modules import layout_of
from hivenode.training.stages.graph import Place, hollow

WHOLE = "model."
"""Prefix of every path within `Blueprint.module`."""


class _Whole(nn.Module):  # type: ignore[misc]  # torch has no types here
    def __init__(self, module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super().__init__()
        self.model = module
        self._given = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) if self._given is None else self._given(x)


@dataclass(frozen=True)
class Blueprint:
    """Attributes:
    module: maps `x` to outputs; its parameters have shapes and no memory, and the names of `layout` after `WHOLE`.
    start: writes the first values of a trained tensor, or of running statistics, to a flat target.
    place: of the first operation of the layer of that number, as the planner counts them.
    declared: what the model can be built from again on any node.
    forget: gives up what `start` needs, once every tensor has begun.
    afresh: as `Built.afresh`.
    """

    module: nn.Module
    layout: Layout
    start: Callable[[str, Vector], None]
    place: Callable[[int], Place]
    declared: ModelSpec
    forget: Callable[[], None] = lambda: None
    afresh: tuple[str, ...] = ()


def blueprint(model: ModelSpec, info: DataInfo, seed: int, resources: Resources) -> Blueprint:
    """Of `zoo:`, `layers:` and `hf:` models without ever making the whole. Others are made once, 8 bytes a
    parameter, to learn their first values, 4 of which stay until `Blueprint.forget`: those of `python:`, and of
    transformers where what a tensor begins as cannot be told without it, or does not lie in the directory's files as
    the model has it.

    Raises:
        InvalidInput: the declaration is wrong, or such a model is not cut.
        Unavailable: this node has not what it names.
    """
    if model.lora is not None:
        raise InvalidInput(
            "A model with model.lora is not cut into stages.", fix="Use single_node or data_parallel for it."
        )
    layers = layers_of(model, info)
    if layers is not None:
        return _of_layers(layers, seed, model)
    made = _of_hub(model, info, seed, resources) if model.kind == "hf" else None
    made = made or _of_module(model, info, seed, resources)
    if still := [name for name, parameter in made.module.named_parameters() if not parameter.requires_grad]:
        raise InvalidInput(
            f"{model.source} is not cut into stages: {still[0].removeprefix(WHOLE)} of it is not trained.",
            fix="Use single_node or data_parallel for it.",
        )
    return made


def _of_layers(layers: tuple[Layer, ...], seed: int, model: ModelSpec) -> Blueprint:
    held, running = tensors(layers), buffers(layers)
    numbered = [{name: (number, tensor) for number, (name, tensor) in enumerate(t.items())} for t in (held, running)]

    def start(name: str, target: Vector) -> None:
        number, tensor = (numbered[0] if name in held else numbered[1])[name]
        initial_tensor(target, tensor, seed, number)

    with hollow():
        module = _Whole(torch_models.build(layers), None)
    layout = Layout(
        {name: tensor.shape for name, tensor in held.items()}, {name: tensor.shape for name, tensor in running.items()}
    )
    return Blueprint(module, layout, start, lambda layer: Place(WHOLE + layers[layer].name), model)


def _of_hub(model: ModelSpec, info: DataInfo, seed: int, resources: Resources) -> Blueprint | None:
    """None where the first value of a tensor cannot be told."""
    try:
        from hivenode.training.frameworks import hub_models
        from hivenode.training.frameworks.directory_tensors import paired
        from hivenode.training.stages.starts import UNKNOWN, Starts
    except ImportError:
        return None  # for `build` to say so
    directory = directory_of(model, resources)
    starts = Starts()
    with starts.watching():
        made = hub_models.plain(model, info, seed, directory)
    module = made.module
    given = None if directory is None else paired(module, directory)
    if given is None and directory is not None:
        return None
    found = given.found if given is not None else {}
    begun = {name: starts.of(parameter) for name, parameter in module.named_parameters() if name not in found}
    afresh = hub_models.begun_afresh(model, module, begun) if given is not None else ()
    if UNKNOWN in begun.values():
        return None
    if given is not None:
        given.fill_statistics(module)
    layout, running = layout_of(module)
    first = {name: buffer.numpy().ravel().copy() for name, buffer in running.items()}

    def start(name: str, target: Vector) -> None:
        if name in first:
            np.copyto(target, first[name])
        elif given is not None and name in found:
            given.fill(name, target)
        elif isinstance(value := begun[name], float):
            target.fill(value)
        else:
            chance = made.chances[name]
            fill_uniform(target, chance.variance, chance.seed, chance.number)

    declared = model.model_copy(update={"source": "hf:config", "config": made.config})
    whole = _Whole(module, made.forward)
    return Blueprint(whole, layout, start, _places(model, module), declared, afresh=afresh)


def _of_module(model: ModelSpec, info: DataInfo, seed: int, resources: Resources) -> Blueprint:
    built, declared = build(model, info, seed, resources)
    values = views(built.start, built.layout.parameters) | views(built.buffers, built.layout.buffers)
    emptied: dict[int, nn.Parameter] = {}
    for owner in built.module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                if id(parameter) not in emptied:
                    emptied[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                setattr(owner, name, emptied[id(parameter)])

    def start(name: str, target: Vector) -> None:
        np.copyto(target, values[name].ravel())

    place = _places(model, built.module)
    whole = _Whole(built.module, built.forward)
    return Blueprint(whole, built.layout, start, place, declared, values.clear, built.afresh)


def _places(model: ModelSpec, module: nn.Module) -> Callable[[int], Place]:
    blocks = _blocks(module)

    def place(layer: int) -> Place:
        """The planner's layers are the embeddings, the blocks and the head."""
        if not blocks or not 0 < layer <= len(blocks) + 1:
            raise InvalidInput(
                f"{model.source} has no layer {layer} that a stage could begin with.",
                fix="Use single_node or data_parallel for it.",
            )
        if layer <= len(blocks):
            return Place(WHOLE + blocks[layer - 1])
        return Place(WHOLE + blocks[-1], after=True)

    return place


def _blocks(module: nn.Module) -> list[str]:
    """Paths of the equal blocks in the middle of a transformer: its longest list of modules; of one that has an encoder
    and a decoder, those of both."""
    lists = [(name, len(each)) for name, each in module.named_modules() if isinstance(each, nn.ModuleList)]
    outermost = [(name, count) for name, count in lists if not re.search(r"\.\d+\.", name + ".")]
    if not outermost:
        return []
    parts = [[each for each in outermost if part in each[0].split(".")] for part in ("encoder", "decoder")]
    longest = [max(part, key=lambda pair: pair[1]) for part in (parts if all(parts) else [outermost])]
    return [f"{name}.{number}" for name, count in longest for number in range(count)]
