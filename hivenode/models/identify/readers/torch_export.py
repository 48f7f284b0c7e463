"""`.pt2`, what torch.export.save writes: a graph of operators as JSON, weights as raw bytes beside it."""

from __future__ import annotations

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.archives import STORED, Archive
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.naming.architectures import know_class
from hivenode.models.identify.naming.state_dicts import recognise
from hivenode.models.identify.readers.torch_script import nested
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor, count
from hivenode.models.identify.source import Source

SCALARS = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8), 6: ("float16", 2),
    7: ("float32", 4), 8: ("float64", 8), 9: ("complex32", 4), 10: ("complex64", 8), 11: ("complex128", 16),
    12: ("bool", 1), 13: ("bfloat16", 2), 28: ("uint16", 2), 29: ("float8_e4m3fn", 1), 30: ("float8_e5m2", 1),
    31: ("float8_e4m3fnuz", 1), 32: ("float8_e5m2fnuz", 1),
}  # fmt: skip
"""torch._export.serde.schema.ScalarType -> name and bytes."""
OPERATORS = ("torch.ops.aten.", "torch.ops.prim.", "torch.ops.higher_order.", "torch.ops.quantized_decomposed.",
             "torch.ops.quantized.", "torch.ops.torchvision.", "torch.sym_", "torch._sym", "_operator.", "math.",
             "operator.", "torch.ops.profiler.")  # fmt: skip
