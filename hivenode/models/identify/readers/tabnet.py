"""pytorch-tabnet: a zip archive of parameters in JSON and a torch checkpoint. https://github.com/dreamquark-ai/tabnet"""

from __future__ import annotations

from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.archives import Archive
from hivenode.models.identify.formats.nested import Nested
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor
from hivenode.models.identify.source import Source

PARAMETERS, NETWORK = "model_params.json", "network.pt"
MATRICES = ("group_matrix", "group_attention_matrix", "embedding_group_matrix")
"""Buffers that spread a mask over the columns of one feature."""


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and PARAMETERS in archive and NETWORK in archive


def read(source: Source) -> Report:
    from hivenode.models.identify.readers import torch_zip

    archive = Archive.of(source)
    report = Report(safe=True)
    report.know(Confidence.read, f"{PARAMETERS} and {NETWORK}", format="tabnet", framework="pytorch-tabnet")
    stated = jsons.table(archive.read(PARAMETERS), f"{PARAMETERS} in {source.name}")
    inner = Nested(source, archive.read(NETWORK), f"{NETWORK} in {source.name}")
    if torch_zip.detects(inner.head(64), inner):
        held = torch_zip.read(inner)
        report.adopt(held, NETWORK)
        report.hold([_without_place(tensor) for tensor in held.listing], f"the tensors of {NETWORK}")
        report.know(Confidence.inferred, f"the modules of {NETWORK}", layers=held.layers)
    else:
        report.find(NETWORK, source.name, "it is no checkpoint of torch in a zip archive; its loader would unpickle it")
    for name in archive.entries:
        if name not in (PARAMETERS, NETWORK):
            report.find(name, source.name, "TabNet puts no such file into a model")
    _describe(report, jsons.inner(stated, "init_params"), jsons.inner(stated, "class_attrs"))
    return report


def _describe(report: Report, init: dict[str, jsons.Json], own: dict[str, jsons.Json]) -> None:
    report.know(Confidence.inferred, "TabNet is made for tables", family="tabular", architecture="neural_network")
    pretrained = any(tensor.name.startswith("decoder.") for tensor in report.listing)
    labels = own.get("preds_mapper")
    wide, out = jsons.whole(init, "input_dim"), jsons.whole(init, "output_dim")
    if pretrained:
        task, name, how = "pretraining", "TabNetPretrainer", "a decoder in the network"
    elif isinstance(labels, dict | list):
        task, name, how = "classification", "TabNetClassifier", "preds_mapper"
    else:
        task, name, how = "regression", "TabNetRegressor", "no preds_mapper"
    report.know(Confidence.inferred, how, task=task, model=name)
    if wide:
        report.know(Confidence.read, "input_dim", inputs=[Port("features", "float32", (FREE, wide))])
    if isinstance(out, int) and out > 0:
        report.know(Confidence.read, "output_dim", outputs=[Port("logits", "float32", (FREE, out))])
    for key in ("n_d", "n_a", "n_steps", "n_independent", "n_shared", "mask_type", "gamma"):
        value = init.get(key)
        if isinstance(value, int | float | str):
            report.hyperparameters[key] = value


def _without_place(tensor: Tensor) -> Tensor:
    matrix = tensor.name.endswith(MATRICES)
    return Tensor(
        tensor.name, tensor.dtype, tensor.shape, "", None, tensor.nbytes, tensor.stride,
        False if matrix else tensor.trainable, tensor.shared_with,
    )  # fmt: skip
