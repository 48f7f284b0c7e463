"""What a state dict is of, by the names and shapes in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TypeAlias

import msgspec

from hivenode.models.identify.report import Confidence, Port, Report, Tensor

Shape: TypeAlias = tuple[int, ...]
WRAPPERS = ("module.", "_orig_mod.", "model._orig_mod.", "state_dict.")
"""What DataParallel, compile() and the like put before every name."""
MOST_WRAPPERS = 16
MOST_NAMES = 60_000


class Guess(msgspec.Struct, frozen=True):
    """What the names say. `how`: whether the rule behind it has exceptions."""

    evidence: str
    family: str | None = None
    task: str | None = None
    architecture: str | None = None
    model: str | None = None
    framework: str | None = None
    how: Confidence = Confidence.inferred
    task_how: Confidence | None = None
    """If the task is less certain than the rest."""
    layers: int | None = None
    sizes: Mapping[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()


class Names:
    """Names and shapes of a state dict, to be asked questions.

    Args:
        shapes: by name; wrappers' prefixes are taken off.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(list(shapes.items())[:MOST_NAMES])
        for _ in range(MOST_WRAPPERS):
            wrapper = next((w for w in WRAPPERS if all(name.startswith(w) for name in self.shapes)), None)
            if wrapper is None or not self.shapes:
                break
            self.shapes = {name[len(wrapper) :]: shape for name, shape in self.shapes.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def get(self, name: str) -> Shape:
        """The shape of a tensor; () if there is none."""
        return self.shapes.get(name, ())

    @cached_property
    def text(self) -> str:
        """All names, one a line, each line beginning with a dot: `.layer1.0.conv1.weight`."""
        return "".join(f"\n.{name}" for name in self.shapes) + "\n"

    def has(self, part: str) -> bool:
        """Whether `part` stands in a name at a module's boundary on the left: `has("attn.qkv.")`."""
        return f".{part}" in self.text

    def find(self, pattern: str) -> str | None:
        """The first name that the pattern matches whole."""
        compiled = re.compile(pattern)
        return next((name for name in self.shapes if compiled.fullmatch(name)), None)

    def prefix(self, ending: str) -> str | None:
        """What stands before `ending` in the first name that ends so (at a module's boundary)."""
        at = self.text.find(f".{ending}\n")
        if at < 0:
            return None
        begin = self.text.rfind("\n", 0, at) + 2
        return self.text[begin : at + 1] if at >= begin else ""

    def blocks(self, before: str) -> int:
        """How many blocks `<before>0.`, `<before>1.`, ... there are; counted without gaps."""
        numbers = {int(found) for found in re.findall(rf"\.{re.escape(before)}(\d{{1,5}})\.", self.text)}
        total = 0
        while total in numbers:
            total += 1
        return total

    def blocks_from_one(self, before: str) -> int:
        """The same where counting begins at one: `<before>1.`, `<before>2.`, ..."""
        numbers = {int(found) for found in re.findall(rf"\.{re.escape(before)}(\d{{1,5}})\.", self.text)}
        total = 0
        while total + 1 in numbers:
            total += 1
        return total

    def under(self, prefix: str) -> Names:
        """The part of a model: names that begin with `prefix`, without it."""
        length = len(prefix)
        return Names({name[length:]: shape for name, shape in self.shapes.items() if name.startswith(prefix)})

    def matrices(self) -> list[tuple[str, Shape]]:
        """The weights with two axes or more, in order."""
        return [(name, shape) for name, shape in self.shapes.items() if len(shape) >= 2]


Rule: TypeAlias = Callable[[Names], Guess | None]
TABLES = ("diffusion", "language", "vision", "agents", "plain")
"""Modules beside this one, each with `RULES: tuple[Rule, ...]`; the particular before the general."""


def guess(names: Names) -> Guess | None:
    """The first rule that holds."""
    for table in TABLES:
        rules: Iterable[Rule] = import_module(f"hivenode.models.identify.naming.{table}").RULES
        for rule in rules:
            if (found := rule(names)) is not None:
                return found
    return None


def recognise(report: Report, tensors: Sequence[Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Fill in what follows from names and shapes; what the report has already from better evidence stays.

    Args:
        metadata: free text that came with the tensors; used as evidence only.
    """
    names = Names({tensor.name: tensor.shape for tensor in tensors})
    found = guess(names)
    if found is not None:
        apply(report, found)
    if report.layers is None:
        modules = {tensor.name.rpartition(".")[0] for tensor in tensors if tensor.trainable is not False}
        if modules:
            report.know(Confidence.inferred, "modules that hold parameters", layers=len(modules))


def apply(report: Report, found: Guess) -> None:
    """Take a guess over into the report, field by field, where the report knows nothing yet."""
    task_how = found.task_how or found.how
    for name, how in (
        ("family", found.how),
        ("task", task_how),
        ("architecture", found.how),
        ("model", found.how),
        ("framework", found.how),
        ("layers", found.how),
        ("inputs", found.how),
        ("outputs", found.how),
    ):
        value = getattr(found, name)
        if name in report.confidence or value is None or value == ():
            continue
        report.know(how, found.evidence, **{name: list(value) if isinstance(value, tuple) else value})
    for name, size in found.sizes.items():
        report.hyperparameters.setdefault(name, size)
