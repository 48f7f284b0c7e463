"""From the inert nodes of a pickle to Python's, numpy's and scikit-learn's own values."""

from __future__ import annotations

import inspect
import mmap
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from hivenode.errors import Corrupted, Refused
from hivenode.models.identify.formats.nested import Nested
from hivenode.models.identify.formats.numpy_pickles import SCALAR, WRAPPER, Array, array
from hivenode.models.identify.formats.pickles import Blob, Call, Global, Key, Value, attributes, mapping
from hivenode.models.identify.naming.estimator_objects import TREE, path_of
from hivenode.models.identify.report import count
from hivenode.models.identify.source import Source
from hivenode.models.loading import memory
from hivenode.models.loading.estimators import classes
from hivenode.models.loading.estimators.checks import CHECKS, rebuilt_tree

DEEPEST = 120
MOST_VALUES = 20_000_000
_PLAIN = (type(None), bool, int, float, str, bytes)
_KEYS = (*_PLAIN, tuple, np.generic)
_SPARSE = ("csr_matrix", "csc_matrix", "coo_matrix", "csr_array", "csc_array", "coo_array")
_NUMPY_TYPES = frozenset({
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool_",
    "str_", "object_", "complex64", "complex128",
})  # fmt: skip
_PYTHON_TYPES: dict[str, type] = {"float": float, "int": int, "bool": bool, "str": str, "object": object}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "complex": complex, "range": range,
    "slice": slice, "dict": dict,
}  # fmt: skip
_HIDDEN_INTEGERS = ("n_jobs", "_n_threads")


@dataclass(frozen=True)
class Ready:
    """A value that needs no rebuilding, for readers of formats that are no pickles."""

    value: Any


class Unsupported(Exception):
    """A node that is not rebuilt: what it is."""


