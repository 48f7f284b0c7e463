"""Cutting any PyTorch module into stages: its exported graph is divided between two operations.

`torch.export` gives the operations of one forward pass in order, each with the path of the submodule it came from. A
stage is a run of them; what it needs from before is what crosses the cut, residual connections and masks included, and
is passed on from neighbour to neighbour. Nothing is computed twice and no operation is changed, so a cut model
computes the very bits of the whole one. Parameters need not exist for this: see `hollow`.
"""

from __future__ import annotations

import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.nn.modules.module import register_module_parameter_registration_hook

from hivenode.errors import InvalidInput

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that crosses a cut."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    differentiable: bool
    """Whether its gradient comes back."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage begins: with the first operation of a submodule, or after its last."""

    path: str
    after: bool = False

    def __str__(self) -> str:
        return f"{'the end of ' if self.after else ''}{self.path}"


@dataclass(frozen=True, slots=True)
class StageGraph:
    """One stage, for one batch size.

    Attributes:
        run: `run(*tensors, *received)`, tensors in the order of `parameters + buffers`; returns what is sent.
        parameters, buffers: names in the whole module. A tied parameter goes by its first.
        receives, sends: values from the stage before and to the one after; the model's inputs at the first stage,
            its outputs at the last.
    """

    run: fx.GraphModule
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    constants: tuple[torch.Tensor, ...]
    receives: tuple[Value, ...]
    sends: tuple[Value, ...]


@contextmanager
def hollow(note: Callable[[nn.Parameter, torch.Tensor], None] = lambda parameter, made: None) -> Iterator[None]:
    """Modules made within have parameters with a shape and no memory; their buffers are real.

    Args:
        note: told of each parameter, and of what it was made with.
    """

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.device.type == "meta":
            return None  # it is tied to another
        made = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        note(made, parameter.detach())
        return made

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def _faked(module: nn.Module, mode: FakeTensorMode) -> None:
    """Let hollow parameters pass for tensors on the CPU; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    convert = mode.fake_tensor_converter
    for owner in module.modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None and parameter.device.type == "meta":
                if id(parameter) not in made:
                    fake = convert.from_meta_and_device(mode, parameter.detach(), torch.device("cpu"))
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                setattr(owner, name, made[id(parameter)])


def cut(module: nn.Module, inputs: Inputs, firsts: Sequence[Place]) -> tuple[StageGraph, ...]:
    """Divide a module, made `hollow` or not, into len(firsts) + 1 stages.

    Args:
        inputs: keyword arguments of `forward`, with the batch size of one small batch; only shapes and dtypes matter.
        firsts: where each stage after the first begins, in order.

    Raises:
        InvalidInput: the module cannot be exported or cut there; the operation or submodule is named.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _faked(module, mode)
    fakes = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
    try:
        with mode, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The tensor attributes")  # a list that torch's LSTM keeps
            program = torch.export.export(module, (), fakes, strict=False)
    except Exception as error:
        text = str(error).strip().split("\n", 1)[0][:300]
        raise InvalidInput(
            f"The model cannot be cut into stages: tracing it stopped at {_operation(module, error)}, with "
            f"{type(error).__name__}: {text}.",
            fix="Use placement.strategy data_parallel or single_node for it.",
        ) from error
    first: dict[int, str] = {}
    same: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        same[name] = first.setdefault(id(parameter), name)
    return _Cutter(program, firsts, same).stages()


def _operation(module: nn.Module, error: Exception) -> str:
    """The operation that an error came from: the innermost line of the module's own code, and whose it is."""
    names = {id(part): name for name, part in module.named_modules()}
    found = "its start"
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner, file = frame.f_locals.get("self"), frame.f_code.co_filename
        if id(owner) in names and frame.f_code.co_name == "forward":
            code = linecache.getline(file, line).strip()[:120]
            where = names[id(owner)].removeprefix("m.") or "the whole"
            found = f"`{code}` in {where} ({type(owner).__name__})" if code else f"{where} ({type(owner).__name__})"
    return found


