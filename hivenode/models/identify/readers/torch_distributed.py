"""Distributed checkpoints of torch (DCP): `.metadata`, a pickle of plain records, and a file for each writer."""

from __future__ import annotations

from pathlib import Path

from hivenode.errors import Corrupted, Exhausted
from hivenode.models.identify.folder import Folder, missing
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.pickles import Call, Global, Value, attributes, interpret, mapping
from hivenode.models.identify.formats.torch_pickles import ALLOWED, DTYPES
from hivenode.models.identify.naming.buffers import is_buffer
from hivenode.models.identify.naming.state_dicts import recognise
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble, count

RECORDS = "torch.distributed.checkpoint.metadata."
OWN = ALLOWED | {
    f"{RECORDS}{name}"
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    "torch.distributed.checkpoint.filesystem._StorageInfo", "torch.distributed.checkpoint.filesystem._StoragePrefix",
    "torch.distributed.checkpoint._extension.StreamTransformExtension",
}  # fmt: skip
LARGEST_METADATA = 32 << 20
MOST_AXES = 64
MODEL = ("model.", "state_dict.", "module.", "net.", "app.model.")
"""Where training scripts put the model beside the optimizer."""
BESIDE = ("optim", "optimizer", "app.optim", "scheduler", "lr_scheduler", "dataloader", "rng", "train_state")


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return ".metadata" in names and any(name.endswith(".distcp") for name in names)


def read_directory(path: Path) -> Report:
    folder = Folder(path)
    report = Report(safe=True)
    report.know(Confidence.read, ".metadata", format="torch_distributed", framework="pytorch")
    with folder.open(".metadata") as source:
        if source.size > LARGEST_METADATA:
            raise Exhausted(f"{source.name} has {source.size} bytes.", fix="It is damaged; save the checkpoint again.")
        pickle = interpret(source, name=".metadata")
        folder.took(source)
    judge(report, pickle, OWN, ".metadata")
    top = attributes(pickle.value)
    entries = mapping(top.get("state_dict_metadata"))
    if entries is None:
        raise Corrupted(f"{path}/.metadata does not list tensors.", fix="Save the checkpoint again.")
    places = _places(mapping(top.get("storage_data")) or {})
    tensors = []
    for name, entry in entries.items():
        if isinstance(name, str) and not name.startswith(BESIDE):
            tensor = _tensor(name, entry, places)
            if tensor is not None:
                tensors.append(tensor)
    files = sorted({file for file, _ in places.values() if file})
    for file in files:
        folder.within(file)
    gone = [file for file in files if not folder.has(file)]
    report.hold(tensors, ".metadata: state_dict_metadata")
    prefix = next((start for start in MODEL if tensors and all(part.name.startswith(start) for part in tensors)), "")
    recognise(report, [Tensor(part.name[len(prefix) :], part.dtype, part.shape) for part in tensors])
    if gone:
        error = missing(folder, gone)
        report.error = Trouble(error.code, error.sentence, error.fix)
        report.safe = False if report.dangerous else None
    report.size_bytes = folder.size + sum(folder.within(file).stat().st_size for file in files if file not in gone)
    report.bytes_read = folder.bytes_read
    return report


def _places(storage: dict[Value, Value]) -> dict[str, tuple[str, int | None]]:
    """File and offset of each tensor that is in one piece."""
    found: dict[str, tuple[str, int | None]] = {}
    for index, info in storage.items():
        name = attributes(index).get("fqn")
        held = attributes(info)
        file, offset = held.get("relative_path"), held.get("offset")
        if isinstance(name, str) and isinstance(file, str):
            found[name] = (file, offset if isinstance(offset, int) and name not in found else None)
    return found


def _tensor(name: str, entry: Value, places: dict[str, tuple[str, int | None]]) -> Tensor | None:
    held = attributes(entry)
    size = held.get("size")
    if size is None:
        return None  # a record of plain bytes
    if isinstance(size, Call) and size.args:
        size = size.args[0]
    properties = held.get("properties")
    dtype = attributes(properties).get("dtype")
    if dtype is None and isinstance(properties, Call) and isinstance(properties.state, tuple) and properties.state:
        dtype = properties.state[0]
    if not isinstance(dtype, Global) or dtype.name not in DTYPES:
        raise Corrupted(f"{name[:80]} has an unknown dtype.", fix="Save the checkpoint again.")
    if not isinstance(size, tuple | list) or len(size) > MOST_AXES or not all(type(n) is int and n >= 0 for n in size):
        raise Corrupted(f"{name[:80]} has an impossible size.", fix="Save the checkpoint again.")
    shape = tuple(size)
    file = places.get(name, ("", None))[0]
    # what lies at the offset is an archive of torch around the tensor, so the place of its bytes is not given
    trainable = False if is_buffer(name, shape) else None
    return Tensor(name, dtype.name, shape, file, None, count(shape) * DTYPES[dtype.name], None, trainable)
