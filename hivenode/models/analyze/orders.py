"""What a worker may trace of a model: what can be built without its file. Either an order, or why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hivenode.errors import Corrupted
from hivenode.models.analyze import transformers, weights
from hivenode.models.analyze.quantities import Options
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.report import Report
from hivenode.models.identify.source import Source
from hivenode.spec.tracing import MAX_CONFIG_BYTES, TraceOrder

if TYPE_CHECKING:
    from hivenode.data.info import DataInfo
    from hivenode.models.card import ModelCard
    from hivenode.spec.job import JobSpec
    from hivenode.spec.model import ModelSpec

MOST_LAYERS = 2048
MOST_ELEMENTS = 1 << 34
"""Of the tokens of a batch squared and the like: beyond it the numbers of a trace would not be believed anyway."""


def order_for(path: Path, report: Report, options: Options) -> TraceOrder | str:
    """An order for the model at `path`, of which `report` tells; or one sentence that says why there is none.

    Raises:
        HiveError: its configuration cannot be read.
    """
    if path.is_dir() and report.format == "transformers_directory" and report.model:
        return _transformers(path, report, options)
    if report.format == "safetensors" and path.is_file() and (ours := _ours(path)) is not None:
        return _declared(ours.model, ours.info, options)
    return f"a model in the format {report.format} is not built here without running what is in it"


def order_for_zoo(job: JobSpec, options: Options) -> TraceOrder:
    """An order for the model of a job. Raises InvalidInput for data that does not exist."""
    from hivenode.data.sources import information  # what reads data takes long to import, and files need none of it

    return _declared(job.model, information(job.data), options)


def dtypes(report: Report | None, options: Options) -> tuple[str, str]:
    """Of inference and of training: what was asked for, else as stored and float32."""
    if options.dtype is not None:
        return options.dtype, options.dtype
    return (weights.stored_dtype(report) if report is not None else "float32"), "float32"


def _declared(model: ModelSpec, info: DataInfo, options: Options) -> TraceOrder:
    infer, train = dtypes(None, options)
    config = model.model_dump_json(exclude_defaults=True).encode()
    return TraceOrder(
        "declared", model.source, config, options.batch, 1, infer, train, options.train, msgspec.json.encode(info)
    )


def _transformers(path: Path, report: Report, options: Options) -> TraceOrder | str:
    config = Folder(path).json("config.json")
    kind, named = jsons.text(config, "model_type"), jsons.texts(config, "architectures")
    if not kind or not named:
        return "config.json names no model type or class"
    raw = msgspec.json.encode(config)
    if len(raw) > MAX_CONFIG_BYTES:
        return "config.json is larger than any"
    sizes = transformers.sizes_of(report)
    sequence = options.sequence or (transformers.usual_sequence(sizes) if sizes else transformers.DEFAULT_SEQUENCE)
    if (report.layers or 0) > MOST_LAYERS or options.batch * sequence**2 > MOST_ELEMENTS:
        return "it is too large to be traced"
    if sizes is not None and sizes.longest and sequence > sizes.longest:
        return f"the model reads {sizes.longest} tokens at most"
    infer, train = dtypes(report, options)
    trains = options.train and not weights.is_quantized(report)
    return TraceOrder("transformers", named[0], raw, options.batch, sequence, infer, train, trains)


def _ours(path: Path) -> ModelCard | None:
    """The card of a model this project has trained; its own metadata says so."""
    from hivenode.models.card import FORMAT, MAX_HEADER_BYTES, card_of

    with Source(path) as source:
        length = int.from_bytes(source.read(0, 8), "little")
        if length > MAX_HEADER_BYTES:
            return None
        header = jsons.parse(source.read(8, length), path.name)
    told = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        return None
    try:
        return card_of(path, {str(name): str(value) for name, value in told.items()})
    except Corrupted:
        return None
