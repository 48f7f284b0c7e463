"""TorchScript: an archive with the modules' state, and their code in a small language of torch's own."""

from __future__ import annotations

import re
from typing import NamedTuple

from hivenode.errors import Corrupted, HiveError
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.pickles import Call, Global, PersistentId, Pickle, Value, interpret
from hivenode.models.identify.formats.torch_pickles import ALLOWED, DEEPEST, MOST_TENSORS, Found, Network, view
from hivenode.models.identify.naming.state_dicts import recognise
from hivenode.models.identify.readers.torch_checkpoints import count_frozen, listing, name_network
from hivenode.models.identify.readers.torch_zip import root_of, storages
from hivenode.models.identify.report import Confidence, Port, Report
from hivenode.models.identify.source import Source

MOST_CODE = 8 << 20
SCRIPT = ALLOWED | {
    f"torch.jit._pickle.{name}"
    for name in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag",
        "build_tensor_from_id",
    )
}  # fmt: skip
_CLASS = re.compile(r"^class (\w+)\((\w+)\):\n((?:  .*\n)*)", re.MULTILINE)
_NAMES = re.compile(r"^  __(parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)
LONGEST_SIGNATURE = 1 << 14
_FORWARD = re.compile(r"^  def forward\(\w+: [^,)]{1,400},?\s*", re.MULTILINE)
_ARGUMENT = re.compile(r"\b(\w+): ([\w.]+(?:\[[^=]*\])?)(?:=[^,]*)?(?:,|$)")
_CALLED = re.compile(r"(?<![\w.])(?:torch|ops)\.[\w.]+(?=\()")
_HARMLESS = re.compile(r"ops\.(prim|aten|quantized|torchvision|torchaudio|image)\.\w+|torch\.\w+(\.\w+)?")
_FILES = frozenset({"torch.save", "torch.load", "torch.from_file", "ops.aten.save", "ops.aten.from_file"})
_MANGLED = re.compile(r"\.?___torch_mangle_\d+")


class Class(NamedTuple):
    """What the code says of one class."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    body: str


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and root_of(archive) is not None and f"{root_of(archive)}/constants.pkl" in archive


def read(source: Source) -> Report:
    archive = Archive.of(source)
    root = root_of(archive) or ""
    report = Report(safe=True)
    report.know(Confidence.read, "constants.pkl beside data.pkl", format="torchscript", framework="pytorch")
    pickles = _pickles(report, archive, root)
    classes = _code(report, archive, root)
    place = storages(archive, root)
    found, network = _tensors(pickles[f"{root}/data.pkl"].value, classes)
    report.hold(listing(found, place), "the modules' parameters")
    count_frozen(report, found)
    name_network(report, network)
    recognise(report, report.listing)
    main = classes.get(network.classes.get("", ""))
    whole = pickles[f"{root}/data.pkl"].value
    if main is None and isinstance(whole, Call):
        main = classes.get(whole.path)
    if main is not None:
        _ports(report, main.body)
    return report


def _pickles(report: Report, archive: Archive, root: str) -> dict[str, Pickle]:
    """Both pickles that torch loads, judged; other pickles and unknown files are named."""
    loaded = {}
    for name in (f"{root}/data.pkl", f"{root}/constants.pkl"):
        loaded[name] = interpret(archive.read(name), name=f"{name} in {archive.source.name}")
        own = {use.name for use in loaded[name].globals if use.module.split(".")[0] == "__torch__"}
        judge(report, loaded[name], SCRIPT | own, name)
    for name in archive.entries:
        if name.endswith(".pkl") and name not in loaded and name != f"{root}/traced_inputs.pkl":
            report.find(name, archive.source.name, "torch puts no such file into a TorchScript archive")
        if not name.startswith(f"{root}/"):
            report.find(name, archive.source.name, "it lies outside the archive's folder")
    return loaded


def _code(report: Report, archive: Archive, root: str) -> dict[str, Class]:
    """All classes by their qualified name; calls that reach files or custom operators become findings."""
    classes: dict[str, Class] = {}
    left = MOST_CODE
    folder = f"{root}/code/"
    for name in archive.entries:
        if not name.startswith(folder) or not name.endswith(".py"):
            continue
        raw = archive.read(name, limit=left)
        left -= len(raw)
        text = raw.decode("utf-8", "replace")
        for found in _CALLED.finditer(text):
            called = found.group()
            if called in _FILES or not _HARMLESS.fullmatch(called):
                report.find(
                    called, f"{name}, character {found.start()}", "an operator that is not torch's own arithmetic"
                )
        module = name[len(folder) : -3].replace("/", ".")
        for entry in _CLASS.finditer(text):
            names = {
                kind: frozenset(re.findall(r'"([^"]*)"', listed)) for kind, listed in _NAMES.findall(entry.group(3))
            }
            classes[f"{module}.{entry.group(1)}"] = Class(
                names.get("parameters", frozenset()), names.get("buffers", frozenset()), entry.group(3)
            )
    return classes


def _tensors(value: Value, classes: dict[str, Class]) -> tuple[list[Found], Network]:
    """Parameters and buffers of a scripted module, by what its classes declare."""
    found: list[Found] = []
    named: dict[str, str] = {}
    waiting: list[tuple[str, Value, int]] = [("", value, 0)]
    while waiting:
        prefix, node, depth = waiting.pop()
        if not isinstance(node, Call) or not isinstance(node.state, dict):
            continue
        if depth > DEEPEST or len(named) > MOST_TENSORS:
            raise Corrupted("Its modules hold each other without end.", fix="Fetch the file from where it was made.")
        path = node.path
        declared = classes.get(path)
        named[prefix.rstrip(".")] = _MANGLED.sub("", path).removeprefix("__torch__.")
        inner: list[tuple[str, Value, int]] = []
        for name, held in node.state.items():
            tensor = view(held)
            if tensor is not None:
                learnt = declared is not None and name in declared.parameters
                found.append(Found(f"{prefix}{name}", tensor, not learnt))
            elif isinstance(held, Call) and isinstance(held.function, Global) and held.path.startswith("__torch__"):
                inner.append((f"{prefix}{name}.", held, depth + 1))
            elif isinstance(held, PersistentId):
                continue
        waiting.extend(reversed(inner))
    return found, Network(named)


def _ports(report: Report, body: str) -> None:
    """Arguments and results of `forward`, by the types the code gives them."""
    begun = _FORWARD.search(body)
    if begun is None:
        return
    arguments, arrow, rest = body[begun.end() : begun.end() + LONGEST_SIGNATURE].partition(") -> ")
    result, colon, _ = rest.partition(":\n")
    if not arrow or not colon:
        return
    inputs = [Port(name, kind.lower() if kind != "Tensor" else None) for name, kind in _ARGUMENT.findall(arguments)]
    outputs = [Port(f"output_{place}") for place in range(max(1, result.count("Tensor")))]
    report.know(Confidence.read, "the signature of forward", inputs=inputs, outputs=outputs)


def nested(report: Report, archive: Archive, name: str) -> None:
    """Judge an archive within the archive: the pickles in it are loaded with it.

    Raises:
        Corrupted: it cannot be read.
    """
    from hivenode.models.identify.formats.nested import Nested

    inside = Nested(archive.source, archive.part(name), f"{name} in {archive.source.name}")
    try:
        inner = Archive.of(inside)
    except HiveError as error:
        report.find(name, archive.source.name, f"it cannot be looked into: {error.sentence}")
        return
    for entry in inner.entries:
        if entry.endswith(".pkl"):
            judge(report, interpret(inner.read(entry), name=entry), SCRIPT, f"{name}: {entry}")
