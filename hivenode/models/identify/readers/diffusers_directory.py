"""Pipelines as diffusers writes them: model_index.json names the parts, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hivenode.errors import NotFound
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.naming.architectures import by_pipeline, know_class
from hivenode.models.identify.readers.transformers_directory import remote_code
from hivenode.models.identify.readers.weight_files import take
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble

LIBRARIES = frozenset({"diffusers", "transformers", "stable_diffusion", "onnxruntime"})
WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "FeatureExtractor", "ImageProcessor", "Processor")
MOST_PARTS = 50


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return "model_index.json" in names


def read_directory(path: Path) -> Report:
    folder = Folder(path)
    report = Report(safe=True)
    report.know(Confidence.read, "model_index.json", format="diffusers_directory", framework="diffusers")
    index = folder.json("model_index.json")
    name = index.get("_class_name")
    if isinstance(name, list) and len(name) == 2:
        report.find(f"_class_name: {name}", "model_index.json", "a pipeline of the author's own, run as remote code")
        name = name[1]
    if isinstance(name, str):
        known = by_pipeline(name)
        report.know(Confidence.read, "model_index.json: _class_name", model=name)
        report.know(
            Confidence.inferred, f"the class {name}", family=known.family, task=known.task,
            architecture=known.architecture,
        )  # fmt: skip
    tensors: list[Tensor] = []
    lacking: list[str] = []
    for part, entry in list(index.items())[:MOST_PARTS]:
        if part.startswith("_") or not isinstance(entry, list) or list(map(type, entry)) != [str, str]:
            continue
        library, kind = entry
        if library not in LIBRARIES:
            report.find(f"{part}: {library}.{kind}", "model_index.json", "a module that would be imported by name")
        if not kind.endswith(WEIGHTLESS):
            below = _part(report, folder, part)
            tensors += below or []
            if below is None:
                lacking.append(part)
    remote_code(report, folder)
    if tensors:
        report.hold(tensors, "the headers of its parts")
    if lacking:
        error = NotFound(f"{path} lacks the weights of {', '.join(lacking)}.", fix="Fetch the missing folders.")
        report.error = Trouble(error.code, error.sentence, error.fix)
        report.safe = False if report.dangerous else None
        report.parameters = None
        report.confidence.pop("parameters", None)
    report.size_bytes, report.bytes_read = folder.size, folder.bytes_read
    return report


def _part(report: Report, folder: Folder, part: str) -> list[Tensor] | None:
    """The tensors of one part, under `part/`; None if its weights are not there."""
    place = folder.within(part)
    if not place.is_dir():
        return None
    inside = Folder(place)
    inner = Report()
    try:
        weights = take(inner, inside)
        remote_code(inner, inside)
    finally:
        folder.bytes_read += inside.bytes_read
        folder.size += inside.size
    report.adopt(inner, part, "/")
    if weights is None or inner.error is not None:
        return None
    config = inside.json("config.json") if "config.json" in inside else {}
    kind = jsons.text(config, "_class_name") or (jsons.texts(config, "architectures") or [""])[0]
    if kind:
        report.hyperparameters[f"{part}.class"] = kind
    report.hyperparameters[f"{part}.parameters"] = inner.parameters or 0
    return [
        msgspec.structs.replace(
            tensor,
            name=f"{part}.{tensor.name}",
            file=f"{part}/{tensor.file or weights}",
            shared_with=f"{part}.{tensor.shared_with}" if tensor.shared_with else None,
        )
        for tensor in inner.listing
    ]


def read_part(path: Path) -> Report:
    """A folder with one model of diffusers: a U-Net, an autoencoder, a ControlNet."""
    folder = Folder(path)
    report = Report(safe=True)
    report.know(Confidence.read, "config.json: _class_name", format="diffusers_directory", framework="diffusers")
    config = folder.json("config.json")
    kind = jsons.text(config, "_class_name") or ""
    report.know(Confidence.read, "config.json: _class_name", model=kind)
    know_class(report, kind)
    if take(report, folder) is None:
        error = NotFound(f"{path} has a config.json and no weights.", fix="Fetch diffusion_pytorch_model.safetensors.")
        report.error = Trouble(error.code, error.sentence, error.fix)
        report.safe = None
    remote_code(report, folder)
    report.size_bytes, report.bytes_read = folder.size, folder.bytes_read
    return report
