"""What torch puts into a pickle: tensors as views of storages kept elsewhere, state dicts, whole modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import mul

import msgspec

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.allowed import NUMPY, PLAIN
from hivenode.models.identify.formats.pickles import Call, Global, PersistentId, Value, attributes, mapping
from hivenode.models.identify.formats.torch_layers import LAYERS
from hivenode.models.identify.report import check_name

DTYPES = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "complex32": 4, "uint16": 2, "uint32": 4, "uint64": 8, "qint8": 1,
    "quint8": 1, "qint32": 4, "quint4x2": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
"""torch's name without `torch.` -> bytes an element."""
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "UntypedStorage": "uint8",
}  # fmt: skip
_REBUILD = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
    "_rebuild_parameter_with_state", "_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
)  # fmt: skip
_FLAT = frozenset(f"torch._utils.{name}" for name in _REBUILD[:3])
ALLOWED: frozenset[str] = frozenset(
    PLAIN
    | NUMPY
    | LAYERS
    | {f"torch._utils.{name}" for name in _REBUILD}
    | {f"torch.{name}" for name in (*DTYPES, "half", "float", "double", "long", "int", "short")}
    | {f"torch.{device}{name}" for device in ("", "cuda.") for name in STORAGES}
    | {"torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch.storage._UntypedStorage"}
    | {f"torch.{name}" for name in ("Size", "Tensor", "device", "strided", "sparse_coo", "contiguous_format")}
    | {"torch.per_tensor_affine", "torch.per_channel_affine", "torch.serialization._get_layout"}
    | {"torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch._tensor._rebuild_from_type_v2"}
    | {"torch._C._nn.gelu", "torch.nn.functional.relu", "torch.nn.functional.gelu"}
)
DEEPEST = 64
_END = -1
"""Depth of the mark that a container has been looked through."""
_INT = frozenset({int})
_HUGE = 1 << 63
_TENSORS = frozenset(f"torch._utils.{name}" for name in _REBUILD) | {
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
}
MOST_TENSORS = 500_000
MOST_AXES = 64


class Storage(msgspec.Struct, frozen=True):
    """What a tensor is a view of: `key` names it in the file; `elements` of `dtype`, or bytes where untyped."""

    key: str
    dtype: str
    elements: int
    untyped: bool


class View(msgspec.Struct, frozen=True):
    """A tensor: `offset` and `stride` in elements. `storage` is None for one without bytes (the meta device)."""

    dtype: str
    shape: tuple[int, ...]
    storage: Storage | None
    offset: int
    stride: tuple[int, ...]
    trainable: bool | None

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype]


def is_tensor(value: Value) -> bool:
    """Whether a node claims to be a tensor; `view` finds out whether it can be one."""
    if isinstance(value, PersistentId):
        value = value.value
    return isinstance(value, Call) and value.path in _TENSORS


def view(value: Value) -> View | None:
    """The tensor that a node of a pickle stands for; None if it stands for something else.

    Raises:
        Corrupted: it stands for a tensor that cannot be.
    """
    for _ in range(DEEPEST):
        if isinstance(value, PersistentId):  # how the oldest format refers to tensors
            value = value.value
        if not isinstance(value, Call):
            return None
        path = value.path
        if path in _FLAT:
            return _flat(value, path)
        if path in {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}:
            inner = view(value.args[0]) if value.args and not _same(value.args[0], value) else None
            if inner is None:
                return None
            grows = value.args[1] if len(value.args) > 1 and isinstance(value.args[1], bool) else None
            return View(inner.dtype, inner.shape, inner.storage, inner.offset, inner.stride, grows)
        if path == "torch._utils._rebuild_qtensor":
            return _flat(value, "torch._utils._rebuild_tensor")
        if path == "torch._utils._rebuild_meta_tensor_no_storage" and len(value.args) >= 3:
            dtype, shape, stride = value.args[:3]
            return View(_dtype(dtype), _whole(shape), None, 0, _whole(stride), None)
        if path == "torch._tensor._rebuild_from_type_v2" and len(value.args) >= 3:
            function, args = value.args[0], value.args[2]
            value = Call(function, args if isinstance(args, tuple) else ())
            continue
        if path == "torch._utils._rebuild_sparse_tensor" and len(value.args) == 2:
            parts = value.args[1]
            value = parts[1] if isinstance(parts, tuple) and len(parts) > 1 else None
            continue
        if path == "torch.nn.parameter.Parameter" and value.args:
            value = value.args[0]
            continue
        return None
    return None


def _same(one: Value, other: Value) -> bool:
    return one is other or (isinstance(one, Call) and one.path.startswith("torch._utils._rebuild_parameter"))


def _flat(value: Call, path: str) -> View:
    if len(value.args) < 4:
        raise _broken("a tensor lacks its storage, offset, size or stride")
    held, offset, shape, stride = value.args[:4]
    storage = _storage(held)
    grows = value.args[4] if len(value.args) > 4 and isinstance(value.args[4], bool) else None
    dtype = storage.dtype
    if path.endswith("_v3") and len(value.args) > 6:
        dtype = _dtype(value.args[6])
    made = View(dtype, _whole(shape), storage, offset if isinstance(offset, int) else -1, _whole(stride), grows)
    _check(made, storage)
    return made


