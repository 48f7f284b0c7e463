"""From the declaration of a model to a PyTorch module."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hivenode.data.info import DataInfo
from hivenode.errors import HiveError, InvalidInput, Unavailable
from hivenode.models import pretrained
from hivenode.models.declared import layers_of
from hivenode.models.pretrained import Pretrained
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import Precision
from hivenode.training.frameworks.given_weights import overlay
from hivenode.training.frameworks.making import Made
from hivenode.training.frameworks.model import views
from hivenode.training.frameworks.torch_framework import Built, TorchModel, from_layers


def make(model: ModelSpec, info: DataInfo, seed: int, resources: Resources, threads: int, precision: Precision) -> Made:
    """See `making.make`."""
    torch.set_num_threads(threads)
    built, declared = build(model, info, seed, resources)
    vector = np.zeros(built.layout.size + 1, np.float32)
    made = TorchModel(built, info.task, built.start, built.buffers, vector[:-1], threads, precision)
    afresh = built.afresh
    if model.weights:
        places = views(made.weights, built.layout.parameters) | views(made.buffers, built.layout.buffers)
        afresh = overlay(places | dict(built.constants), model, resources, "pt")
    return Made(made, vector, declared.model_copy(update={"weights": ""}), afresh)


def build(model: ModelSpec, info: DataInfo, seed: int, resources: Resources) -> tuple[Built, ModelSpec]:
    """The module, and a declaration from which it can be built again on any node.

    Args:
        seed: of the first weights.
        resources: what this node's owner lends: directories and packages.

    Raises:
        InvalidInput: the declaration is wrong.
        Unavailable: this node has not what it names.
    """
    layers = layers_of(model, info)
    if layers is not None:
        return from_layers(layers, seed), model
    if model.kind == "hf":
        try:
            from hivenode.training.frameworks.hub_models import from_hub
        except ImportError:
            raise Unavailable(
                f"{model.source} needs transformers, which is not installed here.",
                fix="Install it: pip install 'hivenode[transformers]'.",
            ) from None
        built, config = from_hub(model, info, seed, directory_of(model, resources))
        return built, model.model_copy(update={"source": "hf:config", "config": config})
    if model.kind == "python":
        return _from_package(model, info, seed, resources), model
    raise InvalidInput(f"{model.source} was not resolved.", fix="Submit the job through a node of the hive.")


def directory_of(model: ModelSpec, resources: Resources) -> Pretrained | None:
    """What `hf:NAME` stands for here; None for `hf:config`.

    Raises:
        Unavailable: nothing, or nothing of use.
    """
    if model.source == "hf:config":
        return None
    path = resources.directories.get(model.name)
    if path is None:
        raise Unavailable(
            f"This node has no {model.source}.", fix=f"Name its directory in models.directories as {model.name!r}."
        )
    try:
        return pretrained.look(Path(path))
    except HiveError as error:
        raise Unavailable(f"This node cannot use its {model.source}: {error.sentence}", fix=error.fix) from error


def _from_package(model: ModelSpec, info: DataInfo, seed: int, resources: Resources) -> Built:
    from hivenode.training.frameworks.torch_modules import of_module

    module_name, _, factory = model.name.partition(":")
    package = module_name.partition(".")[0]
    if package not in resources.packages:
        raise Unavailable(
            f"{model.source} is of a package that this node's owner has not allowed.",
            fix=f"Add {package!r} to jobs.allowed_packages there.",
        )
    try:
        loaded = importlib.import_module(module_name)
    except ImportError as error:
        raise Unavailable(
            f"{model.source} cannot be loaded here: {error}.", fix=f"Install {package} on that node."
        ) from error
    make = getattr(loaded, factory, None)
    if not callable(make):
        there = [name for name in dir(loaded) if callable(getattr(loaded, name))]
        near = difflib.get_close_matches(factory, there, n=1)
        fix = f"Did you mean 'python:{module_name}:{near[0]}'?" if near else f"Look at {package} as installed there."
        raise InvalidInput(f"{module_name} has no function '{factory}'.", fix=fix)
    torch.manual_seed(seed)
    try:
        module = make(input_shape=info.input_shape, outputs=info.outputs, **model.params)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{model.source} does not take these params: {error}.",
            fix=f"It is called as {factory}(input_shape=..., outputs=..., **params), with what is in model.params.",
        ) from error
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"{model.source} made a {type(module).__name__}.", fix="It has to return a torch.nn.Module.")
    return of_module(module.float())
