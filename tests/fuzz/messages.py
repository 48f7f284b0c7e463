"""Messages of every kind with extreme values: strategies made from the types themselves, so a new field is fuzzed the
day it is added."""

from __future__ import annotations

from typing import Any

import msgspec
import msgspec.inspect as inspect
from hypothesis import strategies as st

from hivenode.net.messages import Message
from hivenode.spec.events import Body
from hivenode.trust.identity import Identity

KEYS = [Identity.from_seed(bytes([number])) for number in range(4)]
NODES = [key.node_id for key in KEYS]
DIGESTS = ["0" * 64, "f" * 64]
MOST = 2**63 - 1


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type that msgspec can decode, those at its edges often."""
    return _of(inspect.type_info(kind))


def messages() -> st.SearchStrategy[Any]:
    """Any message of a link, each kind as often as any other."""
    return of(Message)


def bodies() -> st.SearchStrategy[Any]:
    """Any body of an event."""
    return of(Body)


def _of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.IntType():
            low = kind.ge if kind.ge is not None else -MOST - 1
            high = kind.le if kind.le is not None else MOST
            return st.sampled_from([low, low + 1, high, high - 1, min(high, 1 << 32)]) | st.integers(low, high)
        case inspect.FloatType():
            return st.floats() | st.sampled_from([0.0, -0.0, 1e308, float("nan"), float("inf")])
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StrType():
            return _text(kind)
        case inspect.BytesType():
            low, high = kind.min_length or 0, min(kind.max_length or 64, 300)
            return st.binary(min_size=low, max_size=max(low, high))
        case inspect.VarTupleType() | inspect.ListType():
            most = min(kind.max_length or 5, 5)
            items = st.lists(_of(kind.item_type), min_size=kind.min_length or 0, max_size=most)
            return items.map(tuple) if isinstance(kind, inspect.VarTupleType) else items
        case inspect.TupleType():
            return st.tuples(*map(_of, kind.item_types))
        case inspect.DictType():
            return st.dictionaries(_of(kind.key_type), _of(kind.value_type), max_size=4)
        case inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case inspect.LiteralType():
            return st.sampled_from(list(kind.values))
        case inspect.UnionType():
            return st.one_of(*map(_of, kind.types))
        case inspect.StructType():
            fields = {
                field.name: _of(field.type) if field.required else _of(field.type) | st.just(_default(field))
                for field in kind.fields
            }
            return st.builds(kind.cls, **fields)
    raise NotImplementedError(f"no strategy for {kind}")


def _text(kind: inspect.StrType) -> st.SearchStrategy[str]:
    if kind.pattern is not None and kind.max_length == 32:
        return st.sampled_from(NODES) | st.from_regex(r"\A[a-z0-9]{32}\Z")
    if kind.pattern is not None and kind.max_length == 64:
        return st.sampled_from(DIGESTS)
    if kind.pattern is not None:
        return st.sampled_from(["j-1", "j-2", "-" * 40])
    if kind.max_length is None:  # where ids of nodes are not checked for their form
        return st.sampled_from(["", *NODES]) | st.text(max_size=40)
    low, high = kind.min_length or 0, kind.max_length
    return st.text(min_size=low, max_size=max(low, min(high, 40)))


def _default(field: inspect.Field) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
