"""The weights of a directory: one file or many with an index, of any of the usual kinds. Not a reader itself."""

from __future__ import annotations

import msgspec

from hivenode.errors import Corrupted, HiveError
from hivenode.models.identify.folder import Folder, missing
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble

SINGLE = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors", "pytorch_model.bin",
    "diffusion_pytorch_model.bin", "adapter_model.bin", "flax_model.msgpack", "diffusion_flax_model.msgpack",
    "tf_model.h5", "model.onnx", "pytorch_model.pt", "consolidated.safetensors", "consolidated.00.pth",
    "model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors", "open_clip_pytorch_model.bin", "model.pt",
)  # fmt: skip
"""In the order of choice: of the same weights in several forms, the safest is read and the others are judged."""
INDEX = (".safetensors.index.json", ".bin.index.json", ".msgpack.index.json", ".h5.index.json")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
MOST_SHARDS = 2_000


def take(report: Report, folder: Folder) -> str | None:
    """Read the weights of a folder into the report: tensors, parameters, findings. Returns the file or index read.

    Missing shards become the report's error; what is there is listed all the same.

    Raises:
        HiveError: the weights are damaged, or an index leads out of the folder.
    """
    single = next((name for name in SINGLE if name in folder), None)
    index = next((name for ending in INDEX for name in sorted(folder.names) if name.endswith(ending)), None)
    if single is not None and (index is None or single.endswith(".safetensors") or not index.startswith("model.s")):
        inner = _file(report, folder, single)
        _carry(report, inner, _placed(inner.listing, single), f"{single}: its header")
        _others(report, folder, {single})
        return single
    if index is not None:
        take_index(report, folder, index)
        return index
    loose = sorted(name for name in folder.names if name.endswith((".safetensors", ".gguf", ".onnx", *PICKLED)))
    loose = [name for name in loose if not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]
    if not loose:
        return None
    inner = _file(report, folder, loose[0])
    _carry(report, inner, _placed(inner.listing, loose[0]), f"{loose[0]}: its header")
    _others(report, folder, {loose[0]})
    return loose[0]


def _file(report: Report, folder: Folder, name: str) -> Report:
    """One file by its own reader; its findings become the report's."""
    from hivenode.models.identify import read_open

    with folder.open(name) as source:
        inner = read_open(source)
        folder.took(source)
    report.adopt(inner, name)
    return inner


def _placed(tensors: list[Tensor], name: str) -> list[Tensor]:
    """The tensors of one file as those of the directory around it."""
    return [msgspec.structs.replace(tensor, file=tensor.file or name) for tensor in tensors]


def _carry(report: Report, inner: Report, tensors: list[Tensor], evidence: str) -> None:
    """What a weights file knows better than the directory around it."""
    if tensors:
        report.hold(tensors, evidence)
    elif inner.parameters is not None:
        report.know(Confidence.read, evidence, parameters=inner.parameters, tensors=inner.tensors)
        report.dtypes = inner.dtypes
    for name in ("family", "task", "architecture", "model", "layers", "inputs", "outputs", "framework"):
        if name not in report.confidence and name in inner.confidence:
            how = inner.confidence[name]
            report.know(how.how, how.evidence, **{name: getattr(inner, name)})
    for size, value in inner.hyperparameters.items():
        report.hyperparameters.setdefault(size, value)


def _others(report: Report, folder: Folder, read: set[str]) -> None:
    """Judge pickles that lie beside the weights that were read: some loaders prefer them."""
    for name in sorted(folder.names - read):
        if not name.endswith(PICKLED) or not folder.within(name).is_file():
            continue
        try:
            _file(report, folder, name)
        except HiveError as error:
            report.find(
                name, str(folder.path.name), f"a pickle beside the weights that cannot be read: {error.sentence}"
            )


def shards(folder: Folder, index: str) -> dict[str, tuple[str, ...]]:
    """The files that an index names, all of which are there, and the tensors it says are in each.

    Raises:
        Corrupted: it is none, or a name leads out of the folder.
        NotFound: a file is not there.
    """
    named = _named(folder, index)
    if gone := sorted(file for file in named if not folder.has(file)):
        raise missing(folder, gone)
    return {file: tuple(tensors) for file, tensors in named.items()}


def _named(folder: Folder, index: str) -> dict[str, list[str]]:
    """Raises Corrupted: an index names no files, too many, or one outside the folder."""
    named: dict[str, list[str]] = {}
    for tensor, file in jsons.inner(folder.json(index), "weight_map").items():
        if not isinstance(file, str):
            raise Corrupted(f"{index} does not say where {tensor[:80]} is.", fix="Fetch it from where it was made.")
        if "/" in file:
            raise Corrupted(
                f"{index} refers to {file[:100]!r}, which is not in the directory.",
                fix="It is made to mislead; fetch it from where it was made.",
            )
        folder.within(file)
        named.setdefault(file, []).append(tensor)
    if not named or len(named) > MOST_SHARDS:
        raise Corrupted(f"{index} names {len(named)} files.", fix="Fetch it from where it was made.")
    return named


def take_index(report: Report, folder: Folder, index: str) -> None:
    """All shards of an index, each tensor where the index says it is.

    Raises:
        HiveError: a shard is damaged or lacks a tensor, or a name leads out of the folder.
    """
    named = _named(folder, index)
    gone = sorted(file for file in named if not folder.has(file))
    tensors: list[Tensor] = []
    for file in sorted(named):
        if file in gone:
            continue
        inner = _file(report, folder, file)
        held = {tensor.name for tensor in inner.listing}
        lost = [name for name in named[file] if name not in held]
        if lost and inner.listing:
            raise Corrupted(
                f"{file} lacks {lost[0][:100]}, which {index} says is in it.",
                fix="Fetch the shard and the index again.",
            )
        tensors.extend(msgspec.structs.replace(tensor, file=file) for tensor in inner.listing)
    if gone:
        error = missing(folder, gone)
        report.error = Trouble(error.code, error.sentence, error.fix)
    if tensors:
        from hivenode.models.identify.naming.state_dicts import recognise

        report.hold(tensors, f"{index} and its shards")
        if gone:
            del report.confidence["parameters"]
            report.parameters = None
        recognise(report, report.listing)
    _others(report, folder, set(named))
