"""From the declaration of a model to one that can be trained or asked, whichever framework builds it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from hivenode.data.info import DataInfo
from hivenode.errors import Unavailable
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import Precision
from hivenode.training.frameworks.model import Model, Vector

TORCH = ("torch", "transformers")


@dataclass(frozen=True)
class Made:
    """A model with its first weights.

    Attributes:
        vector: (layout.size + 1,); the gradient is a view of all but the last element.
        declared: what the model can be built from again on any node.
        afresh: tensors that the weights given do not have.
    """

    model: Model
    vector: Vector
    declared: ModelSpec
    afresh: tuple[str, ...] = ()


def make(
    framework: str,
    model: ModelSpec,
    info: DataInfo,
    seed: int,
    resources: Resources,
    threads: int,
    precision: Precision = "fp32",
) -> Made:
    """Build a model; the same bits on every machine.

    Args:
        precision: what it computes in while it trains.

    Raises:
        InvalidInput: the declaration is wrong, or does not fit the data.
        Unavailable: this node lacks what it names.
    """
    if framework in TORCH:
        from hivenode.training.frameworks.torch_building import make as make_torch

        return make_torch(model, info, seed, resources, threads, precision)
    if framework == "keras":
        from hivenode.training.frameworks.keras_building import make as make_keras

        return make_keras(model, info, seed, resources, threads, precision)
    raise Unavailable(f"No {framework} model can be built here.", fix=f"Install {framework} on that node.")


def serving(framework: str, model: ModelSpec) -> str:
    """What asks a model that `framework` has trained: keras builds the same layers as torch, with the same tensors, and
    of these is asked only where torch is not installed."""
    alike = framework == "keras" and model.kind != "keras"
    return "torch" if alike and importlib.util.find_spec("torch") is not None else framework
