"""skops: from its schema to the nodes a pickle of the same object would have.

https://skops.readthedocs.io/en/stable/persistence.html, protocol as of 0.13
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.numpy_pickles import WRAPPER, Array
from hivenode.models.identify.formats.pickles import Call, Global, Value
from hivenode.models.identify.readers.skops import DEEPEST, LOADERS, MOST_NODES, SCHEMA
from hivenode.models.identify.source import Source
from hivenode.models.loading import memory
from hivenode.models.loading.estimators.values import Ready

LONGEST_NPY_HEADER = 10_000
_KEYS: dict[str, Callable[[str], Value]] = {
    "str": str, "int": int, "float": float, "bool": lambda text: text in {"True", "true"},
}  # fmt: skip
"""How the text that JSON makes of a key becomes the key again."""
_CONTAINERS = {"ListNode": list, "TupleNode": tuple, "SetNode": set}
_MAPPINGS = frozenset({"DictNode", "OrderedDictNode"})


def read(source: Source, budget: int) -> Value:
    """The value a skops file holds, as inert nodes; arrays are read.

    Args:
        budget: bytes its entries may unpack to.

    Raises:
        Corrupted: it is no sound skops file.
        Exhausted: its arrays take more than the budget.
    """
    archive = Archive.of(source)
    memory.check(
        2 * sum(entry.size for entry in archive.entries.values()), budget, f"Loading {source.name}",
        fix="Give it more memory.",
    )  # fmt: skip
    return _Schema(archive, budget).value(jsons.table(archive.read(SCHEMA), SCHEMA), 0)


class _Schema:
    def __init__(self, archive: Archive, budget: int) -> None:
        self._archive = archive
        self._budget = budget
        self._made: dict[int, Value] = {}
        self._nodes = 0

    def value(self, node: Any, depth: int) -> Value:
        self._nodes += 1
        if depth > DEEPEST or self._nodes > MOST_NODES or not isinstance(node, dict):
            self._lies("it nests without end, or holds something that is no node")
        number = node.get("__id__")
        loader = node.get("__loader__")
        if loader == "CachedNode":
            if number not in self._made:
                self._lies("it refers to a part that does not come before")
            return self._made[number]
        if loader not in LOADERS:
            self._lies(f"a part of kind {str(loader)[:40]!r}")
        made = self._make(loader, node, depth + 1)
        if isinstance(number, int):
            self._made[number] = made
        return made

    def _make(self, loader: str, node: dict[str, Any], depth: int) -> Value:
        inside = node.get("content")
        kind = Global(str(node.get("__module__")), str(node.get("__class__")))
        if loader == "JsonNode":
            return jsons.parse(str(inside).encode(), SCHEMA)
        if loader in _CONTAINERS and isinstance(inside, list):
            parts = [self.value(part, depth) for part in inside]
            return Call(kind, (parts,)) if loader == "SetNode" else _CONTAINERS[loader](parts)
        if loader in _MAPPINGS and isinstance(inside, dict):
            return self._entries(inside, node.get("key_types"), depth)
        if loader == "DefaultDictNode" and isinstance(inside, dict):
            return self.value(inside.get("main"), depth)
        if loader == "NdArrayNode":
            return self._array(node, kind, depth)
        if loader == "SparseMatrixNode":
            return self._sparse(node)
        if loader in {"BytesNode", "BytearrayNode"}:
            return self._file(node)
        if loader == "TypeNode":
            return kind
        if loader == "FunctionNode" and isinstance(inside, dict):
            return Global(str(inside.get("module_path")), str(inside.get("function")))
        if loader == "SliceNode" and isinstance(inside, dict):
            return slice(*(self._whole(inside.get(part)) for part in ("start", "stop", "step")))
        made = Call(kind, ())
        if loader == "TreeNode":
            arguments = self.value(jsons.inner(node, "__reduce__").get("args"), depth)
            made.args = arguments if isinstance(arguments, tuple) else ()
        if loader in {"ObjectNode", "TreeNode"} and inside is not None:
            made.state = self.value(inside, depth)
        return made

    def _entries(self, inside: dict[str, Any], types: Any, depth: int) -> dict[Value, Value]:
        kinds = self.value(types, depth) if types is not None else []
        if not isinstance(kinds, list) or len(kinds) != len(inside):
            kinds = [Global("builtins", "str")] * len(inside)
        made: dict[Value, Value] = {}
        for kind, (key, part) in zip(kinds, inside.items(), strict=True):
            convert = _KEYS.get(kind.name.rstrip("_0123456789")) if isinstance(kind, Global) else None
            if convert is None:
                self._lies("a key of a kind that is not read")
            try:
                made[convert(key)] = self.value(part, depth)
            except ValueError:
                self._lies("a key of another kind than it says")
        return made

    def _array(self, node: dict[str, Any], kind: Global, depth: int) -> Value:
        if node.get("type") == "numpy":
            numbers = self._npy(self._file(node))
            if kind.path == "numpy.ndarray":
                return Ready(numbers)
            if numbers.shape != () or kind.module != "numpy":
                self._lies("a number that is an array")
            return Ready(numbers[()])
        shape = self.value(node.get("shape"), depth)
        inside = node.get("content")
        if not isinstance(shape, tuple) or not all(type(size) is int for size in shape) or not isinstance(inside, list):
            self._lies("an array of objects without its shape")
        items = [self.value(part, depth) for part in inside]
        for _ in shape[1:]:
            if not all(isinstance(part, list) for part in items):
                self._lies("an array of objects that is not of its shape")
            items = [inner for part in items for inner in part]
        module, _, name = WRAPPER.rpartition(".")
        return Call(
            Global(module, name),
            (),
            state={"dtype": Global("builtins", "object")},
            entries={"array": Array("object", shape, 8, items=tuple(items))},
        )

    def _npy(self, raw: bytes) -> Any:
        try:
            return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False, max_header_size=LONGEST_NPY_HEADER)
        except (ValueError, EOFError, TypeError, OSError) as error:
            return self._lies(f"an array that cannot be read: {str(error)[:100]}")

    def _sparse(self, node: dict[str, Any]) -> Ready:
        """What `scipy.sparse.save_npz` writes, its indices looked through."""
        import scipy.sparse

        with np.load(io.BytesIO(self._file(node)), allow_pickle=False, max_header_size=LONGEST_NPY_HEADER) as parts:
            form = bytes(parts["format"].item()).decode("ascii", "replace")
            if form not in ("csr", "csc"):
                self._lies(f"a sparse matrix of the form {form[:10]!r}, which is not read")
            kind = getattr(scipy.sparse, f"{form}_matrix")
            try:
                made = kind((parts["data"], parts["indices"], parts["indptr"]), shape=tuple(parts["shape"]))
                made.check_format(full_check=True)
            except (KeyError, ValueError, IndexError, TypeError):
                self._lies("a sparse matrix whose indices do not fit")
        return Ready(made)

    def _file(self, node: dict[str, Any]) -> bytes:
        name = node.get("file")
        if not isinstance(name, str):
            self._lies("a part without its file")
        return self._archive.read(name, limit=self._budget)

    def _whole(self, value: Any) -> int | None:
        if value is not None and type(value) is not int:
            self._lies("a slice of something else than numbers")
        return value

    def _lies(self, what: str) -> NoReturn:
        raise Corrupted(
            f"{self._archive.source.name} is no sound skops file: {what}.", fix="Fetch it again from where it was made."
        )
