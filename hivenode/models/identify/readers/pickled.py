"""Pickles that are no checkpoints of torch: estimators, arrays and tables, plain or by joblib, compressed or not."""

from __future__ import annotations

from collections.abc import Iterator

from hivenode.errors import Corrupted
from hivenode.models.identify.formats.nested import Nested
from hivenode.models.identify.formats.numpy_pickles import Array, array
from hivenode.models.identify.formats.pickles import Blob, Call, Value, attributes, mapping
from hivenode.models.identify.formats.python_pickles import Content, content, is_pickle, opened, unpacks_to_pickle
from hivenode.models.identify.naming.buffers import is_buffer
from hivenode.models.identify.naming.estimator_objects import describe, is_estimator, path_of, short, tensor_of
from hivenode.models.identify.naming.estimator_pickles import ALLOWED, NEVER_GIVEN_ARGUMENTS
from hivenode.models.identify.naming.estimators import ESTIMATORS, PREPARE
from hivenode.models.identify.naming.tables_of_values import is_called, recognise_array, recognise_dict
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor
from hivenode.models.identify.source import LARGEST_READ, Held, Source

MOST_TENSORS = 100_000
DEEPEST = 8
FRAMEWORKS = {
    "sklearn": "scikit-learn", "torch": "pytorch", "xgboost": "xgboost", "lightgbm": "lightgbm",
    "catboost": "catboost", "keras": "keras", "tensorflow": "tensorflow", "transformers": "transformers",
    "numpy": "numpy",
}  # fmt: skip


def detects(head: bytes, source: Source) -> bool:
    return is_pickle(head) or unpacks_to_pickle(head, source)


def read(source: Source) -> Report:
    report = Report(safe=True)
    with opened(source) as (data, kind):
        held = content(report, data, source.name, ALLOWED, NEVER_GIVEN_ARGUMENTS, kind=kind)
        joblib = held.spliced or kind == "zlib"
        evidence = "joblib's arrays in it" if held.spliced else f"compressed ({kind})" if kind else "its opcodes"
        report.know(
            Confidence.read if held.spliced or not kind else Confidence.inferred,
            evidence,
            format="joblib" if joblib else "pickle",
        )
        if kind is not None:
            report.hyperparameters["compression"] = kind
        _describe(report, held, source)
    if kind is not None:  # offsets are those of the unpacked stream
        report.listing = [_elsewhere(tensor) for tensor in report.listing]
    return report


def _elsewhere(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.file, None, None, None, tensor.trainable)


def _describe(report: Report, held: Content, source: Source) -> None:
    value: Value = held.values[0] if len(held.values) == 1 else held.values
    if is_estimator(value):
        _estimator(report, value, held, source)
        return
    found = array(value, source.name)
    if found is not None:
        _single(report, found, source)
        return
    chosen = _best_estimator(report, value)
    if chosen is not None:
        _estimator(report, chosen, held, source)
        return
    entries = mapping(value)
    if entries is not None and _table(report, entries, source.name):
        return
    tensors = list(_arrays(value, source.name))
    if tensors:
        _weights(report, tensors)
    elif isinstance(value, Call) and path_of(value) and entries is None:
        path = path_of(value)
        package = path.partition(".")[0]
        report.know(
            Confidence.read, f"the class {path}", model=short(value), framework=FRAMEWORKS.get(package, package)
        )


def _single(report: Report, found: Array, source: Source) -> None:
    report.know(Confidence.read, "an array", framework="numpy")
    report.hold([tensor_of("array", found)], "the array's shape")
    stem = source.name.split(".")[0]
    recognise_array(report, found, f"{stem} by its file's name" if is_called(stem) else None)


def _table(report: Report, entries: dict[Value, Value], name: str) -> bool:
    """Whether a dict is a Q-table, or holds one under its name."""
    for key, value in entries.items():
        if isinstance(key, str) and is_called(key):
            found = array(value, name)
            inner = mapping(value)
            if found is not None and recognise_array(report, found, key):
                report.hold([tensor_of(key, found)], f"{key}'s shape")
                report.know(Confidence.read, "an array", framework="numpy")
                return True
            if inner is not None and recognise_dict(report, inner):
                return True
    return recognise_dict(report, entries)


def _best_estimator(report: Report, value: Value) -> Value:
    """Of several estimators in a dict or list, the one that predicts; None if there are none."""
    entries = mapping(value)
    pairs = list(entries.items()) if entries is not None else []
    if isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    found = [(str(key), part) for key, part in pairs[:1000] if is_estimator(part)]
    if not found:
        return None
    found.sort(key=lambda pair: ESTIMATORS[path_of(pair[1])].task in (PREPARE, None))
    report.hyperparameters["holds"] = ", ".join(f"{key[:40]}: {short(part)}" for key, part in found[:20])
    return found[0][1]


