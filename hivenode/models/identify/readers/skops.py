"""skops: a zip archive with a schema in JSON, and arrays beside it. https://skops.readthedocs.io/en/stable/persistence.html

Its loader makes what the schema names, of types it trusts or was told to; here, of the list for pickled estimators.
"""

from __future__ import annotations

from typing import Any

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons, npy
from hivenode.models.identify.formats.archives import STORED, Archive
from hivenode.models.identify.formats.numpy_pickles import Array, standing_for
from hivenode.models.identify.formats.pickles import Call, Global, Value
from hivenode.models.identify.naming.estimator_objects import describe, is_estimator, short
from hivenode.models.identify.naming.estimator_pickles import ALLOWED
from hivenode.models.identify.report import Confidence, Report, count
from hivenode.models.identify.source import Source

SCHEMA = "schema.json"
DEEPEST = 150
MOST_NODES = 1_000_000
LOADERS = frozenset({
    "JsonNode", "DictNode", "ListNode", "TupleNode", "SetNode", "BytesNode", "BytearrayNode", "SliceNode", "TypeNode",
    "ObjectNode", "NdArrayNode", "MaskedArrayNode", "RandomStateNode", "RandomGeneratorNode", "DTypeNode", "TreeNode",
    "SparseMatrixNode", "FunctionNode", "CachedNode", "DefaultDictNode", "OrderedDictNode", "DatetimeNode",
    "LossNode",
})  # fmt: skip
"""Those that make data of allowed types. Methods, partials and operators are code put together by the file."""
TYPES = frozenset({"builtins.NoneType", "types.NoneType", "numpy.random.RandomState", "numpy.random.Generator",
                   "scipy.sparse.csr_matrix", "numpy.random._generator.Generator"})  # fmt: skip
MADE_WITH_ARGUMENTS = {
    "TreeNode": ("sklearn.tree._tree",),
    "LossNode": ("sklearn.linear_model._sgd_fast", "sklearn._loss._loss"),
}
"""Loaders that call what they name, and the modules that may stand there."""
WHY = "not on the list of types that only hold data: loading the file could run it"


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and SCHEMA in archive and b"__loader__" in archive.stored(SCHEMA).some(0, 4096)


def read(source: Source) -> Report:
    archive = Archive.of(source)
    report = Report(safe=True)
    schema = jsons.table(archive.read(SCHEMA), f"{SCHEMA} in {source.name}")
    report.know(Confidence.read, SCHEMA, format="skops")
    version = jsons.text(schema, "_skops_version")
    if version is not None:
        report.hyperparameters["skops_version"] = version[:40]
    judge(report, schema)
    value = _Schema(archive, source.name).value(schema, SCHEMA, 0)
    for name in archive.entries:
        if name != SCHEMA and not name.endswith((".npy", ".npz")):
            report.find(name, source.name, "skops puts no such file into a model")
    if is_estimator(value):
        describe(report, value, source.name)
    elif isinstance(value, Call):
        report.know(Confidence.read, SCHEMA, model=short(value))
    return report


def judge(report: Report, schema: Any) -> None:
    """Find every type, function and loader that is not known to be harmless, wherever in the schema it stands."""
    waiting: list[tuple[str, Any]] = [(SCHEMA, schema)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, list):
            waiting.extend((f"{place}[{at}]", part) for at, part in enumerate(node))
            continue
        if not isinstance(node, dict):
            continue
        waiting.extend((f"{place}.{key}"[:200], part) for key, part in node.items())
        loader = node.get("__loader__")
        if loader is None and "__class__" not in node and "module_path" not in node:
            continue
        module, kind = node.get("__module__"), node.get("__class__")
        if "module_path" in node:  # how functions were spelt up to skops 0.9
            module, kind = node["module_path"], node.get("function")
        path = f"{module}.{kind}"
        if "__loader__" in node and (not isinstance(loader, str) or loader not in LOADERS):
            report.find(f"{loader} of {path}", place, "the file puts code together from parts")
        elif (path not in ALLOWED and path not in TYPES) or "." in str(kind):
            report.find(path, place, WHY)
        elif loader in MADE_WITH_ARGUMENTS and module not in MADE_WITH_ARGUMENTS[str(loader)]:
            report.find(path, place, "made with arguments, which may open files")
        file = node.get("file")
        if isinstance(file, str) and ("/" in file or "\\" in file):
            report.find(file, place, "a path that may leave the archive")


