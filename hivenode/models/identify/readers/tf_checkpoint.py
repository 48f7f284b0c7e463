"""TensorFlow checkpoints: `PREFIX.index`, a LevelDB table of tensors, beside `PREFIX.data-00000-of-00001`, ..."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hivenode.errors import Corrupted, HiveError, NotFound
from hivenode.models.identify.formats.leveldb import FOOTER, MAGIC
from hivenode.models.identify.formats.tensorflow import LARGEST_OBJECT_GRAPH, Stored, checkpoint, object_names
from hivenode.models.identify.formats.windows import Paged
from hivenode.models.identify.naming.graphs import of_weights, recognise
from hivenode.models.identify.report import Confidence, Report, Tensor
from hivenode.models.identify.source import Source

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NOT_MODEL = re.compile(
    r"\.OPTIMIZER_SLOT|(^|/)_?optimizers?(_\w+)?(/|$)|(^|/)keras_api/metrics/|"
    r"(^|/)(save_counter|global_step|iterations?|iter)$|"
    r"(^|/)(beta[12]_power|beta_[12]|learning_rate|decay|momentum|rho)(_\d+)?$|"
    r"(^|/)(adam|adamw|sgd|rmsprop|adagrad|nadam)(_\d+)?/|"
    r"/(Adam|AdamW|Momentum|RMSProp|Adagrad|Adadelta|Ftrl|LAMB|adam_[mv]|slot_v)(_\d+)?$|"
    r"^_CHECKPOINTABLE_OBJECT_GRAPH$",
    re.IGNORECASE,
)
_MODEL_IN_OPTIMIZER = re.compile(r"_?optimizer/_(trainable|model)_variables/\d+/")
"""Keras 3's optimizers list the model's variables, and checkpoints name an object by the shortest way to it."""
_LISTED = re.compile(r"variables/\d+/")
_LISTED_AGAIN = re.compile(r"_?(all|trainable|non_trainable)_variables/\d+/")
"""Keras 3's export keeps each variable twice: once as the archive's own, once in a list of the model's."""
_AVERAGE = "/ExponentialMovingAverage"
_STATISTICS = re.compile(r"(^|/)(moving_mean|moving_variance|seed_generator_state|rng_state|vector_u)(_\d+)?$")
MOST_SHARDS = 4096


def detects(head: bytes, source: Source) -> bool:
    return source.size >= FOOTER and source.tail(len(MAGIC)) == MAGIC


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return _prefix(names) is not None


def read(source: Source) -> Report:
    """A checkpoint by its index; the data files are looked for beside it."""
    report = Report(safe=True)
    report.know(Confidence.read, "a LevelDB table of tensor entries", format="tf_checkpoint", framework="tensorflow")
    tensors, size = variables(source, {})
    report.hold(tensors, "index")
    report.size_bytes = size
    recognise(report, of_weights(tensors))
    return report


def read_directory(path: Path) -> Report:
    """The checkpoint in a directory; of several, the latest by its number.

    Raises:
        NotFound: there is none.
    """
    prefix = _prefix(frozenset(entry.name for entry in path.iterdir()))
    if prefix is None:
        raise NotFound(f"{path} holds no checkpoint.", fix="Give the directory with the .index file.")
    with Source(path / f"{prefix}.index") as source:
        report = read(source)
        report.bytes_read = source.bytes_read
    return report


def _prefix(names: frozenset[str]) -> str | None:
    """The checkpoint to read: one with data, the highest number last."""
    found = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    whole = [prefix for prefix in found if any(name.startswith(f"{prefix}.data-") for name in names)]

    def order(prefix: str) -> tuple[int, str]:
        number = re.search(r"(\d{1,18})$", prefix)
        return (int(number.group(1)) if number else -1, prefix)

    return max(whole, key=order, default=None)


def variables(index: Source, trainable: Mapping[str, bool]) -> tuple[list[Tensor], int]:
    """The model's own tensors in a checkpoint, and the bytes of all its files.

    Args:
        trainable: by a variable's name, as a SavedModel states it; those named there and frozen stay parameters.

    Raises:
        NotFound: a data file is missing.
        Corrupted: a data file ends before a tensor does.
    """
    shards, stored = checkpoint(Paged(index.part(0, index.size), index.size, index.name))
    if not 0 < shards <= MOST_SHARDS:
        raise Corrupted(f"{index.name} claims {shards} data files.", fix="Fetch the checkpoint again.")
    prefix = index.path.name.removesuffix(".index")
    files = [f"{prefix}.data-{number:05d}-of-{shards:05d}" for number in range(shards)]
    sizes = [_size(index.path.parent / name, index) for name in files]
    for entry in stored:
        if entry.offset + entry.size > sizes[entry.shard]:
            raise Corrupted(
                f"{files[entry.shard]} is cut short: {entry.key[:80]} ends at byte {entry.offset + entry.size}, "
                f"it has {sizes[entry.shard]}.",
                fix="Fetch the file again.",
            )
    names, slots = _names(index, stored, files)
    plain = {names.get(entry.key) or entry.key for entry in stored}
    listed = {names.get(entry.key) for entry in stored if _LISTED.match(entry.key)}
    tensors: list[Tensor] = []
    for entry in stored:
        own = entry.key.removesuffix(_VALUE)
        name = names.get(entry.key) or own
        if entry.key in slots or entry.dtype in ("string", "variant", "resource", "unknown"):
            continue
        by_key = _NOT_MODEL.search(own) and not _MODEL_IN_OPTIMIZER.match(entry.key)
        if by_key or _NOT_MODEL.search(name):
            continue
        if name.endswith(_AVERAGE) and name.removesuffix(_AVERAGE) in plain:
            continue
        known = trainable.get(name)
        state = known is False and entry.dtype.startswith(("int", "uint", "bool"))
        learnt = False if state or _STATISTICS.search(name) or _STATISTICS.search(own) else known or None
        again = name if name in listed and _LISTED_AGAIN.match(entry.key) else None
        tensors.append(
            Tensor(name, entry.dtype, entry.shape, files[entry.shard], entry.offset, entry.size, None, learnt, again)
        )
    return tensors, index.size + sum(sizes)


def _size(path: Path, index: Source) -> int:
    try:
        with Source(path) as data:
            return data.size
    except NotFound:
        raise NotFound(
            f"{path.name} is missing beside {index.name}.", fix="Fetch all files of the checkpoint."
        ) from None


def _names(index: Source, stored: list[Stored], files: list[str]) -> tuple[dict[str, str], set[str]]:
    """Names of variables and keys of slots, from the object graph that newer checkpoints keep as a tensor of text.

    Layout of a tensor of strings: their lengths as varints, four bytes of checksum over them, the strings.
    """
    entry = next((entry for entry in stored if entry.key == OBJECT_GRAPH), None)
    if entry is None or entry.size > LARGEST_OBJECT_GRAPH or not entry.size:
        return {}, set()
    with Source(index.path.parent / files[entry.shard]) as data:
        raw = data.read(entry.offset, entry.size)
        index.bytes_read += data.bytes_read
    at = 0
    while at < len(raw) and raw[at] > 0x7F:
        at += 1
    try:
        return object_names(raw[at + 5 :], f"the object graph of {index.name}")
    except HiveError as error:
        raise Corrupted(error.sentence, fix=error.fix) from None