class _Cutter:
    """Args:
    same: the first name of each parameter; tied ones have several.
    """

    def __init__(self, program: torch.export.ExportedProgram, firsts: Sequence[Place], same: Mapping[str, str]) -> None:
        self._program = program
        graph = program.graph
        self._inputs: dict[str, tuple[InputKind, str]] = {}
        for spec in program.graph_signature.input_specs:
            self._inputs[spec.arg.name] = (spec.kind, same.get(spec.target or "", spec.target or spec.arg.name))
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._operations = [node for node in graph.nodes if node.op in ("call_function", "get_attr")]
        (self._output,) = (node for node in graph.nodes if node.op == "output")
        self._differentiable = self._flow()
        bounds = [0, *self._starts(firsts), len(self._operations)]
        self._stage = {
            node: stage
            for stage in range(len(bounds) - 1)
            for node in self._operations[bounds[stage] : bounds[stage + 1]]
        }
        self._count = len(bounds) - 1

    def _starts(self, firsts: Sequence[Place]) -> list[int]:
        starts: list[int] = []
        for place in firsts:
            found = [i for i, node in enumerate(self._operations) if _within(node, place.path)]
            least = starts[-1] + 1 if starts else 1
            at = None if not found else found[-1] + 1 if place.after else found[0]
            if at is None or not least <= at < len(self._operations):
                why = "no operation comes from it" if at is None else "nothing would be left before or after it"
                raise InvalidInput(
                    f"The model cannot be cut at {place}: {why}.",
                    fix="Use placement.strategy data_parallel or single_node for it.",
                )
            starts.append(at)
        return starts

    def _flow(self) -> set[fx.Node]:
        """Values through which gradients flow."""
        flowing: set[fx.Node] = set()
        for node in self._placeholders:
            kind, _ = self._inputs[node.name]
            if kind is InputKind.PARAMETER and node.meta["val"].requires_grad:
                flowing.add(node)
        for node in self._operations:
            value = node.meta.get("val")
            if any(each in flowing for each in node.all_input_nodes) and (
                not isinstance(value, torch.Tensor) or value.is_floating_point()
            ):
                flowing.add(node)
        return flowing

    def _needed_after(self, stage: int) -> list[fx.Node]:
        """Model inputs and values made in stages up to this one that later stages use, in order of the graph."""
        needed: dict[fx.Node, None] = {}
        users = [node for node in self._operations if self._stage[node] > stage]
        for node in [*users, self._output]:
            for source in node.all_input_nodes:
                given = source in self._stage and self._stage[source] <= stage
                if given or (source.op == "placeholder" and self._inputs[source.name][0] is InputKind.USER_INPUT):
                    needed[source] = None
        order = {node: place for place, node in enumerate(self._program.graph.nodes)}
        return sorted(needed, key=lambda node: order[node])

    def _value(self, node: fx.Node) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise InvalidInput(
                f"The model cannot be cut here: {node.name} ({node.target}) crosses the cut and is no tensor.",
                fix="Use placement.strategy data_parallel or single_node for it.",
            )
        return Value(node.name, tuple(int(size) for size in value.shape), value.dtype, node in self._differentiable)

    def stages(self) -> tuple[StageGraph, ...]:
        crossing = [self._needed_after(stage) for stage in range(self._count - 1)]
        inputs = [n for n in self._placeholders if self._inputs[n.name][0] is InputKind.USER_INPUT]
        outputs = list(self._output.args[0])
        taken = [inputs, *crossing]
        given = [*crossing, outputs]
        return tuple(self._build(stage, taken[stage], given[stage]) for stage in range(self._count))

    def _build(self, stage: int, receives: list[fx.Node], sends: list[Any]) -> StageGraph:
        nodes = [node for node in self._operations if self._stage[node] == stage]
        used = {source for node in nodes for source in node.all_input_nodes} | set(sends)
        own: dict[InputKind, list[fx.Node]] = {InputKind.PARAMETER: [], InputKind.BUFFER: []}
        constants: list[fx.Node] = []
        for node in self._placeholders:
            kind, _ = self._inputs[node.name]
            if node in used and kind is not InputKind.USER_INPUT:
                own.get(kind, constants).append(node)
        made = fx.Graph()
        new: dict[fx.Node, fx.Node] = {}
        tensors = [*own[InputKind.PARAMETER], *own[InputKind.BUFFER], *constants]
        for node in [*tensors, *receives]:
            new[node] = made.placeholder(node.name)
        for node in nodes:
            new[node] = made.node_copy(node, lambda source: new[source])
        made.output(tuple(new[node] for node in sends))
        made.lint()
        names = [
            tuple(self._inputs[node.name][1] for node in own[kind]) for kind in (InputKind.PARAMETER, InputKind.BUFFER)
        ]
        return StageGraph(
            run=fx.GraphModule(self._program.graph_module, made),
            parameters=names[0],
            buffers=names[1],
            constants=tuple(self._program.constants[self._inputs[node.name][1]] for node in constants),
            receives=tuple(self._value(node) for node in receives),
            sends=tuple(self._value(node) for node in sends),
        )


def _within(node: fx.Node, path: str) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return any(each == path or each.startswith(path + ".") for each, _ in stack.values())
