"""Keras: `.keras` archives, `.h5` files with a configuration, and weights alone."""

from __future__ import annotations

import re

from hivenode.errors import HiveError
from hivenode.models.identify.formats import hdf5, jsons
from hivenode.models.identify.formats.archives import ZIP_MAGIC, Archive
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.formats.windows import Paged
from hivenode.models.identify.naming import keras_layers
from hivenode.models.identify.naming.graphs import recognise
from hivenode.models.identify.naming.keras_layers import Layer
from hivenode.models.identify.report import Confidence, Report, Tensor, Trouble, count
from hivenode.models.identify.source import Part, Readable, Source

_WEIGHTS = re.compile(r"(model|model_\d{5})\.weights\.h5")
_KNOWN_ENTRIES = re.compile(
    r"config\.json|metadata\.json|model\.weights\.json|(model|model_\d{5})\.weights\.h5|assets/.*"
)
_OPTIMIZER = re.compile(r"^(optimizer|optimizer_weights|_?loss_tracker|metrics?|compile_metrics)(/|$)")
_STATISTICS = re.compile(r"(^|/)(moving_mean|moving_variance|seed_generator_state|vector_u|count|mean|variance)(:0)?$")
_NUMBERED = re.compile(r"_\d+$")


def detects(head: bytes, source: Source) -> bool:
    if head.startswith(ZIP_MAGIC):
        archive = Archive.sound(head, source)
        return archive is not None and "config.json" in archive and (
            "metadata.json" in archive or any(_WEIGHTS.fullmatch(name) for name in archive.entries)
        )  # fmt: skip
    return head.startswith(hdf5.MAGIC) or any(head[base : base + 8] == hdf5.MAGIC for base in (512, 1024, 2048))


def read(source: Source) -> Report:
    """Layers from the configuration, counts from the weights' own headers.

    Raises:
        Corrupted, Exhausted: see `formats.hdf5`, `formats.archives` and `formats.jsons`.
    """
    if source.head(4) == ZIP_MAGIC:
        return _read_archive(source)
    return _read_hdf5(source)


def configuration(source: Source) -> Json:
    """The model's configuration alone; None where a file has none.

    Raises:
        Corrupted, Exhausted: as `read`.
    """
    if source.head(4) == ZIP_MAGIC:
        return jsons.parse(Archive.of(source).read("config.json"), f"config.json in {source.name}")
    root = hdf5.read(Paged(source.part(0, source.size), source.size, source.name))
    text = _joined(root, "model_config")
    return None if text is None else jsons.parse(text.encode(), f"model_config in {source.name}")


def _read_archive(source: Source) -> Report:
    report = Report(safe=True)
    archive = Archive.of(source)
    report.know(Confidence.read, "config.json and weights in an archive", format="keras", framework="keras")
    for name in archive.entries:
        if not _KNOWN_ENTRIES.fullmatch(name) and not name.endswith("/"):
            report.find(name, f"entry {name}", "Keras puts no such file into an archive.")
        elif ".." in name.split("/") or name.startswith("/"):
            report.find(name, f"entry {name}", "The entry would be unpacked outside its directory.")
    config = jsons.parse(archive.read("config.json"), f"config.json in {source.name}")
    if "metadata.json" in archive:
        version = jsons.text(
            jsons.parse(archive.read("metadata.json"), f"metadata.json in {source.name}"), "keras_version"
        )
        if version:
            report.hyperparameters["keras_version"] = version[:40]
    keras_layers.judge(report, config, "config.json")
    layers = keras_layers.layers_of(config)
    tensors: list[Tensor] = []
    for name, entry in archive.entries.items():
        if _WEIGHTS.fullmatch(name):
            try:
                root = hdf5.read(Paged(archive.stored(name), entry.size, f"{name} in {source.name}"))
            except HiveError as error:
                report.error = Trouble(error.code, error.sentence, error.fix)
                continue
            tensors.extend(_tensors(report, root, layers, archive.stored(name), name))
    if report.error is None:
        _hold(report, tensors, layers)
    elif not report.dangerous:
        report.safe = None
    _describe(report, config, layers)
    return report


def _read_hdf5(source: Source) -> Report:
    report = Report(safe=True)
    root = hdf5.read(Paged(source.part(0, source.size), source.size, source.name))
    text = _joined(root, "model_config")
    layers: list[Layer] = []
    config: Json = None
    if text is not None:
        report.know(Confidence.read, "root attribute model_config", format="keras_h5", framework="keras")
        config = jsons.parse(text.encode(), f"model_config in {source.name}")
        keras_layers.judge(report, config, "model_config")
        layers = keras_layers.layers_of(config)
        training = _joined(root, "training_config")
        if training is not None:
            keras_layers.judge(report, jsons.parse(training.encode(), "training_config"), "training_config")
    elif "layer_names" in root.attributes or "layers" in root.groups or "_layer_checkpoint_dependencies" in root.groups:
        report.know(Confidence.read, "groups of layers, no configuration", format="keras_weights", framework="keras")
    else:
        report.know(Confidence.read, "superblock", format="hdf5")
    version = root.attributes.get("keras_version")
    if isinstance(version, str):
        report.hyperparameters["keras_version"] = version[:40]
    _hold(report, _tensors(report, root, layers, source.part(0, source.size), ""), layers)
    _describe(report, config, layers)
    return report