def _check(made: View, storage: Storage) -> None:
    """That the view lies inside its storage."""
    if made.offset < 0 or len(made.shape) != len(made.stride):
        raise _broken("a tensor's offset, size and stride do not fit together")
    if 0 in made.shape:
        return
    last = made.offset - sum(made.stride) + sum(map(mul, made.shape, made.stride))
    held = storage.elements // (made.itemsize if storage.untyped else 1)
    if last >= held:
        raise _broken(f"a tensor reaches to element {last} of a storage of {storage.elements}")


def _storage(value: Value) -> Storage:
    """The storage behind a persistent id: ('storage', class, key, location, elements[, view])."""
    parts = value.value if isinstance(value, PersistentId) else None
    if not isinstance(parts, tuple) or len(parts) < 5 or parts[0] != "storage" or not isinstance(parts[1], Global):
        raise _broken("a tensor's storage is not where torch puts it")
    kind, key, elements = parts[1].name, parts[2], parts[4]
    dtype = STORAGES.get(kind)
    if dtype is None or not isinstance(elements, int) or elements < 0 or not isinstance(key, str | int):
        raise _broken(f"a tensor's storage is a {kind}, of no size or key")
    return Storage(str(key), dtype, elements, kind == "UntypedStorage")


def _dtype(value: Value) -> str:
    name = value.name if isinstance(value, Global) and value.module == "torch" else ""
    if name not in DTYPES:
        raise _broken("a tensor has an unknown dtype")
    return name


def _whole(value: Value) -> tuple[int, ...]:
    """A size or stride: a tuple of whole numbers, or torch.Size around one."""
    if isinstance(value, Call) and value.path == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or len(value) > MOST_AXES or not _INT.issuperset(map(type, value)):
        raise _broken("a tensor has an impossible size")
    if value and (min(value) < 0 or max(value) >= _HUGE):
        raise _broken("a tensor has an impossible size")
    return tuple(value)


def _broken(what: str) -> Corrupted:
    return Corrupted(f"The pickle is damaged: {what}.", fix="Fetch the file again from where it was made.")


# what holds the tensors


class Found(msgspec.Struct, frozen=True):
    """A tensor under a dotted name. `buffer`: True or False where a module says so, None in a plain state dict."""

    name: str
    view: View
    buffer: bool | None


class Network(msgspec.Struct, frozen=True):
    """A pickled module: its class, and each module inside by dotted name ("" is the whole)."""

    classes: dict[str, str]


def is_module(value: Value) -> bool:
    """Whether a node is a torch module: an object whose state has the three tables of `nn.Module`."""
    return isinstance(value, Call) and {"_parameters", "_modules"} <= attributes(value).keys()


def module_tensors(value: Value) -> tuple[list[Found], Network]:
    """Parameters and buffers of a pickled module, and the classes it is made of.

    Raises:
        Corrupted: nested too deeply, or holding itself.
    """
    found: list[Found] = []
    classes: dict[str, str] = {}
    waiting: list[tuple[str, Value, int]] = [("", value, 0)]
    while waiting:
        prefix, node, depth = waiting.pop()
        check_name(prefix)
        if depth > DEEPEST or len(classes) > MOST_TENSORS:
            raise _broken("its modules hold each other without end")
        classes[prefix.rstrip(".")] = node.function.path if isinstance(node.function, Global) else ""
        if node.path == "copyreg._reconstructor" and node.args and isinstance(node.args[0], Global):
            classes[prefix.rstrip(".")] = node.args[0].path
        own = attributes(node)
        for table, buffer in (("_parameters", False), ("_buffers", True)):
            for name, held in (mapping(own.get(table)) or {}).items():
                tensor = view(held)
                if tensor is not None:
                    found.append(Found(f"{prefix}{name}", tensor, buffer))
        inner = list((mapping(own.get("_modules")) or {}).items())
        waiting.extend(
            (f"{prefix}{name}.", part, depth + 1) for name, part in reversed(inner) if isinstance(part, Call)
        )
    return found, Network(classes)


def tensors_in(value: Value, *, skip: Callable[[str], bool] = lambda _: False) -> Iterator[Found]:
    """Every tensor in nested dicts, lists and tuples, in the order of the file, under dotted names.

    Args:
        skip: told a dotted name; True leaves out what is below.

    Raises:
        Corrupted: nested too deeply, holding itself, or more tensors than a model has.
    """
    waiting: list[tuple[str, Value, int]] = [("", value, 0)]
    open_, done = set[int](), set[int]()  # containers begun and ended: what is shared is looked at once
    seen = 0
    while waiting:
        name, node, depth = waiting.pop()
        if depth == _END:
            open_.discard(id(node))
            done.add(id(node))
            continue
        check_name(name)
        seen += 1
        if id(node) in open_ or depth > DEEPEST or seen > MOST_TENSORS:
            raise _broken("it holds itself, or nests without end")
        tensor = view(node)
        if tensor is not None:
            yield Found(name, tensor, None)
            continue
        if id(node) in done:
            continue
        open_.add(id(node))
        waiting.append(("", node, _END))
        if is_module(node):
            prefix = f"{name}." if name else ""
            yield from (Found(prefix + part.name, part.view, part.buffer) for part in module_tensors(node)[0])
            continue
        entries = mapping(node)
        pairs: list[tuple[Value, Value]] = []
        if entries is not None:
            pairs = list(entries.items())
        elif isinstance(node, list | tuple):
            pairs = list(enumerate(node))
        for key, part in reversed(pairs):
            if not isinstance(part, (dict, list, tuple, Call, PersistentId)) or part == ():
                continue
            below = f"{name}.{key}" if name else str(key)
            if not skip(below):
                waiting.append((below, part, depth + 1))
