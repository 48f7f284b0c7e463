"""Directories as transformers, sentence-transformers and their kin write them: config.json and weights."""

from __future__ import annotations

from pathlib import Path

from hivenode.errors import NotFound
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.formats.templates import LONGEST, judge_template
from hivenode.models.identify.naming.architectures import know_class
from hivenode.models.identify.naming.packed import unpack
from hivenode.models.identify.readers.weight_files import INDEX, SINGLE, take
from hivenode.models.identify.report import Confidence, Report, Trouble

SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "n_layer", "n_head", "n_embd", "n_positions", "d_model", "d_ff",
    "num_layers",
    "num_heads", "num_labels", "image_size", "patch_size", "num_channels", "num_experts", "num_local_experts",
    "num_experts_per_tok",
    "encoder_layers", "decoder_layers", "model_type", "dtype", "torch_dtype", "sliding_window",
    "tie_word_embeddings", "dim", "n_layers", "n_heads", "hidden_dim",
)  # fmt: skip
WHY_REMOTE = "code of the model's author, run if remote code is trusted; it never is here"


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return (
        "config.json" in names or any(name in names for name in SINGLE) or any(name.endswith(INDEX) for name in names)
    )


def read_directory(path: Path) -> Report:
    folder = Folder(path)
    report = Report(safe=True)
    report.know(Confidence.read, "its files", format="transformers_directory")
    config = folder.json("config.json") if "config.json" in folder else {}
    if "_class_name" in config:
        from hivenode.models.identify.readers.diffusers_directory import read_part

        return read_part(path)
    describe(report, config)
    weights = take(report, folder)
    if weights is None:
        error = NotFound(
            f"{path} has a config.json and no weights.", fix="Fetch model.safetensors, or all of its shards."
        )
        report.error = Trouble(error.code, error.sentence, error.fix)
    quantized = jsons.inner(config, "quantization_config")
    if quantized and report.listing:
        unpack(report, quantized)
    remote_code(report, folder)
    report.size_bytes, report.bytes_read = folder.size, folder.bytes_read
    if report.error is not None and not report.dangerous:
        report.safe = None
    return report


def describe(report: Report, config: dict[str, Json], name: str = "config.json") -> None:
    """What the configuration says, by transformers' names."""
    classes = jsons.texts(config, "architectures")
    kind = jsons.text(config, "model_type")
    if classes or kind:
        report.know(
            Confidence.read, f"{name}: {'architectures' if classes else 'model_type'}", framework="transformers"
        )
    if classes:
        report.know(Confidence.read, f"{name}: architectures", model=classes[0])
        know_class(report, classes[0])
    elif kind:
        report.know(Confidence.read, f"{name}: model_type", model=kind)
    problem = jsons.text(config, "problem_type")
    if problem == "regression" and report.task == "text_classification":
        report.know(Confidence.read, f"{name}: problem_type", task="text_regression")
    inner = jsons.inner(config, "text_config")
    for source in (config, inner):
        for key in SIZES:
            value = source.get(key)
            if isinstance(value, bool | int | float | str) and len(str(value)) < 100:
                report.hyperparameters.setdefault(key, value)
    blocks = next(
        (jsons.whole(part, key) for part in (config, inner) for key in ("num_hidden_layers", "n_layer", "n_layers",
         "num_layers", "encoder_layers") if jsons.whole(part, key) is not None), None,
    )  # fmt: skip
    report.know(Confidence.read, f"{name}: number of layers", layers=blocks)
    quantized = jsons.inner(config, "quantization_config")
    method = jsons.text(quantized, "quant_method")
    bits = jsons.whole(quantized, "bits") or jsons.whole(quantized, "w_bit")
    if method == "bitsandbytes" or quantized.get("load_in_4bit") or quantized.get("load_in_8bit"):
        method, bits = "bitsandbytes", 4 if quantized.get("load_in_4bit") else 8
    if method:
        report.know(
            Confidence.read, f"{name}: quantization_config", quantization=f"{method}-{bits}bit" if bits else method
        )


def remote_code(report: Report, folder: Folder) -> None:
    """Name everything in a folder that is a program: auto_map, templates, Python files, custom generation."""
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
                 "generation_config.json", "adapter_config.json"):  # fmt: skip
        if name not in folder:
            continue
        table = folder.json(name)
        for key, value in jsons.inner(table, "auto_map").items():
            report.find(f"auto_map: {key} = {value}", name, WHY_REMOTE)
        if table.get("auto_map") is not None and not isinstance(table["auto_map"], dict):
            report.find(f"auto_map: {str(table['auto_map'])[:100]}", name, WHY_REMOTE)
        if table.get("trust_remote_code"):
            report.find("trust_remote_code", name, WHY_REMOTE)
        for key, value in jsons.inner(table, "custom_pipelines").items():
            report.find(f"custom_pipelines: {key} = {str(value)[:100]}", name, WHY_REMOTE)
        _templates(report, table.get("chat_template"), name)
    if "chat_template.json" in folder:
        _templates(report, folder.json("chat_template.json").get("chat_template"), "chat_template.json")
    for name in sorted(folder.names):
        if name.endswith(".jinja"):
            with folder.open(name) as source:
                text = source.head(LONGEST + 1).decode("utf-8", "backslashreplace")
                folder.took(source)
            judge_template(report, text, name, folder.path.name)
        elif name.endswith(".py"):
            report.find(name, folder.path.name, WHY_REMOTE)


def _templates(report: Report, value: Json, where: str) -> None:
    """Judge what a configuration has as chat template: a text, or a list of named ones."""
    for part in value if isinstance(value, list) else [value]:
        text = part.get("template") if isinstance(part, dict) else part
        if isinstance(text, str) and text:
            judge_template(report, text, f"chat_template: {text[:120]!r}", where)
        elif text is not None and text != "":
            report.find(f"chat_template: {str(text)[:120]}", where, "It is none of the forms a chat template has.")