class Rebuilder:
    """Rebuilds the values of one file.

    Args:
        data: what the offsets in its nodes refer to.
        source: the file, for the boosters inside.
        budget: bytes that arrays may take.

    Attributes:
        left_out: `Class.attribute` of what predicting does not need and was not rebuilt.
    """

    def __init__(self, path: Path, data: bytes | mmap.mmap, source: Source, budget: int) -> None:
        self.left_out: list[str] = []
        self._path = path
        self._name = path.name
        self._data = data
        self._source = source
        self._budget = budget
        self._arrays = 0
        self._values = 0
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()
        self._place: list[str] = []

    def whole(self, value: Value) -> Any:
        """Raises:
        Refused: something in it is not rebuilt.
        Corrupted: it holds itself, or its arrays lie.
        """
        try:
            return self.value(value)
        except Unsupported as error:
            place = ".".join(self._place)[:200]
            raise Refused(
                f"{self._path} is not loaded: it holds {error}{f', at {place}' if place else ''}, which is not rebuilt "
                "here.",
                fix="If you trust who made it, turn it into something simpler in a sandbox on your own machine: "
                f"hivenode convert {self._path} DIR",
            ) from None
        except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            # a value of another type than the one that stands there in every sound file
            self._lies(f"something of another kind than belongs there ({type(error).__name__}: {str(error)[:200]})")

    def value(self, node: Value, depth: int = 0) -> Any:
        if isinstance(node, _PLAIN):
            return node
        if isinstance(node, Ready):
            return node.value
        key = id(node)
        if key in self._made:
            return self._made[key]
        self._values += 1
        if key in self._open or depth > DEEPEST or self._values > MOST_VALUES:
            self._lies("it holds itself, or nests without end")
        self._open.add(key)
        made = self._make(node, depth + 1)
        self._open.discard(key)
        self._made[key] = made
        return made

    def _make(self, node: Value, depth: int) -> Any:
        if isinstance(node, Key | tuple):
            return tuple(self._at(str(place), part, depth) for place, part in enumerate(node))
        if isinstance(node, list):
            return [self._at(str(place), part, depth) for place, part in enumerate(node)]
        if isinstance(node, dict):
            return self._entries(node, depth)
        if isinstance(node, set | frozenset):
            return type(node)(self._key(part, depth) for part in node)
        if isinstance(node, bytearray):
            return bytes(node)
        if isinstance(node, Blob):
            raw = self._data[node.offset : node.offset + node.length]
            return raw.decode("utf-8", "replace") if node.text else raw
        if isinstance(node, Global):
            return self._named(node)
        if isinstance(node, Call):
            return self._call(node, depth)
        raise Unsupported(f"a {type(node).__name__.lower()}")

    def _at(self, place: str, part: Value, depth: int) -> Any:
        self._place.append(place)
        made = self.value(part, depth)
        self._place.pop()
        return made

    def _entries(self, entries: dict[Value, Value], depth: int) -> dict[Any, Any]:
        return {self._key(key, depth): self._at(str(key)[:40], part, depth) for key, part in entries.items()}

    def _key(self, key: Value, depth: int) -> Any:
        made = self.value(key, depth)
        if not isinstance(made, _KEYS):
            raise Unsupported(f"a key that is a {type(made).__name__}")
        return made

    def _named(self, node: Global) -> Any:
        """A type or function of numpy that stands as a value."""
        if node.module == "numpy" and node.name in _NUMPY_TYPES:
            return getattr(np, node.name)
        if node.module == "numpy" and node.name in classes.NUMPY_FUNCTIONS:
            return getattr(np, node.name)
        if node.module in {"builtins", "__builtin__"} and node.name in _PYTHON_TYPES:
            return _PYTHON_TYPES[node.name]
        raise Unsupported(node.path)

    def _call(self, node: Call, depth: int) -> Any:
        path = path_of(node)
        numbers = array(node, self._name)
        if numbers is not None:
            return self._array(node, numbers, depth)
        module, _, name = path.rpartition(".")
        if path in SCALAR and len(node.args) == 2:
            return self._scalar(node)
        if path == "numpy.dtype":
            return self.dtype(node)
        if path == "_codecs.encode":
            return self._raw(node)
        if path == "collections.OrderedDict":
            return OrderedDict(self._entries(mapping(node) or {}, depth))
        if path in {"collections.defaultdict", "collections.Counter"}:
            return self._entries(mapping(node) or {}, depth)
        if module in {"builtins", "__builtin__"} and name in _BUILTINS and not node.state:
            return self._builtin(name, node, depth)
        if path == TREE:
            return rebuilt_tree(self._name, self._arguments(node, depth), self._entries(attributes(node), depth))
        if module.startswith("scipy.sparse") and name in _SPARSE:
            return self._sparse(name, node, depth)
        if module == "sklearn._loss.loss" and name in classes.LOSSES:
            return self._loss(name, node)
        if name == "Bunch" and module in {"sklearn.utils", "sklearn.utils._bunch"}:
            from sklearn.utils import Bunch

            entries = {**attributes(node), **(node.entries or {})}
            return Bunch(**{str(key): self._at(str(key), part, depth) for key, part in entries.items()})
        if module.startswith(("xgboost.", "lightgbm.")):
            return self._booster(node, module.partition(".")[0])
        kind = classes.found(path)
        if kind is None:
            raise Unsupported(path or "a call of something computed")
        return self._instance(kind, node, depth)

    def _arguments(self, node: Call, depth: int) -> list[Any]:
        return [self.value(part, depth) for part in node.args]

    def _builtin(self, name: str, node: Call, depth: int) -> Any:
        arguments = self._arguments(node, depth)
        if node.items is not None:
            arguments = [[self.value(part, depth) for part in node.items]]
        if name == "dict" and node.entries is not None:
            arguments = [self._entries(node.entries, depth)]
        if name in {"set", "frozenset"} and arguments and not all(isinstance(part, _KEYS) for part in arguments[0]):
            raise Unsupported("a set of what cannot be in one")
        try:
            return _BUILTINS[name](*arguments)
        except (TypeError, ValueError):
            return self._lies(f"a {name} of something it cannot be made of")

    def _instance(self, kind: type[Any], node: Call, depth: int) -> Any:
        """An instance made bare and given its vetted attributes, as unpickling would, without any code of the file."""
        if node.items or node.entries or node.kwargs:
            raise Unsupported(f"a {kind.__name__} with more than attributes")
        state: dict[str, Any] = {}
        self._place.append(kind.__name__)
        for name, part in attributes(node).items():
            if name == "_sklearn_version":
                continue
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
                self._lies(f"an attribute called {str(name)[:40]!r}")
            shadowed = inspect.getattr_static(kind, name, None)
            if shadowed is not None and not (isinstance(shadowed, bool) and isinstance(part, bool)):
                self._lies(f"an attribute {name} in place of what the class {kind.__name__} has")
            if name in _HIDDEN_INTEGERS:
                state[name] = None if name == "n_jobs" else 1  # a file does not say how many threads run here
                continue
            if name in classes.LEFT_OUT and not isinstance(part, _PLAIN):
                self.left_out.append(f"{kind.__name__}.{name}")
                if name in inspect.signature(kind).parameters:
                    state[name] = None
                continue
            state[name] = self._at(name, part, depth)
        made: Any = object.__new__(kind)
        made.__dict__.update(state)
        for parent in kind.__mro__:
            check = CHECKS.get(parent.__name__)
            if check is not None and parent.__module__.startswith("sklearn."):
                check(made, self._lies)
        self._place.pop()
        return made

    def _loss(self, name: str, node: Call) -> Any:
        given = attributes(node).get("n_classes")
        if name == "HalfMultinomialLoss" and (type(given) is not int or not 2 < given <= classes.MOST_CLASSES):
            self._lies(f"a loss of {given!r} classes")
        return classes.loss(name, given if type(given) is int else None)

    def _sparse(self, name: str, node: Call, depth: int) -> Any:
        """A sparse matrix of scipy, its indices looked through."""
        import scipy.sparse

        own = self._entries(attributes(node), depth)
        shape = own.get("_shape")
        kind = getattr(scipy.sparse, name)
        try:
            if name.startswith("coo"):
                places = own["coords"] if "coords" in own else (own["row"], own["col"])
                return kind((own["data"], tuple(places)), shape=shape)
            made = kind((own["data"], own["indices"], own["indptr"]), shape=shape)
            made.check_format(full_check=True)
        except (KeyError, TypeError, ValueError, IndexError):
            self._lies("a sparse matrix whose indices do not fit")
        return made

    def _booster(self, node: Call, library: str) -> Any:
        """A booster of XGBoost or LightGBM, and the labels of a classifier around it."""
        from hivenode.models.loading import lightgbm, xgboost
        from hivenode.models.loading.trees import Labels, Trees

        own = attributes(node)
        inner = own.get("_Booster", node)
        held = attributes(inner)
        buffer = held.get("handle") if library == "xgboost" else held.get("_handle", held.get("handle"))
        if buffer is None:
            raise Unsupported(f"{path_of(node)} without a booster")
        raw = self._raw(buffer)
        within = Nested(self._source, raw, f"the booster in {self._name}")
        best = held.get("best_iteration")
        if library == "xgboost":
            model: Any = xgboost.read(within, best=inner is not node)
        else:
            model = lightgbm.read(within, rounds=best if type(best) is int and best > 0 else None)
        if not path_of(node).endswith("Classifier"):
            return model
        labels = self.value(own.get("_classes", own.get("classes_")))
        classes_ = own.get("n_classes_", own.get("_n_classes"))
        if labels is None and type(classes_) is int and 1 < classes_ <= classes.MOST_CLASSES:
            labels = np.arange(classes_)
        outputs = len(model.base) if isinstance(model, Trees) else len(model.bias)
        if not isinstance(labels, np.ndarray) or labels.shape != (max(2, outputs),):
            raise Unsupported(f"{path_of(node)} without its labels")
        return Labels(model, labels)

    # numpy

    def dtype(self, node: Value) -> np.dtype[Any]:
        """A dtype with its byte order and fields; `numpy_pickles.dtype` has found it sound."""
        made: np.dtype[Any]
        if isinstance(node, Global):
            made = np.dtype(self._named(node))
            return made
        if not isinstance(node, Call) or node.path != "numpy.dtype" or not node.args:
            raise Unsupported("a dtype that is none")
        spelt, state = node.args[0], node.state
        if isinstance(spelt, Global):
            return self.dtype(spelt)
        if spelt[0] in "mM":
            raise Unsupported("dates")
        made = np.dtype(object) if spelt.startswith("O") else np.dtype(spelt)
        if not isinstance(state, tuple):
            return made
        order, base, names, fields, size = state[1:6]
        if names is not None:
            inner = [(self.dtype(fields[name][0]), fields[name][1]) for name in names]
            made = np.dtype(
                {"names": list(names), "formats": [kind for kind, _ in inner], "offsets": [at for _, at in inner],
                 "itemsize": size}
            )  # fmt: skip
            if made.hasobject:
                raise Unsupported("a table of objects")
            return made
        if base is not None:
            kind = self.dtype(base[0])
            if kind.hasobject:
                raise Unsupported("a table of objects")
            return np.dtype((kind, base[1]))
        return made.newbyteorder(order) if order in ("<", ">") else made

    def _scalar(self, node: Call) -> Any:
        kind = self.dtype(node.args[0])
        if kind.hasobject:
            raise Unsupported("a number that is an object")
        raw = self._raw(node.args[1])
        if len(raw) != kind.itemsize:
            self._lies("a number of another size than its type")
        return np.frombuffer(raw, kind)[0]

    def _array(self, node: Call, numbers: Array, depth: int) -> Any:
        if node.path == WRAPPER:
            inner = (node.entries or {}).get("array")
            if not isinstance(inner, Array):
                return self.value(inner, depth)
            kind = self.dtype((mapping(node.state) or {}).get("dtype"))
        elif isinstance(node.state, tuple):
            kind = self.dtype(node.state[-3])
        else:
            kind = self.dtype(node.args[1])
        order: Literal["F", "C"] = "F" if numbers.fortran else "C"
        size = count(numbers.shape)
        self._arrays += size * kind.itemsize
        memory.check(2 * self._arrays, self._budget, f"The arrays of {self._name}", fix="Give it more memory.")
        if kind.hasobject:
            if numbers.items is None or len(numbers.items) != size:
                self._lies("an array of objects of another size than it says")
            made = np.empty(size, object)
            for place, part in enumerate(numbers.items):
                made[place] = self._at(str(place), part, depth)
            return made.reshape(numbers.shape, order=order)
        if numbers.held is not None:
            raw = numbers.held
        elif numbers.offset is not None:
            raw = self._data[numbers.offset : numbers.offset + size * kind.itemsize]
        else:
            raise Unsupported("an array spelt as text; save the model with a higher protocol")
        if len(raw) != size * kind.itemsize:
            self._lies("an array that is cut short")
        flat = np.frombuffer(raw, kind, size).copy()
        return flat.reshape(numbers.shape, order=order)

    def _raw(self, node: Value) -> bytes:
        """Bytes, however the protocol spells them."""
        while isinstance(node, Call) and node.path in ("builtins.bytearray", "builtins.bytes", "_codecs.encode"):
            if node.path == "_codecs.encode" and node.args:
                inner = self.value(node.args[0])
                return inner.encode("latin-1", "replace") if isinstance(inner, str) else b""
            node = node.args[0] if node.args else b""
        made = self.value(node)
        if isinstance(made, str):
            return made.encode()
        if not isinstance(made, bytes):
            raise Unsupported("bytes that are none")
        return made

    def _lies(self, what: str) -> NoReturn:
        place = ".".join(self._place)[:200]
        raise Corrupted(
            f"{self._name} is no sound model: {what}{f', at {place}' if place else ''}.",
            fix="It is damaged or made to mislead; fetch it from where it was made.",
        )
