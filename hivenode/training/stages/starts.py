"""What the parameters of a module made `hollow` would have begun as: constants are told from chance without either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.initialization import TORCH_INIT_FUNCTIONS

from hivenode.training.stages.graph import hollow

VARIED = "varied"
"""By chance, or otherwise not one number throughout."""
UNKNOWN = "unknown"

Start = float | str
"""One number for all elements, `VARIED` or `UNKNOWN`."""

aten = torch.ops.aten
_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_FILLING = {aten.fill_, aten.zero_}
_SILENT = ("trunc_normal_", "orthogonal_", "sparse_", "dirac_")
"""Initialisers of PyTorch that write nothing where there is no memory."""


class Starts(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """While it is on, sees every operation that writes to parameters without memory, and follows what one element would
    be: what fills a tensor, or changes all elements of a constant alike, is done to a tensor of one element."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, Start] = {}
        self._alive: list[nn.Parameter] = []  # so that no other tensor gets the key of one
        self._blank: set[int] = set()
        """Tensors in memory that nothing was written to yet."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Modules made within are `hollow`, and their beginnings followed."""
        with hollow(self.note), _heard(), self:
            yield

    def of(self, parameter: nn.Parameter) -> Start:
        return self._known.get(_key(parameter), UNKNOWN)

    def note(self, parameter: nn.Parameter, made: torch.Tensor) -> None:
        """A parameter has lost the memory that it was made with."""
        self._alive.append(parameter)
        self._known[_key(parameter)] = UNKNOWN if _key(made) in self._blank else _constant(made)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {_key(value) for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)}
        made = {_key(value) for value in tree_iter(out) if isinstance(value, torch.Tensor)} - given
        self._blank = self._blank | made if func._overloadpacket in _EMPTY else self._blank - made
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in tree_iter(written):
                if isinstance(tensor, torch.Tensor):
                    self._blank.discard(_key(tensor))
                    if _key(tensor) in self._known:
                        self._known[_key(tensor)] = self._after(func, tensor, args[1:]) if place == 0 else UNKNOWN
        return out

    def _after(self, func: Any, written: torch.Tensor, args: tuple[Any, ...]) -> Start:
        """What a parameter is when an operation has written to it, or to a view of it."""
        before, packet = self._known[_key(written)], func._overloadpacket
        whole = written.numel() * written.element_size() == written.untyped_storage().nbytes()
        if torch.Tag.nondeterministic_seeded in func.tags:
            if packet is not aten.normal_ or args[1:2] != (0,):
                return VARIED
            return float(args[0]) if whole else UNKNOWN
        if packet is aten.copy_ and whole:
            source = args[0]
            return self._known.get(_key(source), UNKNOWN) if source.device.type == "meta" else _constant(source)
        fills = packet in _FILLING
        if not (fills and whole) and not isinstance(before, float):
            return before
        if any(isinstance(value, torch.Tensor) for value in args):
            return UNKNOWN
        one = torch.full((), before if isinstance(before, float) else 0.0, dtype=written.dtype)
        func(one, *args)
        return float(one) if whole else before if before == float(one) else VARIED


@contextmanager
def _heard() -> Iterator[None]:
    """The initialisers that would write nothing draw, in PyTorch's own list of them and in the one that transformers
    keeps of PyTorch's."""
    lists: tuple[dict[str, Any], ...] = (vars(nn.init), TORCH_INIT_FUNCTIONS)
    kept = [{name: each[name] for name in _SILENT} for each in lists]
    try:
        for each in lists:
            each.update(dict.fromkeys(_SILENT, _draw))
        yield
    finally:
        for each, before in zip(lists, kept, strict=True):
            each.update(before)


def _draw(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return tensor.normal_()


def _constant(tensor: torch.Tensor) -> Start:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return UNKNOWN
    low, high = torch.aminmax(tensor)
    return float(low) if low == high else VARIED


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
