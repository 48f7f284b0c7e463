"""Adapters as PEFT writes them: adapter_config.json and the factors."""

from __future__ import annotations

from pathlib import Path

from hivenode.errors import NotFound
from hivenode.models.identify.folder import Folder
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.readers.transformers_directory import remote_code
from hivenode.models.identify.readers.weight_files import take
from hivenode.models.identify.report import Confidence, Report, Trouble

TASKS = {
    "SEQ_CLS": ("nlp", "text_classification"), "CAUSAL_LM": ("nlp", "text_generation"),
    "SEQ_2_SEQ_LM": ("nlp", "text2text_generation"), "TOKEN_CLS": ("nlp", "token_classification"),
    "QUESTION_ANS": ("nlp", "question_answering"), "FEATURE_EXTRACTION": ("nlp", "embedding"),
}  # fmt: skip


def detects_directory(path: Path, names: frozenset[str]) -> bool:
    return "adapter_config.json" in names


def read_directory(path: Path) -> Report:
    folder = Folder(path)
    report = Report(safe=True)
    report.know(Confidence.read, "adapter_config.json", format="peft_adapter", framework="peft")
    config = folder.json("adapter_config.json")
    family, task = TASKS.get(jsons.text(config, "task_type") or "", (None, None))
    kind = jsons.text(config, "peft_type")
    report.know(Confidence.read, "adapter_config.json: task_type", family=family, task=task)
    report.know(Confidence.read, "adapter_config.json: peft_type", model=kind)
    report.know(Confidence.inferred, "an adapter of PEFT", architecture="transformer")
    for key in ("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "num_virtual_tokens", "peft_type"):
        value = config.get(key)
        if isinstance(value, bool | int | float | str):
            report.hyperparameters[key] = value
    mapping = config.get("auto_mapping")
    if isinstance(mapping, dict):
        library = jsons.text(mapping, "parent_library") or ""
        report.hyperparameters["base_model_class"] = jsons.text(mapping, "base_model_class") or ""
        if library and library.split(".")[0] not in {"transformers", "diffusers", "torch", "peft"}:
            report.find(f"auto_mapping: {library}", "adapter_config.json", "a module that would be imported by name")
    if take(report, folder) is None:
        error = NotFound(f"{path} has no adapter_model.safetensors.", fix="Fetch the adapter's weights.")
        report.error = Trouble(error.code, error.sentence, error.fix)
        report.safe = None
    remote_code(report, folder)
    own = [tensor for tensor in report.listing if tensor.shared_with is None]
    if own and report.parameters is not None:
        report.know(
            Confidence.inferred, "an adapter's factors are what is trained", trainable_parameters=report.parameters
        )
    report.size_bytes, report.bytes_read = folder.size, folder.bytes_read
    return report
