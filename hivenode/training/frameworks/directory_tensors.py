"""What the tensors of a transformers model begin as in a directory, paired as its `from_pretrained` pairs them, and
read one by one: who needs some of them touches no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from hivenode.models.identify.report import Tensor
from hivenode.models.loading.weights import NUMPY, Files
from hivenode.models.pretrained import Pretrained
from hivenode.training.frameworks.model import Vector

READ = frozenset(("bfloat16", *(name for name in NUMPY if not name.startswith("complex"))))
"""Dtypes of which float32 can be made."""


class DirectoryTensors:
    """Those that begin a model's.

    Attributes:
        found: by the model's own names, of parameters by the first.
    """

    def __init__(self, directory: Pretrained, found: dict[str, Tensor]) -> None:
        self.found = found
        self._files = Files(directory.path)

    def fill(self, name: str, target: Vector) -> None:
        """Write one of `found` to a flat target, as float32. Raises Corrupted: the file was cut short meanwhile."""
        np.copyto(target, self._files.weight(self.found[name]).numpy().ravel(), casting="unsafe")

    def fill_statistics(self, module: nn.Module) -> None:
        """The saved buffers of a module, whose memory is real."""
        for name, buffer in module.named_buffers():
            if name in self.found:
                buffer.copy_(torch.from_numpy(self._files.weight(self.found[name]).numpy().copy()).view(buffer.shape))

    def alike(self, names: list[str]) -> bool:
        """Whether these of `found` are the same numbers."""
        values = [self._files.weight(self.found[name]).numpy() for name in names]
        return all(np.array_equal(values[0], other) for other in values[1:])


def paired(module: Any, directory: Pretrained) -> DirectoryTensors | None:
    """Of a `PreTrainedModel`, made `hollow` or not. None where the library would do more than rename: join, split or
    untie tensors.
    """
    named = _named(module, directory)
    if named is None or not all(tensor.dtype in READ for tensor in named.values()):
        return None
    state = module.state_dict()
    fitting = {name: tensor for name, tensor in named.items() if tensor.shape == tuple(state[name].shape)}
    tensors = DirectoryTensors(directory, fitting)
    for names in _parameters(module):
        there = [name for name in names if name in fitting]
        if len(names) > 1 and (any(name in named for name in names if name not in there) or not tensors.alike(there)):
            return None
        if there:
            fitting[names[0]] = fitting[there[0]]
    return tensors


def _named(module: Any, directory: Pretrained) -> dict[str, Tensor] | None:
    """As `convert_and_load_state_dict_in_model` of transformers names them."""
    transforms = get_model_conversion_mapping(module)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    state, base = module.state_dict(), module.base_model_prefix
    named: dict[str, Tensor] = {}
    for name in sorted(directory.tensors, key=dot_natural_key):
        renamed, converted = rename_source_key(name, renamings, converters, base, state)
        if renamed not in state and name in state:
            renamed, converted = rename_source_key(name, [], [], base, state)
        if renamed not in state:
            continue
        if converted is not None or renamed in named:
            return None
        named[renamed] = directory.tensors[name]
    return named


def _parameters(module: nn.Module) -> Iterator[list[str]]:
    """The names of each parameter; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    yield from names.values()