def _arrays(value: Value, name: str) -> Iterator[Tensor]:
    """Arrays in nested dicts and lists, in order, under dotted names."""
    waiting: list[tuple[str, Value, int]] = [("", value, 0)]
    seen = 0
    while waiting and seen < 2 * MOST_TENSORS:
        label, node, depth = waiting.pop()
        seen += 1
        found = array(node, name)
        if found is not None:
            if found.dtype == "object" and found.items and depth < DEEPEST:
                waiting.extend((f"{label}.{place}", part, depth + 1) for place, part in _backwards(found.items))
            else:
                tensor = tensor_of(label or "array", found)
                yield Tensor(
                    tensor.name, tensor.dtype, tensor.shape, "", tensor.offset, tensor.nbytes, tensor.stride,
                    False if is_buffer(label, tensor.shape) else None,
                )  # fmt: skip
            continue
        if depth >= DEEPEST:
            continue
        entries = mapping(node)
        if entries is not None:
            pairs = [(str(key)[:200], part) for key, part in list(entries.items())[:MOST_TENSORS]]
        elif isinstance(node, (list, tuple)):
            pairs = [(str(place), part) for place, part in enumerate(node[:MOST_TENSORS])]
        else:
            continue
        for key, part in reversed(pairs):
            if isinstance(part, (dict, list, tuple, Call)):
                waiting.append((f"{label}.{key}" if label else key, part, depth + 1))


def _backwards(items: tuple[Value, ...]) -> Iterator[tuple[int, Value]]:
    return iter(list(enumerate(items))[::-1])


def _weights(report: Report, tensors: list[Tensor]) -> None:
    from hivenode.models.identify.naming.state_dicts import recognise

    report.know(Confidence.read, "arrays of numpy", framework="numpy")
    report.hold(tensors, "its arrays")
    matrices = [tensor.shape for tensor in tensors if len(tensor.shape) > 1]
    if matrices and not any("." in tensor.name for tensor in tensors):
        report.know(Confidence.inferred, "arrays of two axes or more", layers=len(matrices))
    recognise(report, tensors)
    filters = [shape for shape in matrices if len(shape) == 4]
    if report.architecture is None and filters:
        first = filters[0]
        report.know(Confidence.guessed, f"filters {list(first)}", architecture="cnn")
        if first[0] == first[1] and first[2] in (1, 3, 4):  # Keras and JAX: height, width, channels, filters
            report.know(
                Confidence.guessed,
                f"filters {list(first)} over pictures",
                family="computer_vision",
                inputs=[Port("input", None, (FREE, FREE, FREE, first[2]))],
            )


# boosters keep their model in the format of their own library


def _estimator(report: Report, value: Value, held: Content, source: Source) -> None:
    worker = describe(report, value, source.name)
    path = path_of(worker)
    if path.startswith("xgboost."):
        booster = worker if path == "xgboost.core.Booster" else attributes(worker).get("_Booster")
        within = _buffer(attributes(booster).get("handle"), held, source)
        if within is not None:
            from hivenode.models.identify.readers.xgboost import describe_buffer

            describe_buffer(report, within)
    elif path.startswith("lightgbm."):
        booster = worker if path == "lightgbm.basic.Booster" else attributes(worker).get("_Booster")
        own = attributes(booster)
        within = _buffer(own.get("_handle", own.get("handle")), held, source)
        if within is not None:
            from hivenode.models.identify.readers.lightgbm import describe_text

            describe_text(report, within, within.size, source.name)
    elif path.startswith("catboost."):
        within = _buffer(attributes(worker).get("__model"), held, source)
        if within is not None:
            from hivenode.models.identify.readers.catboost import describe_model

            describe_model(report, within)


def _buffer(value: Value, held: Content, source: Source) -> Source | None:
    """Bytes or text kept in a pickle, as a file of their own."""
    name = f"the booster in {source.name}"
    while isinstance(value, Call) and value.path in ("builtins.bytearray", "_codecs.encode") and value.args:
        value = value.args[0]
        if isinstance(value, str):
            value = value.encode("latin-1", "replace")
        elif isinstance(value, Blob) and value.text:
            raw = _taken(value, held, name)
            return Nested(source, raw.decode("utf-8", "replace").encode("latin-1", "replace"), name)
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, (bytes, bytearray)):
        return Nested(source, bytes(value), name)
    if isinstance(value, Blob):
        if held.compression is None and not isinstance(held.data, Held):
            return Nested(source, source.part(value.offset, value.length), name)
        return Nested(source, _taken(value, held, name), name)
    return None


def _taken(value: Blob, held: Content, name: str) -> bytes:
    raw = held.data.some(value.offset, min(value.length, LARGEST_READ))
    if len(raw) < value.length:
        raise Corrupted(
            f"{name} is cut short or too long to be read: {value.length} bytes.",
            fix="Save it without compression, or in its library's own format.",
        )
    return raw
