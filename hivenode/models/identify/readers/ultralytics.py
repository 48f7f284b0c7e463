"""ultralytics' .pt: a torch archive with the whole model pickled. https://docs.ultralytics.com"""

from __future__ import annotations

import re

from hivenode.models.identify.formats.allowed import judge
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.pickles import Pickle, Value, attributes, interpret, mapping
from hivenode.models.identify.formats.torch_pickles import is_module, module_tensors
from hivenode.models.identify.naming.yolo import ALLOWED, TASKS, size, version
from hivenode.models.identify.readers.torch_checkpoints import describe
from hivenode.models.identify.readers.torch_zip import root_of, storages
from hivenode.models.identify.report import FREE, Confidence, Port, Report
from hivenode.models.identify.source import Source

MARK = b"ultralytics.nn.tasks"
NEAR = 16 << 10
"""Where the class of the model stands in data.pkl: after the few entries of the checkpoint before it."""


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    root = None if archive is None else root_of(archive)
    return root is not None and archive is not None and MARK in archive.stored(f"{root}/data.pkl").some(0, NEAR)


def read(source: Source) -> Report:
    archive = Archive.of(source)
    root = root_of(archive) or ""
    name = f"{root}/data.pkl"
    report = Report(safe=True)
    report.know(Confidence.read, name, format="ultralytics_pt", framework="ultralytics")
    pickle = interpret(archive.read(name), name=f"{name} in {source.name}")
    judge(report, pickle, ALLOWED, name)
    describe(report, pickle.value, storages(archive, root))
    report.know(Confidence.read, name, framework="ultralytics")
    model = _model(pickle)
    if model is not None:
        _describe(report, model)
    top = mapping(pickle.value) or {}
    for key in ("version", "date"):
        if isinstance(top.get(key), str):
            report.hyperparameters[f"ultralytics_{key}"] = top[key][:60]
    return report


def _model(pickle: Pickle) -> Value:
    """The module a checkpoint is about; while it trains that is `ema`."""
    top = mapping(pickle.value)
    held = [top.get("model"), top.get("ema")] if top is not None else [pickle.value]
    return next((part for part in held if is_module(part)), None)


def _describe(report: Report, model: Value) -> None:
    _, network = module_tensors(model)
    kind = network.classes[""].rpartition(".")[2]
    task, ending = TASKS.get(kind, (None, ""))
    report.know(Confidence.read, f"the class {kind}", family="computer_vision", task=task)
    blocks = {path.rpartition(".")[2] for path in network.classes.values()}
    own = attributes(model)
    layout = mapping(own.get("yaml")) or {}
    known = version(blocks)
    letter = _letter(layout, known or "")
    if known is not None:
        report.know(
            Confidence.inferred, f"its blocks {', '.join(sorted(blocks & _TELLING))} and multiples",
            model=f"{known.removesuffix('u')}{letter}{'u' if known.endswith('u') else ''}{ending}",
        )  # fmt: skip
    file = layout.get("yaml_file")
    if isinstance(file, str) and not letter and known and file.startswith(known.removesuffix("u")):
        report.know(Confidence.read, "yaml_file in its layout", model=file.removesuffix(".yaml")[:60])
    if isinstance(file, str) and len(file) < 100:
        report.hyperparameters["yaml_file"] = file
    architecture = "transformer" if known == "rtdetr" else "cnn"
    report.know(Confidence.inferred, f"the class {kind}", architecture=architecture)
    classes, channels = layout.get("nc"), layout.get("channels", layout.get("ch", 3))
    if type(classes) is int:
        report.hyperparameters["classes"] = classes
    if type(channels) is int and 0 < channels < 1 << 16:
        report.know(Confidence.read, "its channels", inputs=[Port("images", "float32", (FREE, channels, FREE, FREE))])


_TELLING = frozenset({"C2f", "C3k2", "A2C2f", "v10Detect", "SCDown", "RepNCSPELAN4", "ELAN1", "C3", "RTDETRDecoder"})


def _letter(layout: dict[Value, Value], known: str) -> str:
    """n, s, m, l or x: by the multiples in the layout, else as the layout states it."""
    depth, width = layout.get("depth_multiple"), layout.get("width_multiple")
    scale = layout.get("scale")
    scales = mapping(layout.get("scales")) or {}
    if isinstance(scale, str) and isinstance(scales.get(scale), list | tuple) and len(scales[scale]) >= 2:
        depth, width = scales[scale][:2]
    if isinstance(depth, int | float) and isinstance(width, int | float):
        found = size(known, float(depth), float(width))
        if found:
            return found
    return scale if isinstance(scale, str) and re.fullmatch(r"[a-z]", scale) else ""