class _Schema:
    """Turns the schema's nodes into what a pickle of the same object would be."""

    def __init__(self, archive: Archive, name: str) -> None:
        self._name = name
        self._archive = archive
        self._made: dict[int, Value] = {}
        self._nodes = 0

    def value(self, node: Any, place: str, depth: int) -> Value:
        """What a node stands for.

        Raises:
            Corrupted: it nests too deeply, or is no node.
        """
        self._nodes += 1
        if depth > DEEPEST or self._nodes > MOST_NODES:
            raise self._damaged("it nests without end")
        loader, kind = jsons.text(node, "__loader__"), jsons.text(node, "__class__")
        module = jsons.text(node, "__module__")
        if loader is None or kind is None or module is None:
            raise self._damaged(f"the entry at {place[:100]} lacks its loader or type")
        number = node.get("__id__")
        if loader == "CachedNode":
            return self._made.get(number) if isinstance(number, int) else None
        made = self._make(node, loader, Global(module, kind), place, depth)
        if isinstance(number, int):
            self._made[number] = made
        return made

    def _make(self, node: dict[str, Any], loader: str, kind: Global, place: str, depth: int) -> Value:
        inside = node.get("content")
        if loader == "JsonNode":
            raw = inside if isinstance(inside, str) else "null"
            return jsons.parse(raw.encode(), place[:100])
        if loader == "NdArrayNode":
            return self._array(node, place, depth)
        if loader in {"DictNode", "DefaultDictNode", "OrderedDictNode"}:
            return self._entries(inside, place, depth, node.get("key_types"))
        if loader in {"ListNode", "TupleNode", "SetNode"} and isinstance(inside, list):
            parts = [self.value(part, f"{place}[{at}]", depth + 1) for at, part in enumerate(inside)]
            return tuple(parts) if loader == "TupleNode" else parts
        made = Call(kind, ())
        inner = {key: part for key, part in node.items() if isinstance(part, dict) and "__loader__" in part}
        for key, part in inner.items():
            held = self.value(part, f"{place}.{key}", depth + 1)
            if key == "content":
                made.state = held
        for key, part in node.items():
            if isinstance(part, dict) and key not in inner:
                self._entries(part, f"{place}.{key}", depth)
        return made

    def _entries(self, inside: Any, place: str, depth: int, keys: Any = None) -> dict[Value, Value]:
        if isinstance(keys, dict) and "__loader__" in keys:
            self.value(keys, f"{place}.key_types", depth + 1)
        if not isinstance(inside, dict):
            return {}
        return {
            key: self.value(part, f"{place}.{key}", depth + 1)
            for key, part in inside.items()
            if isinstance(part, dict) and "__loader__" in part
        }

    def _array(self, node: dict[str, Any], place: str, depth: int) -> Value:
        """An array in a file beside the schema, or one of objects spelt out."""
        name = node.get("file")
        if node.get("type") != "numpy" or not isinstance(name, str):
            inside = node.get("content")
            items = []
            if isinstance(inside, dict):
                held = self.value(inside, f"{place}.content", depth + 1)
                items = held if isinstance(held, list) else []
            elif isinstance(inside, list):
                items = [self.value(part, f"{place}[{at}]", depth + 1) for at, part in enumerate(inside)]
            shape = node.get("shape")
            if isinstance(shape, dict):
                self.value(shape, f"{place}.shape", depth + 1)
            return standing_for(Array("object", (len(items),), 8, items=tuple(items)))
        data = self._archive.stored(name)
        found = npy.header(data, name)
        if found.dtype == "object":
            raise self._damaged(f"{name} is an array of objects, which skops never writes: it would be a pickle")
        begin = found.offset or 0
        entry = self._archive.entries[name]
        if begin + count(found.shape) * found.itemsize != entry.size:
            raise self._damaged(f"{name} does not fit its own shape")
        offset = self._archive.start(name) + begin if entry.method == STORED else None
        return standing_for(Array(found.dtype, found.shape, found.itemsize, offset, None, None, found.fortran))

    def _damaged(self, what: str) -> Corrupted:
        return Corrupted(f"{self._name} is no sound skops file: {what}.", fix="Fetch it again from where it was made.")
