"""Checkpoints of DeepSpeed: model states per rank, and with ZeRO-3 only the shapes in them."""

from __future__ import annotations

import re
from pathlib import Path

from hivenode.errors import NotFound
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.pickles import Call, Global, Value, interpret, label, mapping
from hivenode.models.identify.formats.torch_pickles import ALLOWED, DTYPES, MOST_AXES, tensors_in
from hivenode.models.identify.naming.state_dicts import recognise
from hivenode.models.identify.readers.torch_checkpoints import listing
from hivenode.models.identify.readers.torch_zip import root_of, storages
from hivenode.models.identify.report import Confidence, Report, Tensor

STATES = re.compile(r"(zero_pp_rank_0_)?mp_rank_\d+_model_states\.pt")
OPTIMIZER = re.compile(r".*optim_states\.pt")
OWN = ALLOWED | {
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", "deepspeed.utils.tensor_fragment.fragment_address",
}  # fmt: skip


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    if any(STATES.fullmatch(name) for name in names):
        return True
    return "latest" in names and any(name.startswith("global_step") for name in names)


def read_directory(path: Path) -> Report:
    outer = Folder(path)
    folder = outer
    if not any(STATES.fullmatch(name) for name in outer.names):
        with outer.open("latest") as source:
            step = source.head(200).decode("utf-8", "replace").strip()
        place = outer.within(step)
        if not place.is_dir():
            raise NotFound(f"{path} lacks {step[:100]}, which `latest` names.", fix="Fetch that folder.")
        folder = Folder(place)
    names = sorted(name for name in folder.names if STATES.fullmatch(name))
    if not names:
        raise NotFound(f"{folder.path} has no model states.", fix="Fetch mp_rank_00_model_states.pt.")
    report = Report(safe=True)
    report.know(Confidence.read, names[0], format="deepspeed_directory", framework="deepspeed")
    tensors: list[Tensor] = []
    for name in names:
        tensors += _states(report, folder, name)
    if len(names) > 1:
        report.hyperparameters["model_parallel_size"] = len(names)
    for name in sorted(folder.names):
        if OPTIMIZER.fullmatch(name):
            _judge(report, folder, name)
    report.hold(tensors, "module, or param_shapes where ZeRO-3 left the tensors elsewhere")
    recognise(report, report.listing)
    report.size_bytes, report.bytes_read = folder.size, folder.bytes_read
    return report


def _states(report: Report, folder: Folder, name: str) -> list[Tensor]:
    with folder.open(name) as source:
        archive = Archive.of(source)
        root = root_of(archive) or ""
        pickle = interpret(archive.read(f"{root}/data.pkl"), name=name)
        judge(report, pickle, OWN, f"{name}: {root}/data.pkl")
        top = mapping(pickle.value) or {}
        shapes = top.get("param_shapes")
        found = listing(list(tensors_in(top.get("module") or {})), storages(archive, root))
        folder.took(source)
    held = [tensor for tensor in found if 0 not in tensor.shape]
    if held or shapes is None:
        return [Tensor(t.name, t.dtype, t.shape, name, t.offset, t.nbytes, t.stride, t.trainable, t.shared_with)
                for t in found]  # fmt: skip
    dtype = top.get("dtype")
    return _declared(shapes, dtype.name if isinstance(dtype, Global) and dtype.name in DTYPES else "float32")


def _declared(shapes: Value, dtype: str) -> list[Tensor]:
    """Parameters by `param_shapes`: a list of groups, each from name to size."""
    made = []
    for group in shapes if isinstance(shapes, list | tuple) else [shapes]:
        for name, size in (mapping(group) or {}).items():
            whole = size.args[0] if isinstance(size, Call) and size.args else size  # torch.Size around a tuple
            if isinstance(whole, tuple | list) and len(whole) <= MOST_AXES and all(type(n) is int for n in whole):
                made.append(Tensor(label(name), dtype, tuple(max(0, part) for part in whole), trainable=True))
    return made


def _judge(report: Report, folder: Folder, name: str) -> None:
    """The optimizer's pickle is loaded with the rest, so it is judged, not counted."""
    with folder.open(name) as source:
        archive = Archive.of(source)
        root = root_of(archive) or ""
        judge(report, interpret(archive.read(f"{root}/data.pkl"), name=name), OWN, f"{name}: {root}/data.pkl")
        folder.took(source)