def _joined(root: hdf5.Group, name: str) -> str | None:
    """An attribute that Keras cuts into pieces name0, name1, ... where it is long."""
    whole = root.attributes.get(name)
    if isinstance(whole, str):
        return whole
    parts: list[str] = []
    while isinstance(part := root.attributes.get(f"{name}{len(parts)}"), str):
        parts.append(part)
    return "".join(parts) if parts else None


def _tensors(report: Report, root: hdf5.Group, layers: list[Layer], place: Readable, entry: str) -> list[Tensor]:
    """The weights of a file; optimizer and metrics left out, statistics marked."""
    kinds = {layer.name: layer for layer in layers}
    start = place.start if isinstance(place, Part) else None
    found: list[Tensor] = []
    for group in root.walk():
        path = group.path.strip("/")
        for name, what in group.foreign:
            where = f"{entry}: {group.path}" if entry else group.path
            report.find(f"{path}/{name}".strip("/"), where[:300], f"It is {what}; reading it reads something else.")
        if _OPTIMIZER.match(path):
            continue
        owner = _owner(path, group, kinds)
        for name, dataset in group.datasets.items():
            if dataset.dtype in ("string", "opaque", "compound", "reference", "variable"):
                continue
            full = f"{path}/{name}".strip("/")
            offset = None if start is None or dataset.offset is None else start + dataset.offset
            buffer = _is_buffer(full, name, group, owner)
            found.append(
                Tensor(full, dataset.dtype, dataset.shape, "", offset, dataset.elements * dataset.itemsize,
                       trainable=False if buffer else None if owner is None else owner.trainable or None)
            )  # fmt: skip
    return found


def _owner(path: str, group: hdf5.Group, kinds: dict[str, Layer]) -> Layer | None:
    """The layer a group of weights belongs to: by the name it carries, else by the nearest name on its path."""
    name = group.attributes.get("name")
    if isinstance(name, str) and name in kinds:
        return kinds[name]
    return next((kinds[part] for part in reversed(path.split("/")) if part in kinds), None)


def _is_buffer(full: str, name: str, group: hdf5.Group, owner: Layer | None) -> bool:
    """Statistics and states: by name in Keras 2's layout, by position in 3's (a batch normalization's last two)."""
    if "seed_generator" in full or "/metrics/" in full:
        return True
    if not full.endswith(f"vars/{name}"):
        return _STATISTICS.search(full) is not None
    parts = full.split("/")
    parts = full.split("/")
    kind = owner.kind.lower() if owner is not None else ""
    stem = _NUMBERED.sub("", parts[-3]).replace("_", "") if len(parts) >= 3 else ""
    if {kind, stem} & {"batchnormalization", "syncbatchnormalization"}:
        return name.isdecimal() and int(name) >= len(group.datasets) - 2
    return "normalization" in (kind, stem)


def _hold(report: Report, tensors: list[Tensor], layers: list[Layer]) -> None:
    report.hold(tensors, "headers of the datasets")
    holders = {_holder(tensor.name) for tensor in tensors}
    report.know(Confidence.inferred, "layers that hold weights", layers=len(holders) or None)
    frozen = {layer.name for layer in layers if not layer.trainable}
    if layers:
        moving = sum(count(tensor.shape) for tensor in tensors if tensor.trainable is True)
        unknown = any(tensor.trainable is None for tensor in tensors) and bool(frozen)
        if not unknown:
            report.know(Confidence.read, "trainable of each layer", trainable_parameters=moving)
        else:
            report.know(Confidence.inferred, "layers not marked as frozen", trainable_parameters=moving)


def _holder(name: str) -> str:
    """The layer of a weight: the path up to `vars` in Keras 3's layout, up to the weight's own name in 2's."""
    path = name.split("/vars/")[0]
    return path if path != name else name.rpartition("/")[0]


def _describe(report: Report, config: Json, layers: list[Layer]) -> None:
    if config is None:
        return
    evidence = "model configuration"
    inputs = keras_layers.inputs_of(config, layers)
    outputs = keras_layers.outputs_of(config, layers)
    report.know(Confidence.read, evidence, inputs=inputs, outputs=outputs)
    report.know(Confidence.read, f"{evidence}: name", model=keras_layers.given_name(config))
    recognise(report, keras_layers.mix_of(layers, inputs, outputs))
