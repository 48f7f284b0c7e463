"""Weights that training starts from instead of chance: a safetensors file, read tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from hivenode.errors import Corrupted, InvalidInput, Unavailable
from hivenode.net.local import Resources
from hivenode.spec.model import ModelSpec
from hivenode.spec.shapes import spelled
from hivenode.training.frameworks.model import Floats

Library = Literal["pt", "np"]
"""What reads them: PyTorch, or numpy, which has no bfloat16."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_ADAPTED = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save\.default)\.")
_LISTED = 20


class Given:
    """The floating-point tensors of an open file.

    Attributes:
        shapes: by name.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        self.shapes = {n: tuple(part.get_shape()) for n, part in slices.items() if part.get_dtype() in _FLOATS}

    def _spelled(self, name: str) -> str:
        """What it calls a tensor: peft wraps those of a model that was saved without adapters."""
        return name if name in self.shapes else _WRAPPED.sub(".", name.removeprefix(_ADAPTED))

    def lacking(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Names, of the tensors of a whole model, that it has not in that shape. Raises InvalidInput if it has none."""
        found = tuple(n for n, shape in shapes.items() if self.shapes.get(self._spelled(n)) != tuple(shape))
        if len(found) == len(shapes):
            wanted = ", ".join(f"{name} {spelled(shape)}" for name, shape in list(shapes.items())[:3])
            raise InvalidInput(
                f"No tensor of the weights given fits the model, which has {wanted}, ...",
                fix="Give weights of the same architecture.",
            )
        return found

    def fill(self, place: Floats, name: str) -> None:
        """Copy one of `shapes` to a place of as many elements. Raises InvalidInput where numpy has no such numbers."""
        try:
            tensor = self._file.get_tensor(self._spelled(name))
        except TypeError as error:
            raise InvalidInput(
                f"Tensor {name} of the weights given cannot be read here: {error}.", fix="Save them as float32."
            ) from error
        array = tensor if isinstance(tensor, np.ndarray) else tensor.float().numpy()
        np.copyto(place, array.reshape(place.shape))


@contextmanager
def given(model: ModelSpec, resources: Resources, library: Library) -> Iterator[Given]:
    """The file that `model.weights` names.

    Raises:
        Unavailable: it is not here.
        Corrupted: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open  # whatever else is trained may not have it

    path = resources.blobs.get(model.weights.removeprefix("blob:").partition("/")[0])
    if path is None:
        raise Unavailable(f"The weights {model.weights[:24]} are not here.", fix="Start a node that holds them.")
    try:
        with safe_open(path, library) as file:
            yield Given(file)
    except (SafetensorError, OSError) as error:
        raise Corrupted(f"The weights given cannot be read: {error}.", fix="Give a safetensors file.") from error


def overlay(places: Mapping[str, Floats], model: ModelSpec, resources: Resources, library: Library) -> tuple[str, ...]:
    """Put the tensors given in the places of their name and shape; returns those that nothing was given for. Raises as
    `given` and `Given` do."""
    with given(model, resources, library) as file:
        afresh = file.lacking({name: place.shape for name, place in places.items()})
        for name, place in places.items():
            if name not in afresh:
                file.fill(place, name)
    return afresh


def told_afresh(names: Sequence[str]) -> str:
    """A sentence for the job's log; "" where nothing but adapters begins afresh, as they always do."""
    others = [name for name in names if ".lora_" not in name]
    return f"not among the weights given, so begun afresh: {', '.join(others[:_LISTED])}"[:2000] if others else ""
