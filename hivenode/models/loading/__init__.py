"""Loading models in a worker, without ever unpickling: tensors as views, estimators and trees rebuilt from their state.

`memory.py` is the check that comes first, `weights.py` tensors of any format, `estimators/` scikit-learn's objects,
`trees.py` with `xgboost.py` and `lightgbm.py` boosted trees, `sessions.py` graphs run by their own library. Every file
is identified first; what its verdict names is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivenode.errors import Corrupted, HiveError, InvalidInput, Refused, from_dict
from hivenode.models.identify import identify
from hivenode.models.identify.report import Finding, Report, Tensor
from hivenode.models.identify.source import Source
from hivenode.models.loading import memory, order
from hivenode.models.loading.weights import Files, Wanted, Weight, chooser, distinct_bytes, span

__all__ = ["Loaded", "Weight", "load", "refuse", "stream"]

TREES = frozenset({"xgboost_json", "xgboost_ubj", "lightgbm_text"})
PICKLES = frozenset({"pickle", "joblib", "skops"})
GRAPHS = frozenset({"onnx", "keras", "keras_h5"})
UNPACKED_FACTOR = 2
"""Estimators, trees and graphs are held once as read and once as built."""


@dataclass
class Loaded:
    """A model in memory.

    Attributes:
        report: what it was identified as.
        weights: tensors by name, in the order of the file; empty where a model holds none as such.
        model: what predicts: an estimator of scikit-learn, `trees.Trees`, an onnxruntime session or a Keras model;
            None for weights alone.
        left_out: attributes of estimators that predicting does not need and that were not rebuilt.
    """

    report: Report
    weights: dict[str, Weight] = field(default_factory=dict)
    model: Any = None
    left_out: tuple[str, ...] = ()


def load(
    path: Path | str, *, budget: int | None = None, only: Wanted = None, resident: bool = False, model: bool = True
) -> Loaded:
    """Load a model file or directory.

    Args:
        budget: bytes it may take; None: what this process may still take.
        only: tensors wanted, by patterns of the shell or by a predicate; the others are not touched, and no model is
            built.
        resident: read tensors into own memory instead of mapping the file.
        model: build what predicts, where the format holds it.

    Raises:
        Exhausted: it takes more than the budget; nothing has been read but headers.
        Refused: it holds something outside what is known to be harmless; the sentence names it.
        HiveError: it is damaged, or there is nothing in it to load.
    """
    given = Path(path)
    report = examine(given)
    allowed = memory.default_budget() if budget is None else budget
    wanted = _wanted(report, only)
    loaded = Loaded(report)
    building = model and only is None
    size = distinct_bytes(wanted)
    form = report.format or ""
    if building and form in GRAPHS | TREES | PICKLES:
        size += UNPACKED_FACTOR * max(report.size_bytes or 0, size)
    memory.check(
        size,
        allowed,
        f"Loading {given}",
        fix="Choose tensors (only=..., --tensors PATTERN), stream them one at a time, or give it more memory.",
    )
    if building and form in TREES:
        loaded.model = _trees(given, form)
    elif building and form in PICKLES:
        from hivenode.models.loading.estimators import load_estimator

        loaded.model, loaded.left_out = load_estimator(given, form, allowed)
    files = Files(given, resident)
    loaded.weights = {tensor.name: files.weight(tensor) for tensor in wanted}
    if building and form in GRAPHS:
        from hivenode.models.loading import sessions

        loaded.model = sessions.onnx(given) if form == "onnx" else sessions.keras(given)
    if loaded.model is None and not loaded.weights:
        raise _nothing(given, report, only)
    return loaded


def stream(path: Path | str, *, budget: int | None = None, only: Wanted = None) -> Iterator[Weight]:
    """Tensors one at a time, each in memory of its own: models of any size in the memory of their largest tensor.

    Raises:
        Exhausted: one tensor alone takes more than the budget.
        Refused, HiveError: see `load`.
    """
    given = Path(path)
    report = examine(given)
    allowed = memory.default_budget() if budget is None else budget
    files = Files(given, resident=True)
    for tensor in _wanted(report, only):
        memory.check(
            span(tensor),
            allowed,
            f"The tensor {tensor.name} of {given}",
            fix="Map it instead (load with only=...) and take rows of it, or give it more memory.",
        )
        yield files.weight(tensor)
        files.forget()


def examine(path: Path) -> Report:
    """The report on something that may be loaded.

    Raises:
        Refused: it may not; the first thing that stood in the way is named.
        HiveError: it cannot be read.
    """
    report = identify(path)
    blocking = [finding for finding in report.findings if not _only_text(finding, report)]
    if blocking:
        raise refuse(path, blocking[0], len(blocking) - 1)
    if report.error is not None:
        raise from_dict({"code": report.error.code, "message": report.error.message, "fix": report.error.fix})
    order.check(path, report)
    return report


def refuse(path: Path, finding: Finding, more: int = 0) -> Refused:
    """The refusal of a file with a finding."""
    others = f" (and {more} more)" if more else ""
    return Refused(
        f"{path} is not loaded: it holds {finding.what}, {finding.where}{others}: {finding.why.rstrip('.')}.",
        fix="If you trust who made it, turn it into plain weights in a sandbox on your own machine: "
        f"hivenode convert {path} DIR",
    )


def _only_text(finding: Finding, report: Report) -> bool:
    """Whether a finding is a chat template: a program for who serves the model, and text to who loads weights."""
    if report.format == "gguf":
        return "chat_template" in finding.what
    named = finding.what.startswith(("chat_template:", "chat_template.jinja"))
    return report.format in {"transformers_directory", "peft_adapter"} and named and ".pkl" not in finding.where


def _wanted(report: Report, only: Wanted) -> list[Tensor]:
    choose = chooser(only)
    listed = [tensor for tensor in report.listing if _readable(tensor, report.format or "")]
    chosen = [tensor for tensor in listed if choose(tensor.name)]
    if only is not None and not chosen:
        some = ", ".join(tensor.name for tensor in listed[:3])
        raise InvalidInput(
            f"None of the {len(listed)} tensors of {report.path} is called so.",
            fix=f"Its tensors are {some}, ...; hivenode identify --tensors lists them." if some else "Load it whole.",
        )
    return chosen


def _readable(tensor: Tensor, form: str) -> bool:
    """Texts in checkpoints are no tensors; estimators and trees have their arrays themselves."""
    return form not in PICKLES | TREES and tensor.dtype not in ("string", "str", "object", "resource", "variant")


def _trees(path: Path, form: str) -> Any:
    from hivenode.models.loading import lightgbm, xgboost

    with Source(path, budget=1 << 40) as source:
        return lightgbm.read(source) if form == "lightgbm_text" else xgboost.read(source)


def _nothing(path: Path, report: Report, only: Wanted) -> HiveError:
    if report.format is None:
        return Corrupted(f"{path} is of no known format.", fix="Give a model file.")
    return Refused(
        f"{path} is {report.format}, of which nothing is loaded here"
        + (" but the whole." if only is not None else "."),
        fix=f"Turn it into plain weights on your own machine: hivenode convert {path} DIR",
    )