_MIX = (
    ("cnn", ("conv1d", "conv2d", "conv3d", "convolution")),
    ("transformer", ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")),
    ("rnn", ("lstm", "gru", "rnn_tanh")),
)


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and _root(archive) is not None


def _root(archive: Archive) -> str | None:
    """The folder of the archive: where `archive_format` or `models/` lies ("" for the top)."""
    for name in archive.entries:
        if name.endswith("/archive_format") and name.count("/") == 1:
            return name.removesuffix("archive_format")
        if name == "serialized_exported_program.json":
            return ""
        if name.startswith("models/") and name.endswith(".json"):
            return ""
    return None


def read(source: Source) -> Report:
    archive = Archive.of(source)
    root = _root(archive) or ""
    report = Report(safe=True)
    report.know(Confidence.read, f"{root}archive_format", format="torch_export", framework="pytorch")
    models = [name for name in archive.entries if name.startswith(f"{root}models/") and name.endswith(".json")]
    models += [name for name in archive.entries if name == "serialized_exported_program.json"]
    if not models:
        raise Corrupted(f"{source.name} has no graph in it.", fix="Export it again: torch.export.save.")
    program = jsons.table(archive.read(models[0]), f"{models[0]} in {source.name}")
    graph = jsons.inner(jsons.inner(program, "graph_module"), "graph")
    values = jsons.inner(graph, "tensor_values")
    signature = jsons.inner(jsons.inner(program, "graph_module"), "signature")
    config = _config(archive, root, models[0])
    report.hold(_weights(archive, root, config, signature, values), "the signature and weights of the graph")
    own = [part for part in report.listing if part.shared_with is None and part.trainable is not False]
    report.know(Confidence.read, "signature", trainable_parameters=sum(count(part.shape) for part in own))
    ports = [_ports(signature, "input_specs", values), _ports(signature, "output_specs", values)]
    report.know(Confidence.read, "signature", inputs=ports[0], outputs=ports[1])
    _operators(report, graph, models[0])
    recognise(report, report.listing)
    for name in archive.entries:
        if name.endswith((".pt", ".pth")) or name.startswith("serialized_"):
            if archive.entries[name].size and not name.endswith(".json"):
                nested(report, archive, name)
        elif name.endswith((".so", ".py", ".cpp", ".pkl")) or "aotinductor" in name:
            report.find(name, source.name, "machine code or a pickle, loaded with the model")
    return report


def _config(archive: Archive, root: str, model: str) -> dict[str, Json]:
    stem = model.rpartition("/")[2].removesuffix(".json")
    name = f"{root}data/weights/{stem}_weights_config.json"
    return jsons.inner(jsons.table(archive.read(name), name), "config") if name in archive else {}


def _weights(
    archive: Archive, root: str, config: dict[str, Json], signature: dict[str, Json], values: dict[str, Json]
) -> list[Tensor]:
    """Parameters and buffers: by the list of weights where there is one, else by the graph's signature."""
    made: list[Tensor] = []
    first: dict[str, str] = {}
    for name, entry in config.items():
        meta = jsons.inner(entry, "tensor_meta")
        dtype, width = _scalar(meta)
        shape = _shape(meta)
        stored = f"{root}data/weights/{jsons.text(entry, 'path_name')}"
        start: int | None = None
        if stored in archive:
            size = archive.entries[stored].size
            if count(shape) * width > size and not jsons.inner(entry, "use_pickle"):
                raise Corrupted(f"{stored} is smaller than its tensor.", fix="Export the model again.")
            start = archive.start(stored) if archive.entries[stored].method == STORED else None
        else:
            raise Corrupted(f"{archive.source.name} lacks {stored}.", fix="Fetch the file again.")
        shared = first.setdefault(stored, name)
        learnt = isinstance(entry, dict) and entry.get("is_param") is True
        made.append(
            Tensor(name, dtype, shape, "", start, count(shape) * width, None, learnt,
                   None if shared == name else shared)
        )  # fmt: skip
    if made:
        return made
    for spec in signature.get("input_specs") or []:
        for kind, key in (("parameter", "parameter_name"), ("buffer", "buffer_name")):
            held = jsons.inner(spec, kind)
            label, own = jsons.text(jsons.inner(held, "arg"), "name"), jsons.text(held, key)
            if label and own:
                meta = jsons.inner(values, label)
                made.append(Tensor(own, _scalar(meta)[0], _shape(meta), trainable=kind == "parameter"))
    return made


def _ports(signature: dict[str, Json], key: str, values: dict[str, Json]) -> list[Port]:
    """What a caller hands in or gets back."""
    ports = []
    for spec in signature.get(key) or []:
        for kind in ("user_input", "user_output"):
            name = jsons.text(jsons.inner(jsons.inner(jsons.inner(spec, kind), "arg"), "as_tensor"), "name")
            if name:
                meta = jsons.inner(values, name)
                ports.append(Port(name, _scalar(meta)[0], _shape(meta)))
    return ports


def _operators(report: Report, graph: dict[str, Json], where: str) -> None:
    """Findings for custom operators, and what kind of network the others make."""
    targets: dict[str, int] = {}
    whole = ""
    for place, node in enumerate(graph.get("nodes") or []):
        target = jsons.text(node, "target") or ""
        targets[target.removeprefix("torch.ops.aten.").split(".")[0]] = place
        if not target.startswith(OPERATORS):
            report.find(target, f"{where}, node {place}", "a custom operator: what it does is not in the file")
        stack = jsons.text(jsons.inner(node, "metadata"), "nn_module_stack") or ""
        whole = whole or stack.split(";")[0].rpartition(",")[2]
    short = whole.rpartition(".")[2]
    report.know(Confidence.read, "nn_module_stack", model=short or None)
    know_class(report, short)
    if report.architecture is None:
        kinds = [kind for kind, names in reversed(_MIX) if any(name in targets for name in names)]
        if kinds or "linear" in targets or "addmm" in targets:
            report.know(Confidence.inferred, "its operators", architecture=(kinds or ["neural_network"])[0])


def _scalar(meta: dict[str, Json]) -> tuple[str, int]:
    number = jsons.whole(meta, "dtype")
    if number not in SCALARS:
        raise Corrupted("A tensor in the graph has an unknown dtype.", fix="Export the model again.")
    return SCALARS[number]


def _shape(meta: dict[str, Json]) -> tuple[int, ...]:
    """Sizes; symbolic ones are free."""
    sizes = meta.get("sizes")
    found = []
    for size in sizes if isinstance(sizes, list) else []:
        whole = jsons.whole(size, "as_int")
        if whole is not None and whole < 0:
            raise Corrupted("A tensor in the graph has an impossible size.", fix="Export the model again.")
        found.append(FREE if whole is None else whole)
    return tuple(found)
